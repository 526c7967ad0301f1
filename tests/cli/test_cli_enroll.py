"""The commands of enrolment as people use them: tokens that are listed and revoked, devices that wait and are let in."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from command_line import Command, Ended
from test_cli_device import desk_of, elsewhere

from pcm_p2p.daemon.state_lock import lock_state
from pcm_p2p.enrolment.token import decode_token_untrusted
from pcm_p2p.trust.identity import DeviceIdentity

NOWHERE = "127.0.0.1:9"


def token_for(cli: Command, fleet: Path, desk: str = NOWHERE, *options: str) -> dict[str, Any]:
    made: dict[str, Any] = cli("enroll", "token", "--fleet", fleet, "--desk", desk, "--json", *options).facts
    return made


async def joins(cli: Command, token: dict[str, Any], state: Path, *options: str) -> Ended:
    words = ("enroll", "join", token["token"], "--state", state, "--no-mdns", *options)
    return await elsewhere(cli, *words)


async def test_an_image_waits_for_a_person_and_is_let_in(
    cli: Command, fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk_of(fleet) as address:
        token = token_for(cli, fleet, address, "--approval", "--uses", "500", "--site", "oslo")
        assert (token["approval"], token["uses"]) == (True, 500)
        for name in ("one", "two", "three"):
            waits = await joins(cli, token, tmp_path / name)
            assert (waits.status, waits.out) == (1, "")
            assert "waits for approval" in waits.err
            assert "pcm-p2p enroll approve" in waits.err
        rows = cli("enroll", "pending", "--fleet", fleet, "--json").facts
        assert {(row["site"], row["role"], row["from"], row["decision"]) for row in rows} == {
            ("oslo", "device", "127.0.0.1", "")
        }
        assert all(row["code"] in cli("enroll", "pending", "--fleet", fleet, "--site", "oslo").out for row in rows)
        assert rows[2]["code"] in waits.err, "both sides show the same code"
        assert cli("enroll", "pending", "--fleet", fleet, "--site", "rome", "--json").facts == []
        monkeypatch.setenv("COLUMNS", "60")
        narrow = cli("enroll", "pending", "--fleet", fleet).out
        assert all(row["code"] in narrow for row in rows), "a code is never cut"
        first, second, third = (row["code"] for row in rows)
        assert cli("enroll", "approve", first.lower().replace("-", " "), "--fleet", fleet).status == 0
        assert cli("enroll", "deny", second, "--fleet", fleet).status == 0
        assert cli("enroll", "approve", rows[2]["device"], "--fleet", fleet).status == 0
        outcomes = {name: await joins(cli, token, tmp_path / name, "--json") for name in ("one", "two", "three")}
        statuses = {ended.facts["device"]: ended.status for ended in outcomes.values() if not ended.status}
        assert statuses == {rows[0]["device"]: 0, rows[2]["device"]: 0}
        (refused,) = [ended for ended in outcomes.values() if ended.status]
        assert refused.status == 5
        assert "a person refused this device" in refused.err
        assert third
        assert cli("enroll", "pending", "--fleet", fleet, "--json").facts == []


async def test_all_of_a_site_are_let_in_at_once_and_too_many_are_warned_of(
    cli: Command, fleet: Path, tmp_path: Path
) -> None:
    async with desk_of(fleet) as address:
        oslo = token_for(cli, fleet, address, "--approval", "--uses", "1", "--site", "oslo")
        rome = token_for(cli, fleet, address, "--approval", "--site", "rome")
        for name, token in (("a", oslo), ("b", oslo), ("c", rome)):
            assert (await joins(cli, token, tmp_path / name)).status == 1
        let_in = cli("enroll", "approve", "--all", "--site", "oslo", "--shown", code_of(cli, fleet), "--fleet", fleet)
        assert let_in.status == 0
        assert let_in.err.count("approved: ") == 2
        assert "has 1 use(s) left for 2 approved devices" in let_in.err
        assert sorted([(await joins(cli, oslo, tmp_path / name)).status for name in ("a", "b")]) == [0, 5]
        assert (await joins(cli, rome, tmp_path / "c")).status == 1


def code_of(cli: Command, fleet: Path, site: str = "oslo") -> str:
    """The code below the list that a person is shown."""
    (line,) = [line for line in cli("enroll", "pending", "--fleet", fleet).err.splitlines() if f"--site {site}" in line]
    return line.partition("--shown ")[2].rstrip("'.")


async def test_who_came_after_the_list_was_shown_is_not_let_in_with_all(
    cli: Command, fleet: Path, tmp_path: Path
) -> None:
    async with desk_of(fleet) as address:
        token = token_for(cli, fleet, address, "--approval", "--uses", "9", "--site", "oslo")
        for name in ("a", "b", "denied"):
            assert (await joins(cli, token, tmp_path / name)).status == 1
        rows = cli("enroll", "pending", "--fleet", fleet, "--json").facts
        assert cli("enroll", "deny", rows[2]["code"], "--fleet", fleet).status == 0
        shown = code_of(cli, fleet)
        assert (await joins(cli, token, tmp_path / "late")).status == 1
        late = cli("enroll", "pending", "--fleet", fleet, "--json").facts[-1]
        every = ("enroll", "approve", "--all", "--site", "oslo", "--fleet", fleet)
        blind = cli(*every)
        assert (blind.status, "more may wait by now than you have seen" in blind.err) == (2, True)
        let_in = cli(*every, "--shown", shown.lower())
        assert let_in.status == 0
        assert [row["code"] in let_in.err for row in rows] == [True, True, False], "and nobody's word is overruled"
        assert f"came later, and waits: {late['code']}" in let_in.err
        statuses = [(await joins(cli, token, tmp_path / name)).status for name in ("a", "b", "denied", "late")]
        assert statuses == [0, 0, 5, 1]
        again = cli(*every, "--shown", shown)
        assert (again.status, "is not the list of who waits now" in again.err) == (2, True)


async def test_join_waits_until_a_person_has_decided(
    cli: Command, fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pcm_p2p.enrolment.join.WAIT_S_MIN", 0.05)
    monkeypatch.setattr("pcm_p2p.enrolment.join.WAIT_S_MAX", 0.05)
    from pcm_p2p.enrolment import desk as desk_module

    real, asked = desk_module.Desk.answer, []

    def answer(self: Any, data: bytes, source: str = "") -> Any:
        asked.append(source)
        if len(asked) == 3:
            approve_all(fleet)
        return real(self, data, source)

    monkeypatch.setattr(desk_module.Desk, "answer", answer)
    async with desk_of(fleet) as address:
        token = token_for(cli, fleet, address, "--approval", "--site", "oslo")
        joined = await joins(cli, token, tmp_path / "state", "--wait", "--json")
    assert (joined.status, joined.facts["role"]) == (0, "device")
    assert joined.err.count("Waiting.") == 1
    assert len(asked) == 3


def approve_all(fleet: Path) -> None:
    from pcm_p2p.enrolment.waiting_list import WaitingList

    waiting = WaitingList(fleet / "enrolment")
    waiting.load()
    for entry, _ in waiting.entries():
        waiting.decide(entry, "approved", 1)


def test_tokens_are_listed_and_revoked(cli: Command, fleet: Path) -> None:
    one = token_for(cli, fleet, NOWHERE, "--site", "oslo", "--expires", "1h")
    image = token_for(cli, fleet, NOWHERE, "--approval", "--uses", "5", "--role", "relay")
    listed = cli("enroll", "list", "--fleet", fleet, "--json").facts
    assert [(row["id"], row["state"], row["role"], row["site"], row["uses"], row["uses_max"]) for row in listed] == [
        (one["id"], "open", "device", "oslo", 0, 1),
        (image["id"], "open", "relay", "default", 0, 5),
    ]
    assert "0 of 5" in cli("enroll", "list", "--fleet", fleet).out
    assert one["token"] not in cli("enroll", "list", "--fleet", fleet).out
    revoked = cli("enroll", "revoke", one["id"][:8], "--fleet", fleet)
    assert revoked.status == 0
    assert "is revoked" in revoked.err
    assert [row["id"] for row in cli("enroll", "list", "--fleet", fleet, "--json").facts] == [image["id"]]
    every = cli("enroll", "list", "--all", "--fleet", fleet, "--json").facts
    assert {row["id"]: row["state"] for row in every} == {one["id"]: "revoked", image["id"]: "open"}


def test_a_token_leads_to_the_desk_of_the_fleet_document_unless_another_is_said(cli: Command, fleet: Path) -> None:
    without = cli("enroll", "token", "--fleet", fleet)
    assert (without.status, without.out) == (2, "")
    assert "names no desk" in without.err
    document = fleet / "fleet.toml"
    document.write_text(f'{document.read_text()}\n[[desk]]\naddress = "desk.example.org:8742"\n')
    for options, address in (((), "desk.example.org:8742"), (("--desk", NOWHERE), NOWHERE)):
        line = cli("enroll", "token", "--fleet", fleet, *options).out.strip()
        assert decode_token_untrusted(line).desk == address


async def test_a_device_whose_identity_is_used_twice_gets_a_fresh_one(
    cli: Command, fleet: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    async with desk_of(fleet) as address:
        token = token_for(cli, fleet, address, "--uses", "2")
        settings = ("--set", "listen.port=8999", "--set", "apply.service=/run/pcm-p2p-apply/socket")
        before = (await joins(cli, token, state, *settings, "--json")).facts
        with sqlite3.connect(state / "node.sqlite") as connection:
            connection.execute("CREATE TABLE numbering (x)")
        connection.close()
        with lock_state(state):
            refused = await joins(cli, token, state, "--new-identity")
            assert refused.status == 6
            assert "in use by another daemon" in refused.err
        after = await joins(cli, token, state, "--new-identity", "--json")
        assert after.status == 0, after.err
        assert after.facts["device"] != before["device"]
        (retired,) = state.glob("identity.retired-*")
        assert str(retired) in after.err
        assert f"apply-service adopt --device {after.facts['device']}" in after.err
        assert DeviceIdentity.load(retired).device_id.hex() == before["device"]
        assert (retired / "node.sqlite").exists()
        assert not (state / "node.sqlite").exists()
        assert DeviceIdentity.load(state / "identity").device_id.hex() == after.facts["device"]
        assert "8999" in (state / "config.toml").read_text(), "settings stay"
        assert not (state / "identity.next").exists()


async def test_a_fresh_identity_that_was_interrupted_is_finished_by_the_same_command(
    cli: Command, fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    real = Path.rename
    for killed_at in (1, 2):
        async with desk_of(fleet) as address:
            token = token_for(cli, fleet, address, "--uses", "2")
            await joins(cli, token, state)
            renames = 0

            def rename(self: Path, target: Path, killed_at: int = killed_at) -> Path:
                nonlocal renames
                renames += 1
                if renames == killed_at:
                    raise KeyboardInterrupt
                return real(self, target)

            with monkeypatch.context() as patched:
                patched.setattr(Path, "rename", rename)
                assert (await joins(cli, token, state, "--new-identity")).status != 0
            assert (state / "identity.next" / "device.crt").exists()
            fresh = DeviceIdentity.load(state / "identity.next").device_id
        finished = await joins(cli, token, state, "--new-identity", "--json")
        assert finished.status == 0, "no desk is needed: the certificate was there"
        assert finished.facts["device"] == fresh.hex()


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("approve",), 2, "which devices?"),
        (("approve", "--all"), 2, "which devices?"),
        (("deny", "--all", "--site", "x", "ABC"), 2, "which devices?"),
        (("approve", "--all", "--site", "x"), 2, "more may wait"),
        (("approve", "--all", "--site", "x", "--shown", "1-AAAAAAAA"), 2, "is not the list"),
        (("approve", "ABC", "--shown", "1-AAAAAAAA"), 2, "which devices?"),
        (("approve", "ABC"), 2, "is not a device code"),
        (("approve", "ab" * 16), 2, "does not wait"),
        (("deny", "AAAAAAA-AAAAAAA-AAAAAAA-AAAAAAB"), 2, "mistyped"),
        (("revoke", "abcd"), 2, "no token begins with abcd"),
        (("revoke", "x"), 2, "is not the id of a token"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_decided_is_said_with_its_remedy(
    cli: Command, fleet: Path, words: tuple[str, ...], status: int, said: str
) -> None:
    ended = cli("enroll", *words, "--fleet", fleet)
    assert (ended.status, ended.out) == (status, "")
    assert said in ended.err
    assert ended.err.count("\n") >= 2, "a remedy stands below"

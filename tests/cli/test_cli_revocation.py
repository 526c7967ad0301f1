"""The commands that take trust away: device revoke, restore, list; fleet new-authority."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Command

from pcm_p2p.authority.publish import OnlineKeys, publish
from pcm_p2p.authority.repository import FleetFolder

Words = tuple[str, Path]
ONE, TWO = "1" * 32, "2" * 32
WORDS = "correct horse"


def sign_and_publish(fleet: Path, origin: Path) -> None:
    folder = FleetFolder.open(fleet)
    for owner in ("ann", "bob"):
        folder.sign(fleet / "keys" / f"targets-{owner}.key", WORDS)
    publish(folder, origin, OnlineKeys.open(folder, WORDS))


def test_a_device_is_revoked_listed_and_restored(cli: Command, fleet: Path, tmp_path: Path) -> None:
    assert cli("device", "list", "--fleet", fleet).out.strip() == "nobody is revoked"
    revoked = cli("device", "revoke", ONE, TWO, "--reason", "stolen in Lyon", "--fleet", fleet)
    assert revoked.status == 0
    assert f"proposed: {ONE} is revoked" in revoked.out
    assert "pcm-p2p sign" in revoked.err
    states = {row["id"]: row["state"] for row in cli("device", "list", "--fleet", fleet, "--json").facts["entries"]}
    assert states == {ONE: "proposed", TWO: "proposed"}
    sign_and_publish(fleet, tmp_path / "origin")
    assert cli("device", "restore", TWO, "--fleet", fleet).status == 0
    shown = cli("device", "list", "--fleet", fleet, "--json").facts
    assert {row["id"]: row["state"] for row in shown["entries"]} == {ONE: "revoked", TWO: "restoring"}
    assert (shown["epoch"], shown["proposed_epoch"]) == (1, 2)
    table = cli("device", "list", "--fleet", fleet).out
    assert "stolen in Lyon" in table


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("revoke", "1" * 31, "--reason", "x"), "is not a device id"),
        (("revoke", "../../etc", "--reason", "x"), "is not a device id"),
        (("revoke", ONE, "--reason", ""), "a reason has"),
        (("revoke", ONE, "--reason", "a\x1b[2Jb"), "a reason has"),
        (("restore", ONE), "is not revoked"),
    ],
)
def test_what_cannot_be_done_is_said_and_proposes_nothing(
    cli: Command, fleet: Path, words: tuple[str, ...], says: str
) -> None:
    before = sorted(path.read_bytes() for path in (fleet / "proposal").iterdir())
    ended = cli("device", *words, "--fleet", fleet)
    assert ended.status == 2
    assert says in ended.err
    assert sorted(path.read_bytes() for path in (fleet / "proposal").iterdir()) == before


def test_an_authority_is_replaced_step_by_step_and_each_step_waits_for_the_one_before(
    cli: Command, fleet: Path, tmp_path: Path, words: Words
) -> None:
    origin = tmp_path / "origin"
    sign_and_publish(fleet, origin)
    line = ("fleet", "new-authority", "--fleet", fleet)
    assert "there is no former" in cli(*line, "--retire").err
    made = cli(*line, *words)
    assert made.status == 0, made.err
    assert "devices believe authority" in made.out
    early = cli(*line, "--use")
    assert early.status == 2
    assert "devices were not told" in early.err
    assert "does not certify yet" in cli(*line, "--retire").err
    sign_and_publish(fleet, origin)
    used = cli(*line, "--use")
    assert used.status == 0, used.err
    assert "certifies from the next start of the desk" in used.out
    assert cli(*line, "--use").status == 0, "an interrupted step is repeated"
    sign_and_publish(fleet, origin)
    retired = cli(*line, "--retire", "--reason", "its key was copied")
    assert retired.status == 0, retired.err
    entries = cli("device", "list", "--fleet", fleet, "--json").facts["entries"]
    assert [(row["kind"], row["reason"]) for row in entries] == [("authority", "its key was copied")]
    assert "two steps" in cli(*line, "--use", "--retire").err

"""The commands around devices: enroll, origin, daemon and what it is asked, collector, lab."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from command_line import WORDS, Command, Ended

from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.daemon import __main__ as daemon
from pcm_p2p.daemon.control import serve_control
from pcm_p2p.enrolment.desk import Desk
from pcm_p2p.errors import InputError

NOWHERE = "127.0.0.1:9"
RELEASE = {
    "name": "app",
    "version": "2",
    "mode": "enforce",
    "state": "fetching",
    "detail": "waits for [segment 3]",
    "since_ms": 0,
    "chunks_total": 10,
    "chunks_have": 4,
    "needed_bytes": 1_000,
    "wan_bytes": 41_250_000,
    "lan_bytes": 7,
    "rate_bytes_per_s": 0,
    "eta_s": None,
}
STATUS: dict[str, Any] = {
    "schema": "pcm.status/1",
    "device": "ab" * 16,
    "short": "abababab",
    "site": "paris",
    "role": "device",
    "listening": ["127.0.0.1:8741"],
    "uptime_s": 3.0,
    "clock_ms": 0,
    "trust": {"state": "stale", "root": 1, "timestamp": 7, "snapshot": 3, "targets": 2, "reason": "origin: expired"},
    "site_repository": {"state": "fresh", "root": 1, "timestamp": 5, "snapshot": 2, "targets": 4, "reason": "why"},
    "activation": {"allowed": False, "why_not": "The fleet has no signed activation yet, so nothing is changed."},
    "gzip": {"usable": False, "why_not": "there is no /usr/bin/gzip and no /bin/gzip"},
    "peers": {"sessions": 3, "site": 2, "known": 2},
    "releases": [RELEASE],
    "transfer": {"wan_in_bytes": 1_000, "wan_metadata_bytes": 1, "lan_in_bytes": 2_000, "lan_out_bytes": 3_000},
    "store": {"chunks": 4, "bytes": 900, "quota_bytes_max": 1_000_000, "state": "ok"},
    "cache": {
        "copies": 3,
        "mine_bytes": 1_500_000,
        "office_bytes": 4_500_000,
        "releases": [
            {
                "release": "app",
                "version": version,
                "copies_min": 2,
                "copies_median": 3,
                "mine_bytes": 1,
                "office_bytes": 3,
            }
            for version in "1234567"
        ],
    },
    "reports": {"outbox": 1, "acknowledged": 5, "carried": 0, "route": "none"},
    "certificate": {
        "ends": "2027-01-01T00:00:00+00:00",
        "renewed": "2026-09-03T00:00:00+00:00",
        "days_left": 99,
        "problem": "the desk at [h]:1 is away",
    },
    "compliance": {"pass": 3, "fail": 1, "error": 0, "not_run": 0, "not_applicable": 2, "manual": 0},
    "problems": [],
}
PEER = {
    "device": "cd" * 16,
    "site": "paris",
    "role": "device",
    "address": "10.0.0.2",
    "weight": 8,
    "status": "alive",
    "session": "same site",
    "round_trip_ms": 0.2,
    "bytes_in": 1_500,
    "bytes_out": 0,
}
FINDING = {
    "policy": "base",
    "check": "app",
    "state": "fail",
    "severity": "high",
    "expected": "2",
    "actual": "1",
    "message": "too old",
}


WHY = {
    "facts": {
        "release": "app@2",
        "detail": "",
        "waiting": "",
        "rate_bytes_per_s": 0,
        "needed_bytes": 120_000,
        "decided_at_ms": 1_795_837_048_823,
    },
    "segments": [
        {
            "segment": 0,
            "size_bytes": 16_000_000,
            "source": "wan:abababab",
            "reason": "fetching",
            "alternatives": [
                {"name": "delta from 1.0", "size_bytes": 120_000, "why_not": ""},
                {"name": "delta from 0.9", "size_bytes": 300_000, "why_not": "no base"},
                {"name": "full", "size_bytes": 4_100_000, "why_not": ""},
            ],
        }
    ],
}


class Answers:
    """A daemon that says what it is told to say."""

    def __init__(self) -> None:
        self.status: dict[str, Any] = dict(STATUS)
        self.findings: list[dict[str, Any]] = [FINDING, {**FINDING, "check": "tool", "state": "pass"}]

    async def _status(self, _request: Mapping[str, Any]) -> object:
        return self.status

    async def _peers(self, _request: Mapping[str, Any]) -> object:
        return [PEER]

    async def _assess(self, _request: Mapping[str, Any]) -> object:
        return self.findings

    async def _why(self, request: Mapping[str, Any]) -> object:
        if request["name"] != "app":
            raise InputError("nothing here is called 'x'", remedy="Releases of this device: app@2.")
        return WHY

    @asynccontextmanager
    async def at(self, state: Path) -> AsyncIterator[None]:
        commands = {"status": self._status, "peers": self._peers, "assess": self._assess, "why": self._why}
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_control, state, commands)
            yield
            nursery.cancel_scope.cancel()


async def elsewhere(cli: Command, *words: object) -> Ended:
    """The command in a thread, while this one serves it."""
    return await trio.to_thread.run_sync(lambda: cli(*words))


# Asking a daemon


async def test_status_is_a_picture_for_people_and_for_programs(cli: Command, tmp_path: Path) -> None:
    answers = Answers()
    async with answers.at(tmp_path):
        shown = await elsewhere(cli, "status", "--state", tmp_path)
        assert (await elsewhere(cli, "status", "--state", tmp_path, "--json")).facts == STATUS
        answers.status["revocation"] = {
            "epoch": 4,
            "devices": 2,
            "authorities": 0,
            "sessions_refused": 7,
            "records_refused": 1,
        }
        answers.status["problems"] = ["the store is full: free space, or raise [store] quota_bytes_max in config.toml"]
        troubled = await elsewhere(cli, "status", "--state", tmp_path)
    assert shown.status == 0
    for line in (
        f"device    {'ab' * 16}  (site paris, device)",
        "trust     stale: root 1, timestamp 7, targets 2  (origin: expired)",
        "own site  fresh: root 1, timestamp 5, targets 4  (why)",
        "identity  certified until 2027-01-01, renewed on 2026-09-03  (the desk at [h]:1 is away)",
        "address   127.0.0.1:8741",
        "changes   not allowed: The fleet has no signed activation yet, so nothing is changed.",
        "transfer  WAN in 1 kB, LAN in 2 kB, LAN out 3 kB",
        (
            "cache     1.5 MB here, 4.5 MB at this site; copies of "
            f"{', '.join(f'app {n}: 2 (median 3)' for n in '12345')} and 2 more"
        ),
        "reports   1 waiting, 5 acknowledged, 0 carried for others; collector none",
        "checks    3 pass, 1 fail, 2 not_applicable",
    ):
        assert line in [row.rstrip() for row in shown.out.splitlines()]
    assert shown.out.splitlines()[-1].split(maxsplit=8) == [
        *("app", "2", "fetching", "4/10", "41.2", "MB", "7", "B"),
        "waits for [segment 3]",
    ]
    assert troubled.status == 1
    assert "raise [store] quota_bytes_max" in troubled.err
    revoked = "revoked   2 devices, 0 authorities; refused since the start: 7 connections, 1 report"
    assert revoked in [row.rstrip() for row in troubled.out.splitlines()]
    assert "revoked" not in shown.out


async def test_peers_why_and_assess(cli: Command, tmp_path: Path) -> None:
    answers = Answers()
    async with answers.at(tmp_path):
        peers = await elsewhere(cli, "peers", "--state", tmp_path)
        assert (await elsewhere(cli, "peers", "--state", tmp_path, "--json")).facts == [PEER]
        why = await elsewhere(cli, "why", "app", "--state", tmp_path)
        assert (await elsewhere(cli, "why", "app", "--state", tmp_path, "--json")).facts == WHY
        nothing = await elsewhere(cli, "why", "x", "--state", tmp_path)
        failing = await elsewhere(cli, "assess", "--state", tmp_path)
        everything = await elsewhere(cli, "assess", "--all", "--state", tmp_path)
        answers.findings.pop(0)
        passing = await elsewhere(cli, "assess", "--state", tmp_path, "--json")
    assert [row.split() for row in peers.out.splitlines()] == [
        ["DEVICE", "SITE", "ADDRESS", "STATUS", "SESSION", "IN", "OUT"],
        ["cd" * 16, "paris", "10.0.0.2", "alive", "same", "site", "1.5", "kB", "0", "B"],
    ]
    assert why.out.splitlines()[:3] == [
        "release  app@2",
        "needed   120 kB",
        "decided  2026-11-28 03:37:28 UTC",
    ], "and no line that says nothing"
    assert " ".join(why.out.split()).endswith(
        "0 16 MB wan:abababab fetching delta from 1.0: 120 kB; delta from 0.9: 300 kB (no base); full: 4.1 MB"
    )
    assert (nothing.status, nothing.err) == (
        2,
        "pcm-p2p: nothing here is called 'x'\n  Releases of this device: app@2.\n",
    )
    assert failing.status == 1
    assert "base/app" in failing.out
    assert "2 checks, 1 not shown" in failing.out
    assert "base/tool" not in failing.out
    assert "base/tool" in everything.out
    assert (passing.status, passing.facts[0]["state"]) == (0, "pass")


@pytest.mark.parametrize("words", [("status",), ("peers",), ("why", "app"), ("assess",)], ids=" ".join)
def test_without_a_daemon_each_question_ends_with_3(cli: Command, tmp_path: Path, words: tuple[str, ...]) -> None:
    ended = cli(*words, "--state", tmp_path)
    assert (ended.status, ended.out) == (3, "")
    assert "no daemon answers" in ended.err
    assert "pcm-p2p daemon --state" in ended.err


# Enrolment, and the doctor before and after


@asynccontextmanager
async def desk_of(fleet: Path) -> AsyncIterator[str]:
    desk = Desk.open(FleetFolder.open(fleet), WORDS)
    try:
        async with trio.open_nursery() as nursery:
            listeners: list[trio.SocketListener] = await nursery.start(desk.serve, "127.0.0.1", 0)
            yield f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            nursery.cancel_scope.cancel()
    finally:
        desk.close()


async def test_a_token_makes_a_device_and_is_used_up(cli: Command, fleet: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with desk_of(fleet) as address:
        made = cli("enroll", "token", "--fleet", fleet, "--desk", address, "--site", "paris", "--json")
        assert made.facts.keys() == {"token", "id", "site", "role", "uses", "approval", "expires"}
        (tmp_path / "token").write_text(made.facts["token"] + "\n")
        line = ("enroll", "join", "--token-file", tmp_path / "token")
        options = ("--label", "canary", "--root", tmp_path, "--set", "listen.port=0", "--set", "device.site=lyon")
        joined = await elsewhere(cli, *line, "--state", state, *options, "--json")
        assert joined.status == 0, joined.err
        assert joined.facts["role"] == "device"
        config = tomllib.loads((state / "config.toml").read_text())
        assert config["device"] == {"site": "lyon", "role": "device", "labels": ["canary"]}
        assert config["apply"] == {"root": str(tmp_path)}
        again = await elsewhere(cli, *line, "--state", tmp_path / "other")
        assert again.status == 5
        assert "used" in again.err
        examined = await elsewhere(cli, "doctor", "--state", state, "--json")
    assert examined.status == 1, "no daemon runs"
    assert {item["name"]: item["state"] for item in examined.facts} | {"disk": "ok"} == {
        "state folder": "ok",
        "config.toml": "ok",
        "identity": "warn",
        "disk": "ok",
        "daemon": "bad",
    }
    (identity,) = (item for item in examined.facts if item["name"] == "identity")
    assert "certified for site paris, which neighbours go by; config.toml says lyon" in identity["what"]
    async with Answers().at(state):
        examined = await elsewhere(cli, "doctor", "--state", state)
    table = {row[:13].strip(): row for row in examined.out.splitlines()}
    assert "An authority signs it: 'pcm-p2p fleet activate'." in table["activation"]
    assert "origin: expired" in table["trust"]
    assert "the desk at [h]:1 is away" in table["renewal"]
    assert "there is no /usr/bin/gzip" in table["gzip"]
    (state / "identity" / "device.key").chmod(0o644)
    examined = cli("doctor", "--state", state)
    assert "chmod 600" in examined.out


def test_the_doctor_says_how_to_begin(cli: Command, tmp_path: Path) -> None:
    examined = cli("doctor", "--state", tmp_path / "absent")
    assert examined.status == 1
    assert "pcm-p2p enroll join TOKEN" in examined.out


def test_tokens_and_joining_refuse_what_cannot_work(cli: Command, fleet: Path, tmp_path: Path) -> None:
    token = cli("enroll", "token", "--fleet", fleet, "--desk", NOWHERE)
    assert token.out.startswith("pcm1.")
    assert " for 1 device(s) of site default, until " in token.err
    line, state = token.out.strip(), ("--state", tmp_path / "state")
    rows: list[tuple[tuple[object, ...], int, str]] = [
        (("enroll", "token", "--fleet", fleet, "--desk", NOWHERE, "--expires", "soon"), 2, "is not a lifetime"),
        (("enroll", "token", "--fleet", fleet, "--desk", NOWHERE, "--role", "king"), 2, "king"),
        (("enroll", "token", "--fleet", fleet, "--desk", "nowhere"), 2, "nowhere"),
        (("enroll", "token", "--fleet", fleet, "--desk", NOWHERE, "--site", "a/b"), 2, "a/b"),
        (("enroll", "join", *state), 2, "one token is needed"),
        (("enroll", "join", line, "--token-file", "x", *state), 2, "one token is needed"),
        (("enroll", "join", "--token-file", tmp_path / "absent", *state), 2, "cannot be read"),
        (("enroll", "join", line[:-9], *state), 2, "token"),
        (("enroll", "join", line, "--set", "port", *state), 2, "is not TABLE.KEY=VALUE"),
        (("enroll", "join", line, "--set", "listen.prot=1", *state), 2, "Did you mean 'port'?"),
        (("enroll", "join", line, "--no-mdns", *state), 7, NOWHERE),
    ]
    for words, status, said in rows:
        ended = cli(*words)
        assert (ended.status, ended.out) == (status, ""), (words, ended)
        assert said in ended.err, words
    assert not (tmp_path / "state" / "config.toml").exists()


# Long-running commands: how they refuse to start


def test_servers_refuse_what_cannot_work(
    cli: Command, fleet: Path, tmp_path: Path, words: tuple[str, Path], founded: Path
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong\n")
    wrong.chmod(0o600)
    rows: list[tuple[tuple[object, ...], int, str]] = [
        (("origin", "serve", tmp_path / "absent"), 2, "is not a folder"),
        (("origin", "serve", tmp_path, "--listen", "8740"), 2, "is not HOST:PORT"),
        (("enroll", "desk", "--fleet", fleet, "--listen", "x:y", *words), 2, "is not HOST:PORT"),
        (("enroll", "desk", "--fleet", tmp_path, *words), 2, "is not a fleet folder"),
        (("enroll", "desk", "--fleet", fleet, "--passphrase-file", wrong), 5, "passphrase"),
        (("collector", "--state", tmp_path / "absent"), 5, ""),
        (("collector", "--state", tmp_path / "absent", "--listen", "x"), 2, "is not HOST:PORT"),
    ]
    for line, status, said in rows:
        ended = cli(*line)
        assert (ended.status, ended.out) == (status, ""), (line, ended)
        assert said in ended.err, line


async def test_the_collector_shows_its_table_for_the_fleet_document(cli: Command, fleet: Path, tmp_path: Path) -> None:
    state = tmp_path / "collector"
    async with desk_of(fleet) as address:
        token = cli("enroll", "token", "--fleet", fleet, "--desk", address, "--role", "collector").out.strip()
        assert (await elsewhere(cli, "enroll", "join", token, "--state", state)).status == 0
    shown = cli("collector", "--state", state, "--listen", "collector.example:8743", "--show")
    assert shown.status == 0
    (table,) = tomllib.loads(shown.out)["collector"]
    assert table["address"] == "collector.example:8743"
    document = fleet / "fleet.toml"
    document.write_text(f"{document.read_text()}\n{shown.out}")
    assert cli("fleet", "stage", "--fleet", fleet).status == 0


def test_the_daemon_becomes_a_process_without_the_command_line(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr("os.execve", lambda *become: became.append(become))
    assert cli("daemon", "--state", tmp_path, "--json-log", "--verbose").status == 0
    ((program, words, environment),) = became
    assert program == sys.executable
    assert words[1:] == ["-P", "-m", "pcm_p2p.daemon", "--state", str(tmp_path), "--json-log", "--verbose"]
    assert environment["MALLOC_ARENA_MAX"] == "1"


@pytest.mark.parametrize(
    ("text", "said", "remedy"),
    [
        ("[listen]\nprot = 1\n", "config.toml:2: prot: unknown key in listen", "Did you mean 'port'?"),
        ("[listen]\nport = 99999\n", "config.toml:2: listen.port: ", ""),
        ("[listen\n", "config.toml:1: ", ""),
        ('[origin]\nurls = ["ftp://x"]\n', "config.toml: origin.urls: 'ftp://x' is not an http", "https://"),
        ('[discovery]\nseeds = ["x"]\n', "config.toml: discovery.seeds: 'x' is not host:port", "10.0.0.5:8741"),
        (None, "config.toml", "enroll"),
    ],
)
def test_the_daemon_names_what_is_wrong_with_its_settings(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str | None,
    said: str,
    remedy: str,
) -> None:
    if text is not None:
        (tmp_path / "config.toml").write_text(text)
    monkeypatch.setattr("sys.argv", ["daemon", "--state", str(tmp_path)])
    monkeypatch.setattr("pcm_p2p.daemon.service.configure", lambda **_: None)
    assert daemon.main() == 2
    err = capsys.readouterr().err
    assert err.startswith("pcm-p2p: ")
    assert said in err
    assert remedy in err


def test_the_daemon_without_an_identity_is_told_to_enrol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.toml").write_text("")
    monkeypatch.setattr("sys.argv", ["daemon", "--state", str(tmp_path)])
    monkeypatch.setattr("pcm_p2p.daemon.service.configure", lambda **_: None)
    assert daemon.main() == 5
    assert "enroll join" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"), [('nmae = "x"\n', "scenario.toml:1: nmae: unknown key"), ("[[site]\n", "scenario.toml:1: ")]
)
def test_a_scenario_that_does_not_read_is_named_with_its_line(
    cli: Command, tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    ended = cli("lab", "run", path)
    assert ended.status == 2
    assert said in ended.err

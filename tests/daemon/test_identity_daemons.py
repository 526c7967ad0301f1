"""Identities over their life, with real daemons: renewed in time, renewed when it is late, used twice and found out."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import zstandard
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from fleet_of_processes import WORDS, Device, Fleet, noise, open_fleet
from free_port import free_port

from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.trust.identity import DeviceIdentity

NOWHERE = "127.0.0.1:9"


@pytest.fixture(autouse=True)
def _quick_disk(quick_disk: None) -> None:
    pass


def name_the_desk(fleet: Fleet) -> None:
    document = fleet.authority.path / "fleet.toml"
    document.write_text(f'{document.read_text()}\n[[desk]]\naddress = "{fleet.desk}"\n')
    fleet.authority.stage_fleet_document()


def certify_anew(fleet: Fleet, device: Device, *, days_ago: float) -> None:
    """As if the device had been enrolled so many days ago, for a year."""
    authority = FleetCA.load(fleet.authority.path / "ca", WORDS)
    der = authority.issue(device.identity.public_key, "device", now=datetime.now(UTC) - timedelta(days=days_ago))
    pem = x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM)
    (device.state / "identity" / "device.crt").write_bytes(pem)


def days_left(status: dict[str, Any]) -> int:
    return int(status["certificate"]["days_left"])


async def test_a_certificate_is_renewed_in_time_and_one_that_ended_through_a_neighbour(tmp_path: Path) -> None:
    """The laptop knows no desk that it could reach, no signed document, and nobody's session is open to it."""
    async with open_fleet(tmp_path) as fleet:
        name_the_desk(fleet)
        fleet.release(noise(1_000))
        fleet.publish()
        helper = await fleet.enrol("helper")
        laptop = await fleet.enrol("laptop", origin={"urls": []})
        certify_anew(fleet, helper, days_ago=280)
        certify_anew(fleet, laptop, days_ago=400)
        record = laptop.state / "identity" / "fleet.json"
        record.write_text(json.dumps({**json.loads(record.read_text()), "desk": NOWHERE}))
        fleet.start(helper)
        await fleet.until_applied(helper)
        await fleet.until(helper, lambda status: days_left(status) > 360)
        assert "certificate was renewed at" in helper.log
        loaded = DeviceIdentity.load(helper.state / "identity")
        assert loaded.device_id == helper.identity.device_id
        assert loaded.not_after > datetime.now(UTC) + timedelta(days=360)
        assert fleet.bystander is not None
        assert f"session with {fleet.bystander.identity.device_id.short} ended" not in helper.log, "sessions go on"
        fleet.start(laptop)
        await fleet.until_applied(laptop)
        assert f"renewed through 127.0.0.1:{helper.port}" in laptop.log
        status = await fleet.until(laptop, lambda status: days_left(status) > 360)
        assert not [problem for problem in status["problems"] if "certificate" in problem]
        relayed = (await fleet.until(helper, lambda status: status["relayed"]["opened"]))["relayed"]
        assert relayed["bytes"] > 1_000


async def test_a_state_folder_that_was_copied_is_found_out_within_seconds_and_reported(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet:
        fleet.release(noise(1_000))
        await fleet.found_collector()
        fleet.publish()
        await fleet.start_collector()
        witness = await fleet.enrol("witness")
        one = await fleet.enrol("one")
        fleet.start(witness, one)
        await fleet.until_applied(witness, one)
        copy = Device("copy", tmp_path / "copy", free_port(), one.identity)
        shutil.copytree(one.folder, copy.folder, ignore=shutil.ignore_patterns("*.sock"))
        settings = copy.state / "config.toml"
        text = settings.read_text().replace(f"port = {one.port}", f"port = {copy.port}")
        settings.write_text(text.replace(str(one.root), str(copy.root)))
        fleet.start(copy)
        for device in (one, copy):
            status = await fleet.until(device, lambda status: status["clones"]["told_by"])
            assert any("--new-identity" in problem for problem in status["problems"])
            assert "another device uses this identity" in device.log
        seen = await fleet.until(witness, lambda status: status["clones"]["seen"])
        assert seen["clones"] == {"told_by": [], "seen": [one.hex]}
        await fleet.until(
            witness, lambda status: one.hex not in [row["device"] for row in peers_with_session(fleet, witness)]
        )
        await fleet.until_archived(lambda _: one.hex in told_of_clones(fleet, witness))


def peers_with_session(fleet: Fleet, device: Device) -> list[dict[str, Any]]:
    from pcm_p2p.daemon.control import ask

    return [row for row in ask(device.state, "peers", timeout_s=5.0) if row["session"] != "none"]


def told_of_clones(fleet: Fleet, device: Device) -> set[str]:
    """What reports of ``device`` that the collector has say of clones."""
    assert fleet.collector is not None
    path = fleet.collector.state / "collector" / "archive.sqlite"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        bodies = connection.execute("SELECT body FROM report WHERE device = ?", (device.hex,)).fetchall()
    found: set[str] = set()
    for (body,) in bodies:
        found |= set(json.loads(zstandard.ZstdDecompressor().decompress(body)).get("clones", []))
    return found

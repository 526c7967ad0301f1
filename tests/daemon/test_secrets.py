"""Private keys leave their files in no log, answer, error, repr, environment or process list, in whatever notation."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from fleet_of_processes import WORDS, noise, open_fleet

from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.authority.keys import keyfile
from pcm_p2p.cli.main import run
from pcm_p2p.collector.seal_key import load_or_create_seal_key
from pcm_p2p.daemon.admission import Admission
from pcm_p2p.daemon.doctor import examine
from pcm_p2p.errors import PcmError
from pcm_p2p.trust.identity import DeviceIdentity


def notations(secret: bytes) -> Iterator[bytes]:
    """How 32 bytes could stand in a text: as they are, in hexadecimal, in base64 at each of its three phases, as Python shows
    them."""
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    for phase in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            encoded = encode(b"\0" * phase + secret)
            yield encoded[4 * phase // 3 + 2 : -4]
    yield repr(secret)[2:-1].encode()


def found_in(text: bytes, secrets: dict[str, bytes]) -> list[str]:
    return [name for name, secret in secrets.items() for one in notations(secret) if one in text]


def command(words: tuple[object, ...]) -> bytes:
    """What a command line says on both outputs."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), contextlib.suppress(SystemExit):
        run([str(word) for word in words])
    return out.getvalue().encode()


def raw_of(pem: bytes) -> bytes:
    key = load_pem_private_key(pem, None)
    return key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())


def test_the_search_finds_a_key_in_every_notation() -> None:
    secret = os.urandom(32)
    for text in (
        b"x" + secret,
        f"key={secret.hex()}".encode(),
        base64.b64encode(b"ab" + secret + b"cde"),
        base64.b64encode(b"a" + secret + b"c"),
        base64.b64encode(secret),
        repr([secret]).encode(),
    ):
        assert found_in(text, {"key": secret}) != [], text


def test_no_object_shows_its_key(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    authority = FleetCA.create(tmp_path / "ca", "1" * 32, "words", now=now, preset="lab")
    identity = DeviceIdentity.create(tmp_path / "identity", authority, now=now)
    key = keyfile.load(tmp_path / "ca" / "ca.key", "words")
    seal_key = load_or_create_seal_key(tmp_path / "seal.key")
    secrets = {
        "device.key": raw_of((tmp_path / "identity" / "device.key").read_bytes()),
        "ca.key": key.private_key.private_bytes_raw(),
        "seal.key": bytes(seal_key),
    }

    class Nothing:
        view = None

        def wall_clock(self) -> datetime:
            return now

    admission = Admission(identity, Nothing(), tmp_path / "denied.json")
    for thing in (identity, authority, key, key.signer(), admission, admission.security):
        assert found_in(f"{thing!r} {thing}".encode(), secrets) == [], thing
    # str() of PyNaCl's keys is their bytes, which is why nothing of ours holds one in a field that is shown; repr() is safe.
    assert found_in(repr(seal_key).encode(), secrets) == []


@pytest.mark.parametrize("damage", ["truncated", "another label", "a byte more", "two in one"])
def test_no_error_about_a_damaged_key_file_quotes_it(tmp_path: Path, damage: str) -> None:
    now = datetime.now(UTC)
    identity = DeviceIdentity.create(tmp_path / "identity", FleetCA.in_memory("1" * 32, now=now), now=now)
    path = identity.folder / "device.key"
    pem = path.read_bytes()
    secret = raw_of(pem)
    path.write_bytes(
        {
            "truncated": pem[: len(pem) // 2],
            "another label": pem.replace(b"PRIVATE", b"PUBLIC"),
            "a byte more": pem.replace(b"MC4", b"MC5"),
            "two in one": pem[:-30] + pem,
        }[damage]
    )
    seal = tmp_path / "seal.key"
    seal_secret = bytes(load_or_create_seal_key(seal))
    seal.write_text(seal_secret.hex() + "zz")
    said = ""
    for load in (lambda: DeviceIdentity.load(identity.folder), lambda: load_or_create_seal_key(seal)):
        try:
            load()
        except PcmError as error:
            said += f"{error!r} {error} {error.remedy} " + "".join(traceback.format_exception(error))
    assert "device.key" in said
    assert "seal.key" in said
    assert found_in(said.encode(), {"device.key": secret, "seal.key": seal_secret}) == []
    assert pem.splitlines()[1] not in said.encode()


async def test_what_running_services_and_commands_say_holds_no_key(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, bystander=False) as fleet:
        await fleet.found_collector()
        one = await fleet.enrol("one")
        fleet.release(noise(50_000))
        fleet.publish()
        await fleet.start_collector()
        fleet.start(one)
        await fleet.until_applied(one)
        await fleet.until_archived(bool)
        assert fleet.collector is not None
        collector = fleet.collector
        secrets = {
            "device key": raw_of((one.state / "identity" / "device.key").read_bytes()),
            "collector's device key": raw_of((collector.state / "identity" / "device.key").read_bytes()),
            "seal key": bytes.fromhex((collector.state / "collector" / "seal.key").read_text().strip()),
        }
        for path in (*(fleet.authority.path / "keys").glob("*.key"), fleet.authority.path / "ca" / "ca.key"):
            secrets[path.name] = keyfile.load(path, WORDS).private_key.private_bytes_raw()
        said: dict[str, bytes] = {}
        for device in (one, collector):
            assert device.process is not None
            said[f"log of {device.name}"] = device.process.log.read_bytes()
            process = Path("/proc") / str(device.process.pid)
            for name in ("cmdline", "environ"):
                said[f"{name} of {device.name}"] = (process / name).read_bytes()
        said["doctor"] = repr(await trio.to_thread.run_sync(examine, one.state)).encode()
        for words in (
            ("status", "--state", one.state, "--json"),
            ("status", "--state", collector.state),  # no daemon answers there: an error
            ("key", "show", fleet.authority.path / "keys" / "targets-admin.key"),
            ("collector", "--show", "--state", collector.state),
        ):
            said[" ".join(map(str, words[:2]))] = await trio.to_thread.run_sync(command, words)
        for who, text in said.items():
            assert text or who.startswith("log of"), who
            assert found_in(text, secrets) == [], who
        # The files that others may read hold none either.
        for path in sorted(one.state.rglob("*")):
            if path.is_file() and path.stat().st_mode & 0o077:
                assert found_in(path.read_bytes(), secrets) == [], path

"""Enrolment over real loopback TLS: who gets in, who does not, and that an interruption anywhere costs nothing."""

from __future__ import annotations

import hashlib
import shutil
import socket
import ssl
import stat
import tomllib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tuf.api.metadata import Metadata, Root

from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.config import load_config
from pcm_p2p.enrolment import desk as desk_module
from pcm_p2p.enrolment import errand, introduction
from pcm_p2p.enrolment.desk import Desk
from pcm_p2p.enrolment.first_settings import settings_text
from pcm_p2p.enrolment.introduction import (
    Request,
    decode_reply_untrusted,
    decode_request_untrusted,
    mac,
    statement,
)
from pcm_p2p.enrolment.invitation import create_token
from pcm_p2p.enrolment.join import Joined, join
from pcm_p2p.enrolment.token import LINE_LENGTH_MAX, Token, decode_token_untrusted
from pcm_p2p.enrolment.token_folder import TokenFolder
from pcm_p2p.errors import InputError, StorageError, TransferError, TrustError, UntrustedBytes
from pcm_p2p.ids import DeviceId
from pcm_p2p.trust import identity
from pcm_p2p.trust.identity import DeviceIdentity, load_or_create_key, separated
from pcm_p2p.wire.doorkeeper import Doorkeeper

WORDS = "words"
NOWHERE = "127.0.0.1:9"


def clock() -> datetime:
    """TLS reads the machine's clock, therefore so do these tests."""
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("enrolment") / "fleet"
    FleetFolder.init(path, name="acme", passphrase=WORDS, preset="lab", wall_clock=clock)
    return path


@pytest.fixture
def fleet(made_once: Path, tmp_path: Path) -> FleetFolder:
    shutil.copytree(made_once, tmp_path / "fleet")
    return FleetFolder.open(tmp_path / "fleet", wall_clock=clock)


@asynccontextmanager
async def desk_at_work(fleet: FleetFolder) -> AsyncIterator[str]:
    """The address of an open desk."""
    desk = Desk.open(fleet, WORDS)
    try:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                listeners: list[trio.SocketListener] = await nursery.start(desk.serve, "127.0.0.1", 0)
                yield f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
                nursery.cancel_scope.cancel()
    finally:
        desk.close()


@asynccontextmanager
async def impostor(context: ssl.SSLContext | None, say: bytes = b"") -> AsyncIterator[str]:
    """The address of something that is not the desk: with ``context`` it does TLS and says ``say``; without, it keeps silent."""

    async def serve(tcp: trio.SocketStream) -> None:
        if context is None:
            await trio.sleep_forever()
        stream = trio.SSLStream(tcp, context, server_side=True, https_compatible=True)
        try:
            await stream.do_handshake()
            await stream.send_all(say)
            await stream.receive_some()
        except trio.BrokenResourceError:
            pass
        await trio.aclose_forcefully(stream)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            listeners: list[trio.SocketListener] = await nursery.start(trio.serve_tcp, serve, 0)
            yield f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            nursery.cancel_scope.cancel()


async def joins(state: Path, token: Token, **overrides: dict[str, object]) -> Joined:
    return await join(state, token.line(), wall_clock=clock, overrides=overrides)


def spent(fleet: FleetFolder, token: Token) -> tuple[str, ...]:
    record = TokenFolder(fleet.path / "enrolment" / "tokens").get(token.token_id)
    assert record is not None
    return record.spent


def assert_not_enrolled(state: Path) -> None:
    with pytest.raises(TrustError):
        DeviceIdentity.load(state / "identity")
    assert not (state / "identity" / "device.crt").exists()
    assert not (state / "config.toml").exists()


async def test_a_device_with_a_token_becomes_a_member(fleet: FleetFolder, tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with desk_at_work(fleet) as address:
        token = create_token(
            fleet, desk=address, site="oslo", role="relay", origins=("http://o.example/t",), seeds=("s.example:8741",)
        )
        joined = await joins(state, token, device={"labels": ["lab", "east"]}, listen={"port": 0})
    loaded = DeviceIdentity.load(state / "identity")
    assert loaded.device_id == joined.identity.device_id
    assert (loaded.role, loaded.fleet, loaded.record.site, loaded.record.name) == (
        "relay",
        fleet.fleet_id,
        "oslo",
        "acme",
    )
    assert loaded.root_json == fleet.root_bytes(1)
    config = load_config(joined.config)
    assert (config.device.site, config.device.role, config.listen.port) == ("oslo", "relay", 0)
    assert (config.origin.urls, config.discovery.seeds) == (("http://o.example/t",), ("s.example:8741",))
    assert stat.S_IMODE((state / "identity").stat().st_mode) == 0o700
    assert spent(fleet, token) == (loaded.public_key.hex(),)


async def test_a_token_is_worth_as_many_devices_as_it_says(fleet: FleetFolder, tmp_path: Path) -> None:
    async with desk_at_work(fleet) as address:
        token = create_token(fleet, desk=address, uses=2)
        ids = {(await joins(tmp_path / name, token)).identity.device_id for name in ("a", "b")}
        assert len(ids) == 2
        with pytest.raises(TrustError, match="used as often as it may be") as refused:
            await joins(tmp_path / "c", token)
    assert refused.value.remedy
    assert_not_enrolled(tmp_path / "c")


async def test_a_use_is_remembered_by_a_desk_that_was_restarted(fleet: FleetFolder, tmp_path: Path) -> None:
    async with desk_at_work(fleet) as address:
        token = create_token(fleet, desk=address)
        await joins(tmp_path / "a", token)
    async with desk_at_work(fleet) as address:
        with pytest.raises(TrustError, match="used"):
            await joins(tmp_path / "b", msgspec.structs.replace(token, desk=address))


async def test_devices_that_come_at_the_same_time_do_not_share_a_use(fleet: FleetFolder, tmp_path: Path) -> None:
    outcomes: list[str] = []

    async def attempt(name: str) -> None:
        try:
            await joins(tmp_path / name, token)
            outcomes.append("in")
        except TrustError:
            outcomes.append("out")

    async with desk_at_work(fleet) as address:
        token = create_token(fleet, desk=address, uses=3)
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(attempt, f"d{number}")
    assert sorted(outcomes) == ["in"] * 3 + ["out"] * 5


class Killed(BaseException):
    """Stands for a SIGKILL: nothing catches it."""


@pytest.mark.parametrize("write", range(6))
async def test_a_join_killed_at_any_write_is_finished_by_the_same_command(
    fleet: FleetFolder, tmp_path: Path, write: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes on the device, in order: key, candidate, config.toml, ca.crt, root.json, fleet.json, device.crt."""
    state, real, count = tmp_path / "state", identity.write_atomic, 0

    def failing(path: Path, data: bytes, *, mode: int = 0o644) -> None:
        nonlocal count
        if path.is_relative_to(state) and not path.name.endswith(".candidate"):
            count += 1
            if count > write:
                raise Killed
        real(path, data, mode=mode)

    async with desk_at_work(fleet) as address:
        token = create_token(fleet, desk=address)
        with monkeypatch.context() as patched:
            patched.setattr(identity, "write_atomic", failing)
            patched.setattr("pcm_p2p.enrolment.first_settings.write_atomic", failing)
            with pytest.raises(Killed):
                await joins(state, token)
        with pytest.raises(TrustError, match="not enrolled"):
            DeviceIdentity.load(state / "identity")
        joined = await joins(state, token)
    assert spent(fleet, token) == (joined.identity.public_key.hex(),)
    assert load_config(joined.config).device.site == "default"


async def test_a_reply_that_was_lost_on_the_way_is_asked_for_again(fleet: FleetFolder, tmp_path: Path) -> None:
    token, key = create_token(fleet, desk=NOWHERE), load_or_create_key(tmp_path / "state" / "identity")
    desk = Desk.open(fleet, WORDS)
    assert desk.answer(request_for(token, key)).reason == ""
    desk.close()
    async with desk_at_work(fleet) as address:
        joined = await joins(tmp_path / "state", msgspec.structs.replace(token, desk=address))
    assert spent(fleet, token) == (joined.identity.public_key.hex(),)


def request_for(token: Token, key: Ed25519PrivateKey, *, prover: Ed25519PrivateKey | None = None) -> bytes:
    public_key = key.public_key().public_bytes_raw()
    stated = introduction.statement(token.token_id, token.fleet, public_key)
    proof = (prover or key).sign(separated(introduction.PROOF_DOMAIN, stated))
    return msgspec.msgpack.encode(
        Request(token.token_id, public_key, proof, introduction.mac(token.secret, stated, proof))
    )


def test_who_does_not_hold_the_key_gets_no_certificate_for_it(fleet: FleetFolder) -> None:
    token, desk = create_token(fleet, desk=NOWHERE), Desk.open(fleet, WORDS)
    data = request_for(token, Ed25519PrivateKey.generate(), prover=Ed25519PrivateKey.generate())
    assert desk.answer(data).reason == "wrong"
    desk.close()
    assert spent(fleet, token) == ()


def test_a_use_that_cannot_be_written_down_is_not_granted(fleet: FleetFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    token, desk = create_token(fleet, desk=NOWHERE), Desk.open(fleet, WORDS)
    data = request_for(token, Ed25519PrivateKey.generate())
    with monkeypatch.context() as patched:
        patched.setattr(TokenFolder, "put", full)
        reply = desk.answer(data)
    assert (reply.reason, reply.certificate_der) == ("failed", b"")
    assert desk.answer(data).reason == ""
    desk.close()


REFUSED: list[tuple[str, Callable[[Token], Token], str]] = [
    ("wrong secret", lambda token: msgspec.structs.replace(token, secret=bytes(16)), "secret is not the right one"),
    ("unknown", lambda token: msgspec.structs.replace(token, token_id=bytes(16)), "does not know this token"),
    ("wrong root pin", lambda token: msgspec.structs.replace(token, root_sha256=bytes(32)), "another root"),
    ("other fleet", lambda token: msgspec.structs.replace(token, fleet="0" * 32), "not the desk of this fleet"),
    ("other role", lambda token: msgspec.structs.replace(token, role="collector"), "another key or role"),
    (
        "other authority",
        lambda token: msgspec.structs.replace(token, authority_der=FleetCA.in_memory(token.fleet, now=clock()).der),
        "not the desk that this token is for",
    ),
]


@pytest.mark.parametrize(("change", "reason"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
async def test_a_token_that_was_changed_leads_nowhere(
    fleet: FleetFolder, tmp_path: Path, change: Callable[[Token], Token], reason: str
) -> None:
    async with desk_at_work(fleet) as address:
        token = create_token(fleet, desk=address)
        with pytest.raises(TrustError, match=reason) as refused:
            await joins(tmp_path / "state", change(token))
    assert refused.value.remedy
    assert_not_enrolled(tmp_path / "state")


async def test_a_token_that_expired_is_refused_by_device_and_desk(fleet: FleetFolder, tmp_path: Path) -> None:
    async with desk_at_work(fleet) as address:
        token = create_token(fleet, desk=address, lifetime=timedelta(hours=1))
        with pytest.raises(TrustError, match="by this device's clock"):
            await join(tmp_path / "a", token.line(), wall_clock=lambda: clock() + timedelta(hours=2))
        fleet.wall_clock = lambda: clock() + timedelta(hours=2)
        with pytest.raises(TrustError, match="says that this token has expired"):
            await joins(tmp_path / "b", token)
    assert spent(fleet, token) == ()


async def test_a_device_whose_clock_is_years_behind_is_told_so(fleet: FleetFolder, tmp_path: Path) -> None:
    async with desk_at_work(fleet) as address:
        token = create_token(fleet, desk=address)
        with pytest.raises(TrustError, match="1971-01-01") as refused:
            await join(tmp_path / "a", token.line(), wall_clock=lambda: datetime(1971, 1, 1, tzinfo=UTC))
    assert "Set the clock" in refused.value.remedy
    assert spent(fleet, token) == ()


async def test_a_desk_whose_certificate_is_of_the_future_blames_the_clock(fleet: FleetFolder, tmp_path: Path) -> None:
    fleet.wall_clock = lambda: clock() + timedelta(days=30)
    async with desk_at_work(fleet) as address:
        with pytest.raises(TrustError, match="clock"):
            await joins(tmp_path / "a", create_token(fleet, desk=address))


async def test_another_member_cannot_play_the_desk(fleet: FleetFolder, tmp_path: Path) -> None:
    member = DeviceIdentity.create(tmp_path / "member", FleetCA.load(fleet.path / "ca", WORDS), now=clock())
    async with impostor(desk_module._desk_context(member.folder)) as address:
        with pytest.raises(TrustError, match="but a device of fleet"):
            await joins(tmp_path / "state", create_token(fleet, desk=address))


async def test_a_foreign_authority_of_the_same_name_cannot_play_the_desk(fleet: FleetFolder, tmp_path: Path) -> None:
    foreign = FleetCA.in_memory(fleet.fleet_id, now=clock())
    desk = DeviceIdentity.create(tmp_path / "desk", foreign, "desk", now=clock())
    async with impostor(desk_module._desk_context(desk.folder)) as address:
        with pytest.raises(TrustError, match="not the desk that this token is for"):
            await joins(tmp_path / "state", create_token(fleet, desk=address))


@pytest.mark.parametrize(
    "said",
    [b"\xff\xff\xff\xff", b"\x05\x00\x00\x00abcde", b"\x02\x00\x00\x00\x91\xc1", (0).to_bytes(4, "little")],
    ids=["huge", "noise", "bad MessagePack", "nothing"],
)
async def test_a_desk_that_talks_nonsense_gave_no_answer(fleet: FleetFolder, tmp_path: Path, said: bytes) -> None:
    authority = FleetCA.load(fleet.path / "ca", WORDS)
    desk = DeviceIdentity.create(tmp_path / "desk", authority, "desk", now=clock())
    async with impostor(desk_module._desk_context(desk.folder), said) as address:
        with pytest.raises(TransferError, match="gave no answer"):
            await joins(tmp_path / "state", create_token(fleet, desk=address))


async def test_a_silent_desk_is_given_up(fleet: FleetFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errand, "EXCHANGE_TIMEOUT_S", 0.2)
    async with impostor(None) as address:
        with pytest.raises(TransferError, match="did not answer"):
            await joins(tmp_path / "state", create_token(fleet, desk=address))


async def test_a_desk_that_is_not_there_is_named(fleet: FleetFolder, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(TransferError, match=address) as refused:
            await joins(tmp_path / "state", create_token(fleet, desk=address))
    assert "enroll desk" in refused.value.remedy


@pytest.mark.parametrize("address", ["desk..example:1", "x" * 70 + ":1", "%:1"])
async def test_a_desk_with_a_name_that_cannot_be_is_named(fleet: FleetFolder, tmp_path: Path, address: str) -> None:
    with pytest.raises(TransferError, match="cannot be reached"):
        await joins(tmp_path / "state", create_token(fleet, desk=address))


def nobody() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def test_noise_at_the_desk_is_answered_or_closed_and_the_desk_goes_on(fleet: FleetFolder, tmp_path: Path) -> None:
    async with desk_at_work(fleet) as address:
        port = int(address.rpartition(":")[2])
        for said, heard in [
            (b"\x04\x00\x00\x00\xff\xff\xff\xff", "malformed"),
            (b"\x00\x00\x00\x00", "malformed"),
            (b"\xff\xff\xff\x7f", None),
            (b"\x01", None),
        ]:
            stream = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", port), nobody(), https_compatible=True)
            await stream.send_all(said)
            if said == b"\x01":
                await stream.aclose()
                continue
            if heard is None:
                with pytest.raises((TransferError, trio.BrokenResourceError)):
                    await errand.receive(stream, 4_096)
            else:
                assert decode_reply_untrusted(await errand.receive(stream, 4_096)).reason == heard
            await trio.aclose_forcefully(stream)
        tcp = await trio.open_tcp_stream("127.0.0.1", port)
        await tcp.send_all(b"GET / HTTP/1.0\r\n\r\n")
        await tcp.aclose()
        assert (await joins(tmp_path / "state", create_token(fleet, desk=address))).identity.role == "device"


async def test_one_source_cannot_keep_the_desk_busy(
    fleet: FleetFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections that say nothing: so many of one address and no more, and each for so long and no longer."""
    monkeypatch.setattr(desk_module, "Doorkeeper", partial(Doorkeeper, loopback_is_exempt=False))
    monkeypatch.setattr(desk_module, "EXCHANGE_TIMEOUT_S", 1.0)
    async with desk_at_work(fleet) as address:
        port = int(address.rpartition(":")[2])
        silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(desk_module.EXCHANGES_EACH_MAX)]
        one_more = await trio.open_tcp_stream("127.0.0.1", port)
        assert await one_more.receive_some(1) == b"", "closed at once"
        for stream in silent:
            assert await stream.receive_some(1) == b"", "closed at the deadline"
        for stream in (*silent, one_more):
            await stream.aclose()
        monkeypatch.setattr(desk_module, "EXCHANGE_TIMEOUT_S", 60.0)
        joined = await joins(tmp_path / "state", create_token(fleet, desk=address))
    assert joined.identity.role == "device"


async def test_the_desk_does_not_speak_tls_1_2(fleet: FleetFolder) -> None:
    async with desk_at_work(fleet) as address:
        context = nobody()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        tcp = await trio.open_tcp_stream("127.0.0.1", int(address.rpartition(":")[2]))
        stream = trio.SSLStream(tcp, context, https_compatible=True)
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()
        await trio.aclose_forcefully(stream)


def test_one_desk_at_a_time(fleet: FleetFolder) -> None:
    first = Desk.open(fleet, WORDS)
    with pytest.raises(TrustError, match="another desk"):
        Desk.open(fleet, WORDS)
    first.close()
    with pytest.raises(TrustError, match="passphrase"):
        Desk.open(fleet, "other words")
    Desk.open(fleet, WORDS).close()


async def test_a_token_brings_the_root_it_pins_though_there_is_a_newer_one(fleet: FleetFolder, tmp_path: Path) -> None:
    token = create_token(fleet, desk=NOWHERE)
    newer = Metadata[Root].from_bytes(fleet.root_bytes(1))
    newer.signed.version = 2
    newer.to_file(str(fleet.metadata / "2.root.json"))
    async with desk_at_work(fleet) as address:
        joined = await joins(tmp_path / "state", msgspec.structs.replace(token, desk=address))
    assert hashlib.sha256(joined.identity.root_json).digest() == token.root_sha256


async def test_a_member_renews_its_certificate_and_keeps_its_name_and_settings(
    fleet: FleetFolder, tmp_path: Path
) -> None:
    async with desk_at_work(fleet) as address:
        before = await joins(tmp_path / "state", create_token(fleet, desk=address), apply={"root": "/srv"})
        after = await joins(tmp_path / "state", create_token(fleet, desk=address, site="bergen"))
    assert after.identity.device_id == before.identity.device_id
    assert after.identity.certificate_der != before.identity.certificate_der
    config = load_config(after.config)
    assert (config.apply.root, config.device.site) == ("/srv", "default")


async def test_a_member_of_another_fleet_is_not_taken_over(fleet: FleetFolder, tmp_path: Path) -> None:
    other = FleetCA.in_memory("cd" * 16, now=clock())
    member = DeviceIdentity.create(tmp_path / "state" / "identity", other, now=clock())
    with pytest.raises(InputError, match="another fleet"):
        await joins(tmp_path / "state", create_token(fleet, desk=NOWHERE))
    assert DeviceIdentity.load(member.folder).certificate_der == member.certificate_der


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"listen": {"prot": 1}}, "prot"),
        ({"listen": {"port": 70_000}}, "port"),
        ({"device": {"site": "a/b"}}, "site"),
        ({"device": {"labels": None}}, "labels"),
        ({"discovery": {"seeds": ["nowhere"]}}, "seeds"),
    ],
)
async def test_a_wrong_setting_is_named_before_the_desk_is_asked(
    fleet: FleetFolder, tmp_path: Path, overrides: dict[str, dict[str, object]], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        await joins(tmp_path / "state", create_token(fleet, desk=NOWHERE), **overrides)
    assert_not_enrolled(tmp_path / "state")
    assert not list((tmp_path / "state").glob(".config*"))


async def test_a_state_folder_that_cannot_be_made_is_a_matter_of_storage(fleet: FleetFolder, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file"):
        await joins(tmp_path / "file" / "state", create_token(fleet, desk=NOWHERE))


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
        | st.integers(-(1 << 62), 1 << 62)
        | st.booleans()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.lists(st.integers(0, 9) | st.text('ab"\\\n\x7f\x00é😀', max_size=5), max_size=3),
        max_size=4,
    )
)
def test_settings_are_written_as_they_were_given(values: dict[str, object]) -> None:
    token = Token("d:1", bytes(16), bytes(16), bytes(32), b"x", "ab" * 16, "acme", 0, "device", "oslo", ("u",), ())
    read = tomllib.loads(settings_text(token, {"table": values}))
    assert read["table"] == values
    assert read["device"] == {"site": "oslo", "role": "device"}


def test_a_fleet_whose_name_has_line_breaks_writes_no_settings_with_them() -> None:
    name = "acme\n[apply]\nroot = '/evil'\r"
    token = Token("d:1", bytes(16), bytes(16), bytes(32), b"x", "ab" * 16, name, 0, "device", "oslo", (), ())
    assert "apply" not in tomllib.loads(settings_text(token, {}))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"desk": "nowhere"}, "desk"),
        ({"desk": "h:0"}, "desk"),
        ({"desk": "h:99999"}, "desk"),
        ({"uses": 0}, "uses"),
        ({"lifetime": timedelta(0)}, "expires"),
        ({"lifetime": timedelta(days=4_000_000)}, "expires"),
        ({"site": "../x"}, "site"),
        ({"role": "desk"}, "role"),
        ({"origins": ("ftp://x",)}, "origin"),
        ({"seeds": ("x",)}, "seed"),
        ({"origins": tuple(f"http://{n}.example/" for n in range(33))}, "too many"),
    ],
)
def test_a_token_is_not_made_of_options_that_no_device_could_use(
    fleet: FleetFolder, options: dict[str, object], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        create_token(fleet, **{"desk": "h:1", **options})  # type: ignore[arg-type]


def test_tokens_are_secrets_on_disk_and_in_logs(fleet: FleetFolder) -> None:
    token = create_token(fleet, desk="[::1]:8742")
    (record,) = (fleet.path / "enrolment" / "tokens").iterdir()
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    assert token.secret.hex() not in repr(token)
    assert decode_token_untrusted(token.line()) == token
    assert len(token.line()) < 1_000


@pytest.mark.parametrize("line", ["", "pcm1.", "hello", "pcm2.AAAA", "pcm1.!!!!", "pcm1." + "A" * LINE_LENGTH_MAX])
async def test_what_is_no_token_is_the_users_mistake(tmp_path: Path, line: str) -> None:
    with pytest.raises(InputError, match="token") as refused:
        await join(tmp_path / "state", line, wall_clock=clock)
    assert "whole line" in refused.value.remedy
    assert not (tmp_path / "state").exists()


def test_a_token_cut_off_anywhere_is_no_token(fleet: FleetFolder) -> None:
    line = create_token(fleet, desk="h:1").line()
    for length in range(len(line)):
        with pytest.raises(UntrustedBytes):
            decode_token_untrusted(line[:length])


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=120) | st.binary(max_size=90).map(lambda data: "pcm1." + data.hex()))
@example("pcm1.\x00")
@example("pcm1.é")
@example("pcm1.\ud800")
def test_noise_for_a_token_is_refused_as_untrusted(line: str) -> None:
    with pytest.raises(UntrustedBytes):
        decode_token_untrusted(line)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
@example(b"\x94\xc4\x01a\xa1\xff")
@example(b"\x91\xa1\xff")
@example(b"\x91" * 4_000)
def test_noise_for_a_request_or_a_reply_is_refused_as_untrusted(data: bytes) -> None:
    with pytest.raises(UntrustedBytes):
        decode_request_untrusted(data)
    try:
        reply = decode_reply_untrusted(data)
    except UntrustedBytes:
        return
    assert len(reply.reason) <= 64


@pytest.mark.parametrize("number", [0, 1, 2**255 - 20, 2**255 - 18, 1 | 1 << 255], ids=hex)
def test_a_key_that_nobody_can_hold_is_not_certified(fleet: FleetFolder, number: int) -> None:
    """Points of small order: what is no signature of anybody verifies under them, in the library and in TLS."""
    public_key = number.to_bytes(32, "little")
    token = create_token(fleet, desk=NOWHERE)
    stated = statement(token.token_id, token.fleet, public_key)
    desk = Desk.open(fleet, WORDS)
    proof = (1).to_bytes(32, "little") + bytes(32)
    request = Request(token.token_id, public_key, proof, mac(token.secret, stated, proof))
    assert desk.answer(msgspec.msgpack.encode(request)).reason == "wrong"
    desk.close()


def test_a_device_is_named_by_its_key_and_not_by_its_wish(fleet: FleetFolder) -> None:
    desk, key = Desk.open(fleet, WORDS), Ed25519PrivateKey.generate()
    reply = desk.answer(request_for(create_token(fleet, desk=NOWHERE, role="collector", site="oslo"), key))
    desk.close()
    named = identity.peer_identity_untrusted(reply.certificate_der)
    assert named.device_id == DeviceId.of_public_key(key.public_key().public_bytes_raw())
    assert (named.role, named.fleet, named.site) == ("collector", fleet.fleet_id, "oslo")

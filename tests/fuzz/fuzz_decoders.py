"""Every decoder that eats foreign bytes, with samples made by the encoders of the product.

``DECODERS`` is what the long run goes through; ``EXEMPT`` names the functions ending in ``_untrusted`` that need no row of their
own, and why. A test keeps both complete.
"""

from __future__ import annotations

import contextlib
import io
import json
import lzma
import random
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fuzz_floor import floor_samples, signed_floor, signed_floor_samples
from fuzz_tuf import (
    carried,
    carried_samples,
    proposed,
    proposed_samples,
    signed,
    signed_samples,
    site_root,
    site_root_samples,
    stored,
    stored_samples,
)
from fuzz_verdict import Decoder
from nacl.public import PrivateKey
from repository_simulator import small_manifest
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]

from pcm_p2p.apply import dialogue
from pcm_p2p.apply.providers.archive_members import unpack_untrusted
from pcm_p2p.apply.receipt import Outcome
from pcm_p2p.authority.audit import log as audit_log
from pcm_p2p.authority.carry.bundle import (
    MAGIC,
    BundledDocument,
    BundleDocument,
    BundledTarget,
    body_length_untrusted,
    decode_bundle_untrusted,
)
from pcm_p2p.authority.carry.pin import decode_pin_untrusted
from pcm_p2p.authority.carry.signature_file import DetachedSignature, SignatureFile, decode_signature_file_untrusted
from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.authority.fleet_floor import decode_floor_untrusted
from pcm_p2p.authority.keys import keyfile, public_key
from pcm_p2p.authority.keys.key_test import decode_key_tests_untrusted
from pcm_p2p.collector.console.events import seen_untrusted
from pcm_p2p.collector.console.login import basic_password_untrusted, form_untrusted, next_untrusted
from pcm_p2p.collector.console.state import number_untrusted
from pcm_p2p.compliance.acknowledgement import AckEntry, Level, open_ack_untrusted, seal_ack
from pcm_p2p.compliance.finding import Finding
from pcm_p2p.compliance.handover import decode_taken_untrusted, encode_taken
from pcm_p2p.compliance.record import RecordKey, SealKey, covered, open_record_untrusted, seal_record, unseal_untrusted
from pcm_p2p.compliance.report import SCHEMA, ReportBody, pack
from pcm_p2p.compliance.report import unpack_untrusted as unpack_report_untrusted
from pcm_p2p.content.chunk import Chunk, open_sealed_untrusted, seal
from pcm_p2p.content.decoding.job import decode_blob_untrusted
from pcm_p2p.content.delta.blob import encode_delta, encode_smallest_delta
from pcm_p2p.content.forms.members import members
from pcm_p2p.content.forms.stored_form import detect, write_stored
from pcm_p2p.content.manifest import decode_untrusted as decode_manifest_untrusted
from pcm_p2p.content.pieces import FilePiece, decode_layout_untrusted, encode_layout
from pcm_p2p.content.segment import encode_full
from pcm_p2p.daemon.control import _answer
from pcm_p2p.enrolment.device_code import device_code, device_code_untrusted
from pcm_p2p.enrolment.introduction import Renewal, Reply, Request, decode_reply_untrusted, decode_request_untrusted
from pcm_p2p.enrolment.token import Token, decode_token_untrusted, endpoint_untrusted
from pcm_p2p.errors import InputError, UntrustedBytes
from pcm_p2p.gossip.discovery import SERVICE, candidates_untrusted, is_nearby
from pcm_p2p.gossip.roster_file import Remembered
from pcm_p2p.gossip.roster_file import decode_untrusted as decode_roster_untrusted
from pcm_p2p.ids import DeviceId
from pcm_p2p.policy.activation import decode_activation, why_inactive
from pcm_p2p.policy.allowance import decode_allowances, why_beyond
from pcm_p2p.policy.desired import decide
from pcm_p2p.policy.document import decode_policy
from pcm_p2p.policy.precedence import may_meet, why_looser
from pcm_p2p.policy.selector import DeviceFacts, sentence
from pcm_p2p.swarm.conduct import Conduct
from pcm_p2p.swarm.events import PeerUp
from pcm_p2p.swarm.exchange import Exchange
from pcm_p2p.swarm.keeping import read_handover_untrusted
from pcm_p2p.swarm.origin import retry_after_untrusted
from pcm_p2p.swarm.picker import Budget
from pcm_p2p.swarm.turns import Slots
from pcm_p2p.trust.deny import DenyList, decode_deny_untrusted
from pcm_p2p.trust.fleet_document import decode_fleet_document, starting_document
from pcm_p2p.trust.halt import WHOLE_FLEET, InForce, decode_halt_untrusted, decode_lifted_untrusted
from pcm_p2p.trust.identity import authorities_untrusted, verified_identity_untrusted
from pcm_p2p.trust.index import Index, decode_index_untrusted
from pcm_p2p.wire import messages
from pcm_p2p.wire.framing import FrameDecoder, decode_message_untrusted, encode_bulk, encode_control
from pcm_p2p.wire.session import Session, SessionClosed

FLEET = "ab" * 16
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOW_MS = int(NOW.timestamp()) * 1_000
DEVICE_KEY = Ed25519PrivateKey.from_private_bytes(b"d" * 32)
PUBLIC = DEVICE_KEY.public_key().public_bytes_raw()
DEVICE = DeviceId.of_public_key(PUBLIC)
COLLECTOR_KEY = PrivateKey(b"c" * 32)
MANIFEST, _ = small_manifest()
ID = bytes(MANIFEST.manifest_id)
ORIGIN_OF_TIME = bytes(16)
FACTS = DeviceFacts(DEVICE, "berlin", ("canary",))


def sign(domain: bytes, data: bytes) -> bytes:
    return DEVICE_KEY.sign(covered(domain, data))


@cache
def authority() -> FleetCA:
    return FleetCA.in_memory(FLEET, now=NOW)


@cache
def certificate() -> bytes:
    return authority().issue(PUBLIC, "device", now=NOW)


# Wire

HELLO = messages.Hello(messages.PROTOCOL, FLEET, "berlin", "device", 4_711, 7, 8, "pcm_p2p/0", 16, b"i" * 16)
ROSTER_ENTRY = messages.RosterEntry(bytes(DEVICE), "10.0.0.7", 4_711, 7, 1, "berlin", 8)
MESSAGES: tuple[messages.Message, ...] = (
    HELLO,
    messages.Ping(3),
    messages.Roster((ROSTER_ENTRY,)),
    messages.Digest(1, 2, 3, 4, b"t" * 32),
    messages.Holdings(ID, 1, b"\x01"),
    messages.Holdings(ID, 1, b"\x01", keeps=True, lacks_gzip=True),
    messages.Have(ID, (0,)),
    messages.Drop(ID, (0,)),
    messages.Claim(ID, bytes(DEVICE), 1, 3_000, (messages.ClaimedSegment(0, 10),)),
    messages.SegmentFailed(ID, 0, "404", 1_000),
    messages.Handover(ID, (0,)),
    messages.ChunkGet(1, b"c" * 32),
    messages.FileGet(2, "metadata/timestamp.json"),
    messages.RecordsPut(3, (b"record",)),
    messages.AcksPut((b"ack",)),
    messages.Refused(1, "missing"),
    messages.Bye("done"),
)


def decode_stream(data: bytes) -> None:
    """Frames, cut where a byte of the data says, and the messages in them."""
    decoder, step = FrameDecoder(), 1 + (data[-1] if data else 0)
    for at in range(0, len(data), step):
        for frame in decoder.feed_untrusted(data[at : at + step]):
            if hasattr(frame, "body"):
                decode_message_untrusted(frame.body)


def hold_session(data: bytes) -> None:
    """A whole session against a peer that says ``data`` after the handshake of TLS, and hangs up."""

    async def serve(device: DeviceId, request: Any) -> bytes:
        return b"x" * 100

    async def main() -> None:
        left, right = trio.testing.memory_stream_pair()
        session = Session(
            left, HELLO, device=DEVICE, dialled=False, serve={messages.ChunkGet: serve, messages.FileGet: serve}
        )
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                with contextlib.suppress(SessionClosed):
                    await session.run()
                await right.aclose()

            nursery.start_soon(run)
            try:
                await right.send_all(data)
                await right.send_eof()
                while await right.receive_some(65_536):
                    pass
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def exchange_of(data: bytes) -> None:
    """Announcements of a neighbour about a manifest that is wanted; nonsense is no exception here, but a strike."""
    exchange = Exchange(
        MANIFEST, 0, DeviceId(ORIGIN_OF_TIME), weight=8, conduct=Conduct(), slots=Slots(), budget=Budget(),
        rng=random.Random(1), settle_ms=3_000, started_ms=0, roster_changed_ms=0, now_ms=0,
    )  # fmt: skip
    exchange.handle(PeerUp(DEVICE, 8), 0)
    now_ms = 0
    for part in msgspec.msgpack.Decoder(list[bytes]).decode(data)[:32]:
        now_ms += 500
        message = decode_message_untrusted(part)
        if isinstance(message, messages.Handover):
            read_handover_untrusted(message, MANIFEST)
        assert len(exchange.receive_untrusted(DEVICE, message, now_ms)) < 50


def candidates_of(data: bytes) -> None:
    """``[name, addresses, port, properties]``, as zeroconf hands them over."""
    name, addresses, port, properties = msgspec.msgpack.decode(
        data, type=tuple[str, list[str], int | None, dict[bytes, bytes | None]]
    )
    for candidate in candidates_untrusted(name, addresses, port, properties, "12345678"):
        is_nearby(candidate.host, ())


# Compliance


def record() -> bytes:
    report = ReportBody(
        SCHEMA, str(DEVICE), "berlin", "host", NOW_MS, "0", findings=(Finding("base", 1, "sudo", "pass", message="ok"),)
    )
    return seal_record(
        pack(report), sign=sign, certificate=certificate(), key=RecordKey(DEVICE, 1, 1), previous=bytes(32),
        created_ms=NOW_MS, collectors=(SealKey(bytes(COLLECTOR_KEY.public_key)),), random_bytes=random.Random(1).randbytes,
    )  # fmt: skip


def open_record(data: bytes) -> None:
    """As it came; and once more signed by a device that is what it says: what a member could send."""
    pem = authority().pem

    def verify(der: bytes) -> Any:
        return verified_identity_untrusted(der, pem, fleet=FLEET)

    for each in (data, data[:-64] + sign(b"pcm.record/1", data[:-64])):
        unseal_untrusted(open_record_untrusted(each, verify), bytes(COLLECTOR_KEY))


def open_ack(data: bytes) -> None:
    keys = {DEVICE: PUBLIC}
    for each in (data, data[:-64] + sign(b"pcm.ack/1", data[:-64])):
        open_ack_untrusted(each, keys)


def ack() -> bytes:
    entry = AckEntry(bytes(DEVICE), 1, 3, b"h" * 16)
    return seal_ack((entry,), collector=DEVICE, level=Level.DURABLE, issued_ms=NOW_MS, sign=sign)


# Content

TEXT = random.Random(1).randbytes(300) + bytes(2_000) + b"some text " * 60
CHUNK = Chunk.of(TEXT)


def tar(mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
        for name, data in (("bin/tool", b"#!"), ("share/ü" + "x" * 120, TEXT[:200])):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("bin/link")
        link.type, link.linkname = tarfile.SYMTYPE, "tool"
        archive.addfile(link)
    return out.getvalue()


def zip_file() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bin/tool", TEXT[:100])
        archive.writestr("empty/", b"")
        archive.writestr("share/text", TEXT, zipfile.ZIP_STORED)
    return out.getvalue()


def deb() -> bytes:
    out = b"!<arch>\n"
    for name, data in (
        ("debian-binary", b"2.0\n"), ("control.tar.gz", tar("w:gz")), ("data.tar.xz", lzma.compress(tar(), preset=0)),
    ):  # fmt: skip
        out += f"{name:<16}{'1700000000':<12}{'0':<6}{'0':<6}{'100644':<8}{len(data):<10}`\n".encode() + data
        out += b"\n" * (len(data) % 2)
    return out


@cache
def scratch() -> Path:
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))


def unpack(data: bytes) -> None:
    """Below a folder of its own; nothing may appear beside it."""
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        inside = Path(folder) / "inside"
        inside.mkdir()
        try:
            unpack_untrusted(io.BytesIO(data), inside, unpacked_bytes_max=1 << 20)
        finally:
            assert [path.name for path in Path(folder).iterdir()] == ["inside"], "something was written outside"
            for path in inside.rglob("*"):
                assert not path.is_symlink() or path.resolve().is_relative_to(inside.resolve()), f"{path} leads outside"


def store_form(data: bytes) -> None:
    """The publisher's side: an archive from outside to its stored form, and its members."""
    source, destination = scratch() / "delivered.zip", scratch() / "stored"
    source.write_bytes(data)
    destination.unlink(missing_ok=True)
    form = detect(source)
    write_stored(source, form, destination, size_bytes_max=4 << 20)
    members(destination, form)


def layout() -> bytes:
    pieces = (b"head" * 20, FilePiece(b"usr/bin/tool", 900), bytes(40))
    return encode_layout(pieces, (CHUNK.id,), (80 + 900 + 40,))


def pack_again(plain: bytes | memoryview, level: int) -> bytes:
    """For the program gzip: the same form, and no process for each input."""
    packer = zlib.compressobj(level, wbits=-15)
    return packer.compress(plain) + packer.flush() + struct.pack("<2I", zlib.crc32(plain), len(plain))


def with_log(data: bytes, log: bytes) -> bytes:
    return data + b"\x1f\x8b\x08\0\0\0\0\0\2\3" + pack_again(log, 9)


LOG = random.Random(2).randbytes(1_000).hex().encode()
DELTA_BASE, DELTA_OUTPUT = with_log(TEXT, LOG), with_log(TEXT[::-1][:500] + TEXT[500:], b"a line more\n" + LOG)


def decode_delta(data: bytes) -> None:
    decode_blob_untrusted("delta", data, DELTA_BASE, len(DELTA_OUTPUT), pack_again)


def delta_samples() -> list[bytes]:
    plain, smaller = encode_delta(DELTA_BASE, DELTA_OUTPUT), encode_smallest_delta(DELTA_BASE, DELTA_OUTPUT, pack_again)
    assert len(smaller) < len(plain), "one has a head for gzip members, the other has none"
    return [plain, smaller]


def decode_full(data: bytes) -> None:
    decode_blob_untrusted("full", data, b"", len(TEXT))


def decode_halt(data: bytes) -> None:
    """And what every device makes of it: the statement that is verified, the sentence that is shown."""
    halt = decode_halt_untrusted(data, f"halts/{'cd' * 16}.toml")
    assert halt.statement
    assert InForce(halt, WHOLE_FLEET).sentence()


# Policy


def decide_policy(data: bytes) -> None:
    """A policy of a site, and all that a device makes of it beside the fleet's own."""
    policy, base = decode_policy(data, "p.toml"), decode_policy(POLICY, "base.toml")
    allowances, activation = decode_allowances(ALLOWANCES), decode_activation(ACTIVATION)
    sentence(policy.applies_to)
    why_beyond(policy, "berlin", allowances)
    why_looser(policy, (base,), may_meet("berlin"))
    decide((base, policy), activation, FACTS, NOW, "fresh")


def activate(data: bytes) -> None:
    why_inactive(decode_activation(data), FACTS, NOW)


def find_site(data: bytes) -> None:
    document = decode_fleet_document(data, "f.toml")
    for address in ("10.1.0.7", "2001:db8:1::7", "::ffff:10.1.0.7", "no address"):
        document.site_of(address)


# Authority and enrolment


@cache
def signer() -> CryptoSigner:
    return CryptoSigner(DEVICE_KEY)


def public_key_file() -> bytes:
    key: Any = signer().public_key
    return public_key.encode_public_key(public_key.PublicKey("targets", "alice", key), signer(), NOW)


@cache
def key_file() -> bytes:
    path = scratch() / "targets-alice.key"
    keyfile.create(path, "correct horse", "targets", "alice", preset="lab")
    return path.read_bytes()


@cache
def key_tests() -> bytes:
    from pcm_p2p.authority.keys.key_test import SCHEMA as TESTS
    from pcm_p2p.authority.keys.key_test import Challenge, KeyTests, make_test

    challenge = Challenge(FLEET, "targets", signer().public_key.keyid, 1, NOW, "0" * 64)
    return KeyTests(TESTS).with_test(make_test(challenge, signer())).encoded()


def audit_line() -> bytes:
    key = signer().public_key
    act = audit_log.SigningAct(
        act="sign", role="targets", version=1, under=1, signed=b"{}", keyid=key.keyid, owner="alice",
        signature="ab" * 64, keep_document=True,
    )  # fmt: skip
    return audit_log.line_of(act, after=None, time=NOW, tool="pcm_p2p 0").rstrip(b"\n")


def signature_file() -> bytes:
    one = DetachedSignature("targets", 4, "0" * 64, "1" * 64, "alice", "ab" * 64)
    return SignatureFile("pcm.signatures/1", FLEET, (one,)).encoded()


@cache
def bundle() -> bytes:
    """What an administrator carries: a published fleet and a change to it."""
    from fuzz_tuf import device

    fleet = device().fleet
    path = fleet.fleet
    targets = fleet.signed_targets(lambda targets: targets.targets.pop("policies/second.toml"))
    document = BundleDocument(
        path.fleet_id, "Simulated", tuple(path.root_bytes(number) for number in (1, 2)),
        (BundledDocument("targets", fleet.newest_targets().to_bytes()),),
        (BundledDocument("targets", targets.to_bytes()),),
        (BundledTarget("policies/second.toml", b"version = 1\n"),),
    )  # fmt: skip
    return msgspec.msgpack.encode(document)


def token() -> Token:
    return Token(
        "desk.example:8742", b"t" * 16, b"s" * 16, b"r" * 32, authority().der, FLEET, "Example", NOW_MS, "device", "berlin",
        ("https://origin.example",), ("10.0.0.7:4711",),
    )  # fmt: skip


def text(decode: Callable[[str], object]) -> Callable[[bytes], object]:
    """For decoders of text: bytes of a foreign encoding never get that far."""
    return lambda data: decode(data.decode("utf-8", "replace"))


def console(data: bytes) -> None:
    part = data.decode("latin-1")
    assert next_untrusted(part).startswith("/")
    number_untrusted(part, 1)
    seen_untrusted(part)
    for decode in (lambda: form_untrusted(data), lambda: basic_password_untrusted(part)):
        with contextlib.suppress(UntrustedBytes):
            decode()


def control(data: bytes) -> None:
    """A line on the control socket; every answer is one that can be sent."""

    async def main() -> None:
        async def status(request: Any) -> object:
            return {"seen": sorted(map(str, request))}

        answer = await _answer(data, {"status": status})
        json.dumps(answer)

    trio.run(main)


def samples(*data: bytes) -> Callable[[], Sequence[bytes]]:
    return lambda: data


POLICY = b"""schema = "pcm.policy/1"
id = "base"
version = 3
mode = "enforce"
applies_to = { sites = ["paris"] }
[[assign]]
release = "tool"
version = "1.2"
to = { labels = ["canary"] }
[[assign.resource]]
kind = "file"
path = "/etc/tool.conf"
content = "colour = blue"
mode = 0o640
[[check]]
id = "sudo"
severity = "high"
resource = "package"
name = "sudo"
version = { ge = "1.9.13" }
[transfer]
wan_in_bytes_per_s = 50000
"""
POLICY_OF_ALL_KINDS = b"""schema = "pcm.policy/1"
id = "all"
version = 1
mode = "enforce"
[[assign]]
release = "berlin-tool"
version = "1"
[[assign.resource]]
kind = "package"
artifact = "tool_1.2_amd64.deb"
[[assign.resource]]
kind = "archive"
artifact = "tool.tar.xz"
name = "tool"
path = "/opt/berlin"
link = "current"
[[assign.resource]]
kind = "service"
name = "tool.service"
active = true
restart_on_change = true
[[check]]
id = "shadow"
resource = "file"
path = "/etc/shadow"
mode = { at_most = 0o640 }
[[check]]
id = "kptr"
resource = "sysctl"
key = "kernel.kptr_restrict"
live = 2
[[check]]
id = "audit"
resource = "service"
name = "auditd.service"
active = true
[[check]]
id = "tmp"
resource = "mount"
path = "/tmp"
fstab_options = { includes = ["nosuid"] }
"""
FLEET_TOML = (
    starting_document(FLEET, "Example").encode()
    + b"""
[[origin]]
url = "https://updates.example.org/pcm"
[[desk]]
address = "desk.example.org:8742"
[[site]]
name = "office-1"
subnets = ["10.1.0.0/16", "2001:db8:1::/48"]
"""
)
ALLOWANCES = b"""schema = "pcm.allowances/1"
[default]
modes = ["observe"]
[[site]]
name = "berlin"
modes = ["observe", "enforce"]
releases = ["berlin-*"]
paths = ["/opt/berlin/"]
"""
ACTIVATION = b"""schema = "pcm.activation/1"
sites = ["paris"]
not_before = 2026-03-01T00:00:00Z
"""
HALT = b"""schema = "pcm.halt/1"
id = "%s"
fleet = "%s"
release = "tool"
reason = "breaks"
by = "alice"
since = 2026-03-01T12:00:00Z
keyid = "%s"
signature = "ab"
""" % (b"cd" * 16, FLEET.encode(), b"0" * 64)
LIFTED = b'schema = "pcm.lifted/1"\nlifted = ["%s"]\nconfirmed = []\n' % (b"cd" * 16)
TOML = (InputError, UntrustedBytes)
WIRE: tuple[type[Exception], ...] = (UntrustedBytes, msgspec.DecodeError, UnicodeDecodeError)
"""For those whose input is an envelope of this file, which may itself be damaged."""


def wire_samples() -> list[bytes]:
    return [
        *(encode_control(HELLO) + encode_control(message) for message in MESSAGES),
        encode_bulk(1, b"piece", last=True),
    ]


DECODERS = (
    Decoder("tuf-carried", carried, carried_samples, "json", (), input_bytes_max=20_000, cpu_s_max=2.0),
    Decoder("tuf-signed", signed, signed_samples, "json", (), input_bytes_max=8_192, cpu_s_max=2.0),
    Decoder("tuf-stored", stored, stored_samples, "json", (), input_bytes_max=8_192, cpu_s_max=2.0),
    Decoder("site-root", site_root, site_root_samples, "json", ()),
    Decoder("index", decode_index_untrusted, samples(
        Index("pcm.index/1", FLEET, ("policies/a.toml",), ("releases/main/n@1.manifest",)).encoded()), "json"),
    Decoder("deny", lambda data: decode_deny_untrusted(data, FLEET), lambda: [
        DenyList.empty(FLEET).with_devices((DEVICE,), "stolen", NOW).encoded()], "json"),
    Decoder("manifest", decode_manifest_untrusted, samples(MANIFEST.encoded), "msgpack"),
    Decoder("policy", decide_policy, samples(POLICY, POLICY_OF_ALL_KINDS), "text", TOML),
    Decoder("activation", activate, samples(ACTIVATION), "text", TOML),
    Decoder("fleet-document", find_site, samples(FLEET_TOML), "text", TOML),
    Decoder("allowances", decode_allowances, samples(ALLOWANCES), "text", TOML),
    Decoder("halt", decode_halt, samples(HALT), "text"),
    Decoder("lifted", decode_lifted_untrusted, samples(LIFTED), "text"),
    Decoder("frames", decode_stream, wire_samples),
    Decoder("message", decode_message_untrusted, lambda: [msgspec.msgpack.encode(each, enc_hook=bytes) for each in MESSAGES],
            "msgpack"),
    Decoder("session", hold_session, wire_samples, allowed=()),
    Decoder("exchange", exchange_of, lambda: [msgspec.msgpack.encode(
        [msgspec.msgpack.encode(each, enc_hook=bytes) for each in MESSAGES[4:10]])], "msgpack", WIRE),
    Decoder("candidates", candidates_of, samples(msgspec.msgpack.encode(
        ["0123456789abcdef." + SERVICE, ["10.0.0.7", "127.0.0.1"], 4_711, {b"g": b"12345678"}])), "msgpack", WIRE),
    Decoder("roster", decode_roster_untrusted, lambda: [msgspec.msgpack.encode(
        Remembered(7, 4_711, (ROSTER_ENTRY,)))], "msgpack"),
    Decoder("record", open_record, lambda: [record()]),
    Decoder("report", unpack_report_untrusted, lambda: [pack(ReportBody(SCHEMA, str(DEVICE), "s", "h", NOW_MS, "0"))]),
    Decoder("ack", open_ack, lambda: [ack()]),
    Decoder("taken", lambda data: decode_taken_untrusted(data, 2), samples(encode_taken((True, False), (b"a",))), "msgpack"),
    Decoder("token", text(decode_token_untrusted), lambda: [token().line().encode()], "text"),
    Decoder("endpoint", text(endpoint_untrusted), samples(b"desk.example:8742", b"[2001:db8::1]:1"), "text"),
    Decoder("device-code", text(device_code_untrusted), lambda: [device_code(DEVICE).encode(), DEVICE.hex().encode()], "text"),
    Decoder("request", decode_request_untrusted, lambda: [msgspec.msgpack.encode(each) for each in (
        Request(b"t" * 16, PUBLIC, b"p" * 64, b"m" * 32), Renewal(certificate(), b"p" * 64))], "msgpack"),
    Decoder("reply", decode_reply_untrusted, lambda: [msgspec.msgpack.encode(
        Reply("", certificate(), authority().pem, b"{}"))], "msgpack"),
    Decoder("certificate", lambda data: verified_identity_untrusted(data, authority().pem, fleet=FLEET, at=NOW),
            lambda: [certificate()]),
    Decoder("authorities", authorities_untrusted, lambda: [authority().pem], "text"),
    Decoder("archive", unpack, lambda: [tar(), tar("w:gz"), tar("w:xz"), zip_file()], input_bytes_max=16_384),
    Decoder("stored-form", store_form, lambda: [deb(), tar("w:gz"), tar("w:bz2"), zip_file()], allowed=(InputError,),
            input_bytes_max=16_384),
    Decoder("layout", decode_layout_untrusted, lambda: [layout()], "msgpack", memory_bytes_max=96 << 20),
    Decoder("delta", decode_delta, delta_samples, memory_bytes_max=160 << 20),
    Decoder("segment", decode_full, lambda: [encode_full((TEXT,), level) for level in (0, 3, 19)], memory_bytes_max=160 << 20),
    Decoder("chunk", lambda data: open_sealed_untrusted(CHUNK.id, data), lambda: [seal(CHUNK)]),
    Decoder("key-file", keyfile.decode_key_file_untrusted, lambda: [key_file()], "json"),
    Decoder("public-key", public_key.decode_public_key_untrusted, lambda: [public_key_file()], "json"),
    Decoder("key-tests", decode_key_tests_untrusted, lambda: [key_tests()], "json"),
    Decoder("audit-line", audit_log.read_entry_untrusted, lambda: [audit_line()], "json"),
    Decoder("audit-log", audit_log.read_chain, lambda: [audit_line() + b"\n"], "text", ()),
    Decoder("signatures", decode_signature_file_untrusted, lambda: [signature_file()], "json"),
    Decoder("bundle", decode_bundle_untrusted, lambda: [bundle()], "msgpack", input_bytes_max=32_768, cpu_s_max=2.0),
    Decoder("floor", decode_floor_untrusted, floor_samples, "msgpack", input_bytes_max=32_768, cpu_s_max=2.0),
    Decoder("floor-signed", signed_floor, signed_floor_samples, "json", (), input_bytes_max=8_192, cpu_s_max=2.0),
    Decoder("pin", decode_pin_untrusted, samples(
        b'{"schema": "pcm.pin/1", "fleets": {"%s": {"name": "x", "root": {"version": 1, "sha256": "%s"}}}}'
        % (FLEET.encode(), b"0" * 64)), "json"),
    Decoder("proposal", proposed, proposed_samples, "json", (), input_bytes_max=32_768, cpu_s_max=2.0),
    Decoder("bundle-head", body_length_untrusted, samples(MAGIC + bytes(8))),
    Decoder("apply-request", dialogue.decode_request_untrusted, samples(*(dialogue.encode(each)[4:] for each in (
        dialogue.Offer(), dialogue.Apply("release/tool", "1", "0" * 64), dialogue.Observe("0" * 64, 100)))), "msgpack"),
    Decoder("apply-brought", dialogue.decode_brought_untrusted, samples(
        dialogue.encode(dialogue.Bring(3))[4:], dialogue.encode(dialogue.Lack("no"))[4:]), "msgpack"),
    Decoder("apply-said", dialogue.decode_said_untrusted, samples(*(dialogue.encode(each)[4:] for each in (
        dialogue.AskFile("metadata/timestamp.json", 100), dialogue.Answer(True), dialogue.Refused("no", "wait", 5),
        dialogue.Ended(Outcome("s", "1", "done", ("x",), 1))))), "msgpack"),
    Decoder("apply-length", lambda data: dialogue.length_untrusted(data, 16_384), samples(struct.pack(">I", 7))),
    Decoder("console", console, samples(b"password=x&next=%2Fdevices", b"Basic eDp5", b"/devices?site=x"), "text", ()),
    Decoder("control", control, samples(b'{"command": "status"}', b'{"command": "why", "release": "web"}'), "json", ()),
    Decoder("retry-after", lambda data: retry_after_untrusted(data.decode("latin-1"), 1e9), samples(
        b"120", b"Wed, 21 Oct 2026 07:28:00 GMT"), "text", ()),
)  # fmt: skip

EXEMPT = {
    # Functions whose bytes come through a row above, and the row.
    "feed_untrusted": "frames",
    "manifest_named_untrusted": "exchange",
    "read_untrusted": "exchange",
    "receive_untrusted": "exchange",
    "peer_identity_untrusted": "certificate",
    "_parse_untrusted": "certificate",
    "is_certified_by_first_untrusted": "certificate",
    "decode_delta_untrusted": "delta",
    "_output_bytes_untrusted": "delta",
    "_patched_untrusted": "delta",
    "decode_head_untrusted": "delta",
    "unpack_base_untrusted": "delta",
    "pack_output_untrusted": "delta",
    "inflate_untrusted": "delta",
    "unpack_blob_untrusted": "segment",
    "unpack_xz_untrusted": "segment",
    "decode_full_untrusted": "segment",
    "unpack_frame_untrusted": "chunk",
    "_pieces_untrusted": "layout",
    "_decode_untrusted": "apply-request",
    "_answer_untrusted": "segment",
    "parameters_untrusted": "console",
    "decode_site_root_untrusted": "site-root",
    "first_root_untrusted": "floor-signed",
    "_open_dated_untrusted": "record",
}

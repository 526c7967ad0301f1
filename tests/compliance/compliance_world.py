"""Devices, a collector and reports for the tests of this room: real keys and real seals, certificates that are only names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec
from nacl.public import PrivateKey
from nacl.signing import SigningKey

from pcm_p2p.compliance.acknowledgement import Ack, AckEntry, Level, head_of, open_ack_untrusted, seal_ack
from pcm_p2p.compliance.finding import Finding
from pcm_p2p.compliance.record import (
    Record,
    RecordKey,
    RecordSealer,
    SealKey,
    covered,
    open_record_untrusted,
    unseal_untrusted,
)
from pcm_p2p.compliance.report import SCHEMA, ReportBody
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import DeviceId

START_MS = 1_760_000_000_000


@dataclass(frozen=True)
class NamedSigner:
    device_id: DeviceId
    public_key: bytes


class FakeDevice:
    """Signs like a device; its certificate is ``cert:`` and its public key."""

    def __init__(self, name: str) -> None:
        self.key = SigningKey(hashlib.sha256(name.encode()).digest())
        self.public_key = bytes(self.key.verify_key)
        self.id = DeviceId.of_public_key(self.public_key)
        self.certificate = b"cert:" + self.public_key

    def sign(self, domain: bytes, data: bytes) -> bytes:
        return self.key.sign(covered(domain, data)).signature

    def report(
        self, created_ms: int = START_MS, findings: tuple[Finding, ...] = (), site: str = "office"
    ) -> ReportBody:
        return ReportBody(
            schema=SCHEMA,
            device=str(self.id),
            site=site,
            hostname="host",
            created_ms=created_ms,
            agent_version="0.1.0",
            findings=findings,
        )

    def sealer(self, *collectors: FakeCollector, seed: int = 1) -> RecordSealer:
        return RecordSealer(
            sign=self.sign,
            certificate=self.certificate,
            collectors=tuple(collector.seal_key for collector in collectors),
            random_bytes=Random(seed).randbytes,
        )


def verify_certificate(certificate: bytes) -> NamedSigner:
    """The fleet's authority of these tests: believes every ``cert:``."""
    if not certificate.startswith(b"cert:") or len(certificate) != 37:
        raise UntrustedBytes("not issued by this fleet")
    return NamedSigner(DeviceId.of_public_key(certificate[5:]), certificate[5:])


class FakeCollector:
    """Opens, keeps and acknowledges records in memory, as the collector's archive does on disk."""

    def __init__(self, name: str = "collector") -> None:
        self.identity = FakeDevice(name)
        self.private_key = PrivateKey(hashlib.sha256(b"seal " + name.encode()).digest())
        self.seal_key = SealKey(bytes(self.private_key.public_key))
        self.kept: dict[RecordKey, Record] = {}
        self.conflicts: dict[bytes, Record] = {}

    @property
    def id(self) -> DeviceId:
        return self.identity.id

    @property
    def keys(self) -> dict[DeviceId, bytes]:
        return {self.id: self.identity.public_key}

    def take(self, data: bytes) -> bool:
        record = open_record_untrusted(data, verify_certificate)
        unseal_untrusted(record, bytes(self.private_key))
        held = self.kept.setdefault(record.key, record)
        if held.hash != record.hash:
            self.conflicts[record.hash] = record
        return True

    def reports_of(self, device: DeviceId) -> list[ReportBody]:
        return [
            unseal_untrusted(self.kept[key], bytes(self.private_key))
            for key in sorted(self.kept)
            if key.device == device
        ]

    def ack(self, *devices: DeviceId, level: Level = Level.DURABLE, issued_ms: int = START_MS) -> bytes | None:
        """What it would sign now about ``devices`` (all epochs); None if it has nothing of them from number 1 on."""
        entries = []
        for device, epoch in sorted({(key.device, key.epoch) for key in self.kept if key.device in devices}):
            seq = 0
            while RecordKey(device, epoch, seq + 1) in self.kept:
                seq += 1
            if seq:
                entries.append(AckEntry(device, epoch, seq, head_of(self.kept[RecordKey(device, epoch, seq)].hash)))
        if not entries:
            return None
        return seal_ack(entries, collector=self.id, level=level, issued_ms=issued_ms, sign=self.identity.sign)

    def opened_ack(self, *devices: DeviceId, level: Level = Level.DURABLE) -> Ack:
        data = self.ack(*devices, level=level)
        assert data is not None
        return open_ack_untrusted(data, self.keys)


def many_findings(count: int, chars: int = 200, seed: int = 0) -> tuple[Finding, ...]:
    """Findings with texts that do not compress."""
    rng = Random(seed)

    def text() -> str:
        return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=chars))

    return tuple(
        Finding(
            "policy",
            1,
            f"check-{number}",
            "pass" if number % 2 else "fail",
            expected=text(),
            actual=text(),
            message=text(),
        )
        for number in range(count)
    )


def reencoded(data: bytes, change: Callable[[list[Any]], None]) -> bytes:
    """A record's or acknowledgement's signed part with ``change(list of fields)`` applied, and the old signature."""
    fields = msgspec.msgpack.decode(data[:-64])
    change(fields)
    return msgspec.msgpack.encode(fields) + data[-64:]

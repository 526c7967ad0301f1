"""Intake: records in, acknowledgements out. What is acknowledged is on disk; what is refused is refused with its reason.

A batch is opened in a worker thread (certificate, signature, seal: about a millisecond a record), archived in one transaction,
and answered with one acknowledgement that covers every device in the batch. How a record is opened and an acknowledgement
signed is handed in: this room holds no keys.

A record that conflicts with an archived one (same number, other content) is answered "not taken"; the acknowledgement beside it
tells its author which record is here under that number, whereupon the author numbers anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import trio

from pcm_p2p.collector.archive import Acknowledged, Archive, Opened
from pcm_p2p.compliance.handover import encode_taken
from pcm_p2p.compliance.report import ReportBody
from pcm_p2p.errors import StorageError, UntrustedBytes
from pcm_p2p.ids import DeviceId
from pcm_p2p.wire.messages import RecordsPut

OPENED_AT_ONCE = 2
"""Choice: batches that are opened at the same time; bounds the threads that many devices can keep busy."""

_log = logging.getLogger(__name__)


class RecordKey(Protocol):
    """What names a record."""

    @property
    def device(self) -> DeviceId: ...
    @property
    def epoch(self) -> int: ...
    @property
    def seq(self) -> int: ...


class Record(Protocol):
    """A record whose certificate and signature were verified (``compliance.record.Record``)."""

    @property
    def key(self) -> RecordKey: ...
    @property
    def hash(self) -> bytes: ...
    @property
    def previous(self) -> bytes: ...


R = TypeVar("R", bound=Record)

Open = Callable[[bytes], tuple[Record, ReportBody]]
"""Verify and unseal one encoded record. Raises ``UntrustedBytes`` with the reason."""
SealAck = Callable[[Sequence[Acknowledged], int], bytes]
"""Sign an acknowledgement of these streams, issued at this time in milliseconds since 1970."""


def opener(open_record: Callable[[bytes], R], unseal: Callable[[R], ReportBody]) -> Open:
    """``Open`` from its two halves, as ``compliance.record`` has them."""

    def both(data: bytes) -> tuple[Record, ReportBody]:
        record = open_record(data)
        return record, unseal(record)

    return both


@dataclass
class IntakeStatistics:
    """Since the start: records that were new, known already, in conflict, and refused."""

    new: int = 0
    known: int = 0
    conflicts: int = 0
    refused: int = 0


class Intake:
    """Answers ``RecordsPut``. ``wall_clock_ms`` gives milliseconds since 1970."""

    def __init__(
        self, archive: Archive, open_record: Open, seal_ack: SealAck, *, wall_clock_ms: Callable[[], int]
    ) -> None:
        self.statistics = IntakeStatistics()
        self._archive = archive
        self._open = open_record
        self._seal_ack = seal_ack
        self._wall_clock_ms = wall_clock_ms
        self._opening = trio.CapacityLimiter(OPENED_AT_ONCE)

    async def take(self, peer: DeviceId, message: RecordsPut) -> bytes:
        """Archive what is genuine; the answer is an encoded ``RecordsTaken`` with an acknowledgement.

        If the archive cannot be written nothing is taken, and the sender keeps its records.
        """
        received_ms = self._wall_clock_ms()
        opened = await trio.to_thread.run_sync(
            self._open_all, peer, message.records, received_ms, limiter=self._opening
        )
        genuine = [record for record in opened if record is not None]
        self.statistics.refused += len(opened) - len(genuine)
        try:
            outcomes = iter(await self._archive.take(genuine) if genuine else [])
            streams = await self._archive.acknowledged(record.device for record in genuine) if genuine else []
        except StorageError as error:
            _log.error("reports of %s cannot be archived: %s", peer.short, error)
            return encode_taken([False] * len(opened))
        taken = []
        for record in opened:
            outcome = next(outcomes) if record is not None else "refused"
            self._count(outcome)
            if record is not None and outcome == "conflict":
                _log.warning(
                    "%s sent another report under number %d of epoch %d: cloned, or restored from a backup",
                    record.device.short,
                    record.seq,
                    record.epoch,
                )
            taken.append(outcome in ("new", "known"))
        return encode_taken(taken, [self._seal_ack(streams, self._wall_clock_ms())] if streams else [])

    def _open_all(self, peer: DeviceId, records: Sequence[bytes], received_ms: int) -> list[Opened | None]:
        opened: list[Opened | None] = []
        for data in records:
            try:
                record, body = self._open(data)
            except UntrustedBytes as error:
                _log.warning("%s handed over a record that is refused: %s", peer.short, error)
                opened.append(None)
                continue
            key = record.key
            opened.append(
                Opened(
                    device=key.device,
                    epoch=key.epoch,
                    seq=key.seq,
                    hash=record.hash,
                    previous=record.previous,
                    carrier="" if key.device == peer else str(peer),
                    received_ms=received_ms,
                    body=body,
                )
            )
        return opened

    def _count(self, outcome: str) -> None:
        self.statistics.new += outcome == "new"
        self.statistics.known += outcome == "known"
        self.statistics.conflicts += outcome == "conflict"

"""The decoder of a daemon: one worker process, started when there is work, warm between segments, gone when there is none.

Nothing lies in between: base chunks go through a pipe as they are read from the store, the output comes back through another
and is verified and handed over chunk by chunk. The daemon holds one chunk; the worker holds everything, and dies alone.

Measured (``bench/decode.py``; store to store, a run of 16 MiB from a base of 24, CPU time of both processes): 89 … 100 MB of
output a second of a core where the patch is small (openjdk), 70 where unpacking it is more of the work (libreoffice); full
segments 32 … 47. That is 0.7 … 0.9 of the same work without a process. Of 0.21 s for libreoffice without one, sealing takes
0.05, unpacking 0.05, opening and joining the base 0.05, the patch 0.015, hashing 0.01, files the rest. Starting the
process costs 0.2 s, once in a release, of which the daemon waits one or two milliseconds.

Outcomes of ``decode``: chunks; ``BaseMissing``; ``DecodeFailed`` (wrong blob, crash, hang, memory); whatever storing the
chunks raises. After a crash, a hang or a cancellation the worker is killed, and the next job starts another.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import msgspec
import trio

import pcm_p2p
from pcm_p2p.content.chunk import Chunk
from pcm_p2p.content.decoding.gzip_program import Gzip, find_gzip
from pcm_p2p.content.decoding.job import BaseMissing, BaseSource, DecodeFailed, OnChunk, decode_blob_untrusted
from pcm_p2p.content.decoding.worker import (
    ANSWER_HEAD,
    DONE,
    JOB_HEAD,
    REASON_BYTES_MAX,
    WRONG,
    BlobChanged,
    Job,
    read_blob,
)
from pcm_p2p.content.delta.repacking import CannotPack
from pcm_p2p.content.manifest import Manifest, Segment
from pcm_p2p.errors import UntrustedBytes

MEMORY_BYTES_MAX = 256 << 20
TIMEOUT_S = 120.0
"""Choice: what a job may keep the daemon waiting, all waits together. The slowest kind takes a second on an idle machine."""
IDLE_S = 30.0
"""Choice: a release comes segment after segment; after that the memory is worth more than a quick start."""
_PIPE_BYTES = 1 << 20
"""The most that Linux grants without privileges; the daemon then reads ahead while the worker is at it."""
_END_TIMEOUT_S = 10.0

_log = logging.getLogger(__name__)


class Decoder:
    """Open with ``async with``, in the thread that lives as long as the daemon. Jobs queue: one at a time (choice).

    ``memory_bytes_max`` bounds what the worker may allocate; ``timeout_s`` what a job may keep waiting.
    """

    def __init__(
        self, *, memory_bytes_max: int = MEMORY_BYTES_MAX, timeout_s: float = TIMEOUT_S, idle_s: float = IDLE_S
    ) -> None:
        self._memory_bytes_max, self._timeout_s, self._idle_s = memory_bytes_max, timeout_s, idle_s
        self._turn = trio.Lock()
        self._thread = trio.CapacityLimiter(1)
        self._worker: _Worker | None = None
        self._gzip: Gzip | None = None
        self._why_not_gzip = "nobody has looked for gzip yet"
        self._idle = trio.CancelScope()
        self._opened = contextlib.AsyncExitStack()
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> Self:
        self._nursery = await self._opened.enter_async_context(trio.open_nursery())
        try:
            self._gzip, self._why_not_gzip = await trio.to_thread.run_sync(find_gzip), ""
        except CannotPack as error:
            self._why_not_gzip = str(error)
            _log.warning("deltas that need gzip are of no use here: %s", error)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()
        self._end()
        # Without the error, which a nursery would wrap.
        await self._opened.aclose()

    @property
    def pid(self) -> int | None:
        """The worker's process id, while there is one."""
        return None if self._worker is None else self._worker.pid

    @property
    def why_not_gzip(self) -> str:
        return self._why_not_gzip

    async def decode(
        self, segment: Segment, manifest: Manifest, blob_path: Path, base: BaseSource, on_chunk: OnChunk
    ) -> None:
        """As ``SegmentDecoder``; ``base`` and ``on_chunk`` are called in one worker thread of trio. May be cancelled."""
        assert self._nursery is not None, "the decoder is not open"
        async with self._turn:
            self._idle.cancel()
            if self._worker is None or not self._worker.alive:
                self._end()
                # Here and not in the thread: Linux kills a worker when the thread that started it ends.
                self._worker = _Worker(self._memory_bytes_max, self._gzip)
            try:
                await self._in_thread(
                    lambda worker: worker.decode(segment, manifest, blob_path, base, on_chunk, self._timeout_s)
                )
            finally:
                if not self._worker.alive:
                    self._end()
                else:
                    self._idle = trio.CancelScope()
                    self._nursery.start_soon(self._end_later, self._idle)

    async def _in_thread(self, act: Callable[[_Worker], None]) -> None:
        """Run ``act`` to its end, which comes at once when the worker is killed: that is how a job is cancelled."""
        worker, failure, done = self._worker, None, False
        assert worker is not None

        async def kill_when_cancelled() -> None:
            try:
                await trio.sleep_forever()
            finally:
                if not done:
                    worker.kill()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill_when_cancelled)
            try:
                await trio.to_thread.run_sync(act, worker, limiter=self._thread)
            except Exception as error:
                failure = error  # a nursery would wrap it
            done = True
            nursery.cancel_scope.cancel()
        await trio.lowlevel.checkpoint_if_cancelled()
        if failure is not None:
            raise failure

    async def _end_later(self, unless_cancelled: trio.CancelScope) -> None:
        with unless_cancelled:
            await trio.sleep(self._idle_s)
            self._end()

    def _end(self) -> None:
        if self._worker is not None:
            self._worker.end()
            self._worker = None


class InlineDecoder:
    """``Decoder`` without a process or a thread, for simulations: ``base`` and ``on_chunk`` are called where ``decode`` is."""

    def __init__(self, *, why_not_gzip: str = "") -> None:
        self._why_not_gzip = why_not_gzip
        self._gzip: Gzip | None = None

    @property
    def why_not_gzip(self) -> str:
        return self._why_not_gzip

    async def decode(
        self, segment: Segment, manifest: Manifest, blob_path: Path, base: BaseSource, on_chunk: OnChunk
    ) -> None:
        await trio.lowlevel.checkpoint()
        given = b"".join(chunk.data for chunk in _base_chunks(segment, manifest, base))
        try:
            blob = read_blob(blob_path, segment.id, segment.size)
        except BlobChanged as error:
            raise DecodeFailed(str(error), wrong=False) from None
        try:
            if not self._why_not_gzip:
                self._gzip = self._gzip or find_gzip()
            pack = self._gzip.packer() if self._gzip else None
            output = memoryview(
                decode_blob_untrusted(segment.kind, blob, given, _output_bytes(segment, manifest), pack)
            )
        except CannotPack as error:
            raise DecodeFailed(str(error), wrong=False) from None
        except UntrustedBytes as error:
            raise DecodeFailed(error.message, wrong=True) from None
        for position in segment.positions:
            size = manifest.table_sizes[position]
            on_chunk(position, _verified(manifest, position, bytes(output[:size])))
            output = output[size:]


def _output_bytes(segment: Segment, manifest: Manifest) -> int:
    return sum(manifest.table_sizes[segment.first : segment.first + segment.count])


def _base_chunks(segment: Segment, manifest: Manifest, base: BaseSource) -> Iterator[Chunk]:
    """The base of ``segment`` in order. Raises ``BaseMissing`` with all that is missing: the rest is read to find what is
    rotten, so that one repair is enough."""
    missing = []
    for position in segment.base:
        chunk = base(manifest.table_chunks[position])
        if chunk is None:
            missing.append(position)
        elif not missing:
            yield chunk
    if missing:
        raise BaseMissing(manifest.title, missing)


def _verified(manifest: Manifest, position: int, data: bytes) -> Chunk:
    try:
        return Chunk.verified(manifest.table_chunks[position], data)
    except UntrustedBytes as error:
        raise DecodeFailed(error.message, wrong=True) from None


class _Worker:
    """A worker process, seen from a thread that waits for it. ``kill`` may be called from any other."""

    def __init__(self, memory_bytes_max: int, gzip: Gzip | None = None) -> None:
        # The package must be the daemon's own, wherever the daemon found it.
        root = str(Path(pcm_p2p.__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        try:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "pcm_p2p.content.decoding.worker", str(memory_bytes_max)),
                    *((gzip.path,) if gzip is not None else ()),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env={**os.environ, "PYTHONPATH": path},
                process_group=0,
            )
        except OSError as error:
            raise DecodeFailed(f"no process can be started: {error.strerror}", wrong=False) from error
        self._jobs, self._answers = _pipe(self._process.stdin), _pipe(self._process.stdout)
        self._clean = True
        self._left_s = 0.0

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can be given another job."""
        return self._clean and self._process.poll() is None

    def kill(self) -> None:
        """With the gzip that it may be waiting for."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill it and wait for that, which takes a moment only."""
        self.kill()
        self._process.wait(_END_TIMEOUT_S)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def decode(
        self,
        segment: Segment,
        manifest: Manifest,
        blob_path: Path,
        base: BaseSource,
        on_chunk: OnChunk,
        timeout_s: float,
    ) -> None:
        """One job. If it ends with anything but an answer that was read to its end, the process is of no use any more."""
        self._clean, self._left_s = False, timeout_s
        sizes = manifest.table_sizes
        job = Job(
            kind=segment.kind,
            blob=str(blob_path),
            segment=segment.id,
            blob_bytes=segment.size,
            base_bytes=sum(sizes[position] for position in segment.base),
            output_bytes=_output_bytes(segment, manifest),
        )
        data = msgspec.msgpack.encode(job)
        self._send(JOB_HEAD.pack(len(data)) + data)
        for chunk in _base_chunks(segment, manifest, base):
            self._send(chunk.data)
        outcome, reason = self._answer_untrusted()
        if outcome != DONE:
            self._clean = outcome == WRONG
            raise DecodeFailed(reason, wrong=outcome == WRONG)
        for position in segment.positions:
            on_chunk(position, _verified(manifest, position, self._receive(sizes[position])))
        self._clean = True

    def _answer_untrusted(self) -> tuple[int, str]:
        """The outcome and the reason given for it."""
        outcome, size = ANSWER_HEAD.unpack(self._receive(ANSWER_HEAD.size))
        return outcome, self._receive(min(size, REASON_BYTES_MAX)).decode("utf-8", "replace")

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._wait(self._jobs, select.POLLOUT)
            try:
                view = view[os.write(self._jobs, view) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                return  # it may have said why before it ended

    def _receive(self, size_bytes: int) -> bytes:
        """So many bytes. The pipe holds more than most chunks have: one read is nearly always enough, and copies nothing."""
        parts, left = list[bytes](), size_bytes
        while left:
            self._wait(self._answers, select.POLLIN)
            try:
                part = os.read(self._answers, left)
            except BlockingIOError:
                continue
            if not part:
                raise DecodeFailed(f"the worker ended by itself (status {self._status()})", wrong=False)
            parts.append(part)
            left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _status(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_TIMEOUT_S)
        return self._process.returncode

    def _wait(self, descriptor: int, event: int) -> None:
        """Until the worker is ready. Only this counts against the job's time: a slow disk of ours is not a hang of its own."""
        poll, begun = select.poll(), time.monotonic()
        poll.register(descriptor, event)
        if not poll.poll(max(0.0, 1000 * self._left_s)):
            self.kill()
            raise DecodeFailed("the worker did not answer in time and was killed", wrong=False)
        self._left_s -= time.monotonic() - begun


def _pipe(pipe: IO[bytes] | None) -> int:
    """The pipe's descriptor, as large as the system grants, and never waited for without a limit."""
    assert pipe is not None, "made with PIPE"
    descriptor = pipe.fileno()
    os.set_blocking(descriptor, False)
    with contextlib.suppress(OSError, AttributeError):
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return descriptor

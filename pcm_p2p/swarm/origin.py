"""The origin over HTTP: small files whole, segments with resume. Nothing that it says is believed; bytes are checked by
the caller (metadata) or here by length and BLAKE3 (segments).

- A segment is written to ``<partial folder>/<id>.part`` as it comes. A broken connection, another mirror, an aborted
  task and a killed process all resume there with a range request. The file stays until ``discard``: the decoder reads it,
  and a process killed while it decodes does not fetch again.
- A mirror that ignores ranges (200 instead of 206) is read from its start, into the same file.
- Bytes are counted as they arrive, retries included: ``statistics().wan_bytes`` is the numerator of WAN amplification.
- Deadlines: connecting, each read (``stall_s``), and a least rate over each ``stall_s`` of waiting; time spent waiting
  for the own rate limit does not count against the origin.
- Proxies from the environment are ignored: a daemon has no user. Compressed transfer is declined: segments are
  compressed, and a decompressor would meet bytes that nobody has verified.
"""

from __future__ import annotations

import contextlib
import email.utils
import errno
import math
import os
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import httpx2
import trio
from blake3 import blake3

from pcm_p2p.config import Origin as Settings
from pcm_p2p.content.manifest import Segment
from pcm_p2p.errors import DiskFull, StorageError, TransferError, UntrustedBytes
from pcm_p2p.ids import SegmentId
from pcm_p2p.swarm.mirrors import Mirror, Mirrors

FLUSH_SIZE_BYTES = 256 << 10
"""Choice: what a SIGKILL may cost of the piece in flight."""
READ_SIZE_BYTES = 1 << 20
PART = ".part"
RESUMES_MAX = 20
FRUITLESS_MAX, FRUIT_BYTES_MIN, PATIENCE_MS = 2, 64 << 10, 5_000
"""Choice: after so many attempts in a row that brought less than that, or for a rest longer than that, a segment is given
up to a neighbour, who starts from nothing."""
REDIRECTS_MAX = 3
CONNECTIONS_MAX = 4


class OriginFailed(TransferError):
    """No mirror delivered. ``wait_ms``: do not ask again before; ``whole_origin``: another path would fare no better."""

    remedy = "The daemon tries again by itself; 'pcm-p2p doctor' tells the origin's state."

    def __init__(self, message: str, *, wait_ms: int = 0, whole_origin: bool = True) -> None:
        super().__init__(message)
        self.wait_ms = wait_ms
        self.whole_origin = whole_origin


class OriginMissing(OriginFailed):
    """Every mirror that answered says that there is no such file."""


class OriginWrong(OriginFailed):
    """The bytes are not what the manifest names; the mirror is in the message."""


class Pacing(Protocol):
    async def take(self, size_bytes: int, /) -> None: ...


@dataclass(frozen=True, slots=True)
class OriginStatistics:
    """Payload bytes as received since the start: of segments, and of metadata and targets.

    ``resumed``: requests that went on from a part; ``wrong``: answers that were not what they should be; ``resting``
    names why nothing is asked at present, empty if something may be.
    """

    wan_bytes: int
    metadata_bytes: int
    requests: int
    resumed: int
    wrong: int
    resting: str


@dataclass(slots=True)
class _Counters:
    wan_bytes: int = 0
    metadata_bytes: int = 0
    requests: int = 0
    resumed: int = 0
    wrong: int = 0


@dataclass(slots=True)
class _Part:
    """A segment on its way: its file, how much is in it, and which mirrors it came from."""

    path: Path
    done: int
    mirrors: set[str]


class _Broken(Exception):
    """One attempt at one mirror ended; the mirror's state is up to date."""


OnProgress = Callable[[int, int], None]
"""Called with the bytes of the segment that are here, and the bytes that have just arrived."""


class OriginClient:
    """Open with ``async with``. ``name`` is what logs call it."""

    name = "origin"

    def __init__(
        self,
        urls: Sequence[str],
        settings: Settings,
        partial_folder: Path,
        *,
        pace: Pacing | None = None,
        rng: random.Random | None = None,
        agent: str = "pcm-p2p",
    ) -> None:
        self._mirrors = Mirrors(urls, rng or random.Random())  # noqa: S311 - spreads retries, guards nothing
        self._settings, self._folder, self._pace = settings, partial_folder, pace
        self._counters = _Counters()
        self._locks: dict[SegmentId, trio.Lock] = {}
        self._client = httpx2.AsyncClient(
            trust_env=False,
            follow_redirects=True,
            max_redirects=REDIRECTS_MAX,
            headers={"accept-encoding": "identity", "user-agent": agent},
            limits=httpx2.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=2, keepalive_expiry=30),
            timeout=httpx2.Timeout(settings.stall_s, connect=settings.connect_timeout_s),
        )

    async def __aenter__(self) -> Self:
        await trio.to_thread.run_sync(lambda: self._folder.mkdir(mode=0o700, parents=True, exist_ok=True))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with trio.CancelScope(deadline=trio.current_time() + 2, shield=True):
            await self._client.aclose()

    @property
    def urls(self) -> list[str]:
        return [mirror.url for mirror in self._mirrors.all]

    def statistics(self) -> OriginStatistics:
        counters = self._counters
        return OriginStatistics(
            wan_bytes=counters.wan_bytes,
            metadata_bytes=counters.metadata_bytes,
            requests=counters.requests,
            resumed=counters.resumed,
            wrong=counters.wrong,
            resting=self._mirrors.reason if self._mirrors.choose(_now_ms()) is None else "",
        )

    # -- metadata and targets -------------------------------------------------------------------------------------------------

    async def get(self, path: str, size_bytes_max: int) -> bytes:
        """The whole file at ``path`` from the first mirror that has it.

        Raises ``OriginMissing`` (404 wherever there was an answer) or ``OriginFailed``. Longer than ``size_bytes_max``
        is a failure of the mirror.
        """
        place = 0
        while True:
            mirror = self._mirrors.choose(_now_ms(), from_place=place)
            if mirror is None:
                raise OriginMissing(f"no mirror has {path}", whole_origin=False) if place else self._resting()
            with contextlib.suppress(_Broken):
                data = await self._get(mirror, path, size_bytes_max)
                self._mirrors.worked(mirror)
                if data is not None:
                    return data
                place = self._mirrors.all.index(mirror) + 1

    async def _get(self, mirror: Mirror, path: str, size_bytes_max: int) -> bytes | None:
        data = bytearray()
        async with self._stream(mirror, path, {}) as response:
            if response.status_code in (404, 410):
                return None
            self._check_status(mirror, path, response, (200,))
            async with contextlib.aclosing(self._blocks(mirror, response)) as blocks:
                async for block in blocks:
                    self._counters.metadata_bytes += len(block)
                    data += block
                    if len(data) > size_bytes_max:
                        raise self._failed(mirror, f"{mirror.url}/{path} is longer than {size_bytes_max} bytes")
        return bytes(data)

    # -- segments -------------------------------------------------------------------------------------------------------------

    async def fetch_segment(self, segment: Segment, progress: OnProgress) -> Path:
        """The file with the segment's blob, verified. Raises ``OriginFailed`` and its kinds, ``DiskFull``, ``StorageError``."""
        lock = self._locks.setdefault(segment.segment_id, trio.Lock())
        try:
            async with lock:
                return await self._fetch_segment(segment, progress)
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._locks.pop(segment.segment_id, None)

    async def discard(self, segment: SegmentId) -> None:
        """Remove its partial file: its chunks are stored, or come from neighbours."""
        await trio.to_thread.run_sync(lambda: self._part_path(segment).unlink(missing_ok=True))

    async def parts(self) -> Mapping[SegmentId, int]:
        """How many bytes are on disk of which segments."""
        return await trio.to_thread.run_sync(_sizes_in, self._folder)

    async def _fetch_segment(self, segment: Segment, progress: OnProgress) -> Path:
        part = await self._open_part(segment)
        fruitless, place = 0, 0
        for _ in range(RESUMES_MAX):
            if part.done < segment.size:
                mirror = self._mirrors.choose(_now_ms(), from_place=place)
                if mirror is None and place:
                    raise OriginMissing(f"the origin has no segment {segment.segment_id.short}", whole_origin=False)
                if mirror is None:
                    await self._wait_for_mirror(part, fruitless)
                    continue
                before = part.done
                with contextlib.suppress(_Broken):
                    if not await self._read_rest(mirror, segment, part, progress):
                        place = self._mirrors.all.index(mirror) + 1
                fruitless = 0 if part.done - before >= FRUIT_BYTES_MIN else fruitless + 1
            if part.done == segment.size:
                if await trio.to_thread.run_sync(_is_whole, part.path, segment):
                    return part.path
                await self._blame(segment, part)
        raise self._resting()

    async def _wait_for_mirror(self, part: _Part, fruitless: int) -> None:
        """All mirrors rest. Worth waiting for only a little, and only with a part that a neighbour would not have."""
        wait_ms = self._mirrors.wait_ms(_now_ms())
        if not part.done or fruitless >= FRUITLESS_MAX or wait_ms > PATIENCE_MS:
            raise self._resting()
        await trio.sleep(wait_ms / 1000)

    async def _open_part(self, segment: Segment) -> _Part:
        size = await trio.to_thread.run_sync(_size_of, self._part_path(segment.segment_id))
        if size > segment.size:
            await self.discard(segment.segment_id)
            size = 0
        return _Part(self._part_path(segment.segment_id), size, set())

    async def _read_rest(self, mirror: Mirror, segment: Segment, part: _Part, progress: OnProgress) -> bool:
        """One request for what is missing; false if the mirror does not have the segment. Raises ``_Broken``."""
        path = segment_path(segment.segment_id)
        headers = {"range": f"bytes={part.done}-"} if part.done else {}
        async with self._stream(mirror, path, headers) as response:
            if response.status_code in (404, 410):
                return False
            self._check_status(mirror, path, response, (200, 206))
            start = self._start_of(mirror, response, segment, part.done)
            if start == 0:
                part.mirrors.clear()
            else:
                self._counters.resumed += 1
            part.done = start
            part.mirrors.add(mirror.url)
            await self._copy(mirror, response, segment, part, progress)
        self._mirrors.worked(mirror)
        return True

    def _start_of(self, mirror: Mirror, response: httpx2.Response, segment: Segment, done: int) -> int:
        """Where the body begins in the segment. Raises ``_Broken`` when the headers show that this is something else."""
        start, expected = 0, segment.size
        short = segment.segment_id.short
        if response.status_code == 206:
            start, expected = done, segment.size - done
            announced = response.headers.get("content-range", "").replace(" ", "")
            if announced != f"bytes{done}-{segment.size - 1}/{segment.size}":
                raise self._wrong(mirror, f"{mirror.url} answers another range of segment {short}")
        length = response.headers.get("content-length", "")
        if response.headers.get("content-encoding", "identity") != "identity" or (length and length != str(expected)):
            raise self._wrong(mirror, f"{mirror.url} serves {length} bytes for segment {short}, not {expected}")
        return start

    async def _copy(
        self, mirror: Mirror, response: httpx2.Response, segment: Segment, part: _Part, progress: OnProgress
    ) -> None:
        """Body to file. What arrived is in the file and in ``part.done`` however this ends."""
        waiting = bytearray()
        try:
            async with contextlib.aclosing(self._blocks(mirror, response)) as blocks:
                async for block in blocks:
                    self._counters.wan_bytes += len(block)
                    if part.done + len(waiting) + len(block) > segment.size:
                        waiting.clear()
                        raise self._wrong(
                            mirror, f"{mirror.url} sends more than segment {segment.segment_id.short} has"
                        )
                    waiting += block
                    progress(part.done + len(waiting), len(block))
                    if len(waiting) >= FLUSH_SIZE_BYTES:
                        await self._flush(part, waiting)
                    if self._pace is not None:
                        await self._pace.take(len(block))
        finally:
            if waiting:
                with trio.CancelScope(shield=True):
                    await self._flush(part, waiting)
        if part.done < segment.size:
            raise self._failed(mirror, f"{mirror.url} broke off segment {segment.segment_id.short}")

    async def _flush(self, part: _Part, waiting: bytearray) -> None:
        data = bytes(waiting)
        waiting.clear()
        try:
            await trio.to_thread.run_sync(_write_at, part.path, part.done, data)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(f"no room left on the disk of {part.path.parent}") from error
            raise StorageError(f"{part.path} cannot be written: {error.strerror}") from error
        part.done += len(data)

    async def _blame(self, segment: Segment, part: _Part) -> None:
        """The blob does not verify: start again without the mirror that sent it (if several did, nobody is blamed)."""
        await self.discard(segment.segment_id)
        mirrors, part.mirrors, part.done = part.mirrors, set(), 0
        text = f"{' and '.join(sorted(mirrors)) or 'disk'}: wrong bytes for segment {segment.segment_id.short}"
        self._counters.wrong += 1
        if len(mirrors) == 1:
            for mirror in self._mirrors.all:
                if mirror.url in mirrors:
                    self._mirrors.delivered_wrong(mirror, text, _now_ms())
        if self._mirrors.choose(_now_ms()) is None:
            raise OriginWrong(text, wait_ms=self._mirrors.wait_ms(_now_ms()))

    # -- requests -------------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _stream(self, mirror: Mirror, path: str, headers: dict[str, str]) -> AsyncIterator[httpx2.Response]:
        self._counters.requests += 1
        try:
            async with self._client.stream("GET", f"{mirror.url}/{path}", headers=headers) as response:
                yield response
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise self._failed(mirror, f"{mirror.url} {_describe(error)}") from None

    async def _blocks(self, mirror: Mirror, response: httpx2.Response) -> AsyncGenerator[bytes, None]:
        """The raw body; raises ``_Broken`` when it comes slower than the least rate."""
        waited_s, received, since = 0.0, 0, trio.current_time()
        raw = response.aiter_raw()
        try:
            async for block in raw:
                waited_s += trio.current_time() - since
                received += len(block)
                if waited_s >= self._settings.stall_s:
                    if received < self._settings.rate_bytes_per_s_min * waited_s:
                        raise self._failed(mirror, f"{mirror.url} is too slow: {received} bytes in {waited_s:.0f} s")
                    waited_s, received = 0.0, 0
                yield block
                since = trio.current_time()
        finally:
            # The library nests generators and closes only the outermost. A read that is cancelled unwinds all of them.
            with trio.CancelScope() as leaving:
                leaving.cancel()
                async for _ in raw:
                    pass

    def _check_status(self, mirror: Mirror, path: str, response: httpx2.Response, good: tuple[int, ...]) -> None:
        status = response.status_code
        if status in good:
            return
        retry_after_ms = retry_after_untrusted(response.headers.get("retry-after", ""), time.time())
        raise self._failed(mirror, f"{mirror.url} answers {status} for {path}", retry_after_ms=retry_after_ms)

    def _failed(self, mirror: Mirror, reason: str, *, retry_after_ms: int = 0) -> _Broken:
        self._mirrors.failed(mirror, reason, _now_ms(), retry_after_ms=retry_after_ms)
        return _Broken(reason)

    def _wrong(self, mirror: Mirror, reason: str) -> _Broken:
        self._counters.wrong += 1
        self._mirrors.delivered_wrong(mirror, reason, _now_ms())
        return _Broken(reason)

    def _resting(self) -> OriginFailed:
        if not self._mirrors.all:
            return OriginFailed("no origin is configured ([origin] urls)", wait_ms=60_000)
        kind = OriginWrong if all(mirror.wrong for mirror in self._mirrors.all) else OriginFailed
        return kind(self._mirrors.reason or "the origin does not deliver", wait_ms=self._mirrors.wait_ms(_now_ms()))

    def _part_path(self, segment: SegmentId) -> Path:
        return self._folder / (segment.hex() + PART)


def segment_path(segment: SegmentId) -> str:
    """Its place in an origin tree."""
    return f"segments/{segment.hex()[:2]}/{segment.hex()}"


def retry_after_untrusted(text: str, wall_clock_s: float) -> int:
    """``Retry-After`` in ms, as seconds or as an HTTP date; 0 for anything else, a day at most."""
    text = text[:64].strip()
    if text.isascii() and text.isdigit():
        return min(int(text), 86_400) * 1000
    try:
        wait_s = email.utils.parsedate_to_datetime(text).timestamp() - wall_clock_s
    except (TypeError, ValueError, IndexError, OverflowError, OSError):
        return 0
    return int(min(max(0.0, wait_s), 86_400.0) * 1000) if math.isfinite(wait_s) else 0


def _describe(error: Exception) -> str:
    match error:
        case httpx2.ConnectTimeout():
            return "does not answer"
        case httpx2.ConnectError():
            return f"cannot be reached ({error})"
        case httpx2.TimeoutException():
            return "stalled"
        case httpx2.TooManyRedirects():
            return "redirects in circles"
        case _:
            return f"broke the connection ({type(error).__name__})"


def _now_ms() -> int:
    return int(trio.current_time() * 1000)


def _size_of(path: Path) -> int:
    try:
        return path.stat(follow_symlinks=False).st_size
    except OSError:
        return 0


def _sizes_in(folder: Path) -> dict[SegmentId, int]:
    sizes: dict[SegmentId, int] = {}
    try:
        for entry in os.scandir(folder):
            if entry.name.endswith(PART):
                with contextlib.suppress(UntrustedBytes, OSError):
                    name = SegmentId.parse(entry.name.removesuffix(PART))
                    sizes[name] = entry.stat(follow_symlinks=False).st_size
    except OSError:
        return {}
    return sizes


def _write_at(path: Path, offset: int, data: bytes) -> None:
    """Write and cut off what was behind; a file that was removed meanwhile shows up as a wrong hash."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        view, written = memoryview(data), 0
        while written < len(view):
            written += os.pwrite(descriptor, view[written:], offset + written)
        os.ftruncate(descriptor, offset + len(data))
    finally:
        os.close(descriptor)


def _is_whole(path: Path, segment: Segment) -> bool:
    """Whether the file is the segment's blob; read in pieces, since several may be 16 MiB each."""
    hasher, size = blake3(), 0
    try:
        with path.open("rb", buffering=0) as file:
            while piece := file.read(READ_SIZE_BYTES):
                hasher.update(piece)
                size += len(piece)
    except OSError:
        return False
    return size == segment.size and hasher.digest() == segment.id

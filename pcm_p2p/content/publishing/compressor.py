"""The crew that makes segment blobs: worker processes, so that compression uses every core and no memory of the caller.

A job is a full segment, a delta, or the way back: a segment of an earlier release, unpacked to where its chunks belong.

A worker is ``python -m pcm_p2p.content.publishing.compressor``. It reads jobs from its standard input and answers on its standard
output: four bytes of length, then MessagePack, one answer a job in order. It ends at the end of its input, which is what it
sees when the caller dies; on Linux the kernel kills it at once even in the middle of a segment. A blob gets its name by
``rename`` when it is whole, so a killed worker leaves a temporary file and nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import hdiffpatch
import msgspec

import pcm_p2p
from pcm_p2p.content.decoding.gzip_program import Gzip
from pcm_p2p.content.delta.blob import decode_delta_untrusted, encode_smallest_delta, needs_gzip
from pcm_p2p.content.delta.repacking import CannotPack
from pcm_p2p.content.publishing.workplace import blob_path, storage_error
from pcm_p2p.content.segment import LEVEL_THOROUGH, decode_full_untrusted, encode_joined
from pcm_p2p.errors import DiskFull, InputError, PcmError, StorageError, UntrustedBytes
from pcm_p2p.ids import ChunkId, SegmentId

_LENGTH_SIZE_BYTES = 4
_END_TIMEOUT_S = 10.0
_PR_SET_PDEATHSIG = 1
_OPEN_FILES_MAX = 64


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """A chunk in a file: ``size`` bytes from ``offset``, which have to hash to ``chunk``."""

    file: int
    offset: int
    size: int
    chunk: bytes


class Job(msgspec.Struct, frozen=True, tag=True):
    """Make the segment of ``pieces``: full at ``level``, or the delta to them from ``base``.

    ``files`` are what the pieces refer to; ``segments`` and ``temporary`` are folders. The blob of a delta stays in
    ``temporary`` (``Made.path``): whether it is published is for the caller to say. ``gzip`` is the program with which it
    may look into gzip members; empty without one.
    """

    number: int
    files: tuple[str, ...]
    pieces: tuple[Piece, ...]
    level: int
    segments: str
    temporary: str
    base: tuple[Piece, ...] = ()
    gzip: str = ""


class Unpack(msgspec.Struct, frozen=True, tag=True):
    """Write the chunks of the full segment at ``blob`` to ``file``, each (id, size) of ``chunks`` at all its ``offsets``.

    The file exists and is full of zeros.
    """

    number: int
    blob: str
    file: str
    chunks: tuple[tuple[bytes, int], ...]
    offsets: tuple[tuple[int, ...], ...]


class Made(msgspec.Struct, frozen=True, tag=True):
    """The blob of job ``number`` is in place; its size in bytes. ``needs_gzip``: as ``deltas.DeltaBlob``.

    A delta waits for its name at ``path``. Without a path there is no delta that works, and ``size`` is that of the output.
    """

    number: int
    segment: bytes
    size: int
    path: str = ""
    needs_gzip: bool = False


class Unpacked(msgspec.Struct, frozen=True, tag=True):
    """The chunks are in place, unless ``problem`` says why the blob is of no use."""

    number: int
    problem: str = ""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Job ``number`` came to nothing. ``input``: a source is to blame; ``full``: the disk."""

    number: int
    message: str
    input: bool
    full: bool

    def error(self) -> PcmError:
        if self.input:
            return InputError(self.message)
        return DiskFull(self.message) if self.full else StorageError(self.message)


def do(job: Job | Unpack, workspace: bytearray) -> Made | Unpacked:
    """Do one job. Raises ``InputError`` if a source changed since it was cut, ``StorageError``.

    ``workspace`` is memory that the caller lends for one job after the other; it grows to the largest.
    """
    if isinstance(job, Unpack):
        return _unpack(job)
    return _make_delta(job, workspace) if job.base else _make(job, workspace)


def _make(job: Job, workspace: bytearray) -> Made:
    blob = encode_joined(_read(job, job.pieces, workspace), job.level)
    segment = SegmentId.of(blob)
    path, temporary = blob_path(Path(job.segments), segment), _temporary(job, segment)
    try:
        path.parent.mkdir(exist_ok=True)
        temporary.write_bytes(blob)
        temporary.rename(path)
    except OSError as error:
        raise _not_written(temporary, segment, error) from error
    return Made(job.number, bytes(segment), len(blob))


def _make_delta(job: Job, workspace: bytearray) -> Made:
    base = bytes(_read(job, job.base, workspace))
    output = bytes(_read(job, job.pieces, workspace))
    thorough = job.level >= LEVEL_THOROUGH
    blob = _delta_that_works(base, output, Gzip(job.gzip), thorough) if job.gzip else b""
    blob = blob or _delta_that_works(base, output, None, thorough)
    if not blob:
        # The full segment does as well: a run that the library cannot patch costs bytes, not the release.
        return Made(job.number, b"", len(output))
    segment = SegmentId.of(blob)
    temporary = _temporary(job, segment)
    try:
        temporary.write_bytes(blob)
    except OSError as error:
        raise _not_written(temporary, segment, error) from error
    return Made(job.number, bytes(segment), len(blob), str(temporary), needs_gzip(blob))


def _delta_that_works(base: bytes, output: bytes, gzip: Gzip | None, thorough: bool) -> bytes:
    """The blob, tried as a device does; empty if there is none."""
    try:
        blob = encode_smallest_delta(base, output, gzip.packer() if gzip else None, thorough=thorough)
        good = decode_delta_untrusted(blob, base, len(output), gzip.packer() if gzip else None) == output
    except (hdiffpatch.HDiffPatchError, CannotPack, UntrustedBytes):
        return b""
    return blob if good else b""


def _temporary(job: Job, segment: SegmentId) -> Path:
    return Path(job.temporary) / f"{segment.short}-{secrets.token_hex(6)}"


def _not_written(temporary: Path, segment: SegmentId, error: OSError) -> StorageError:
    with contextlib.suppress(OSError):
        temporary.unlink()
    return storage_error(f"segment {segment.short}… cannot be written", error)


def _unpack(job: Unpack) -> Unpacked:
    name = Path(job.blob).name[:8]
    try:
        blob = Path(job.blob).read_bytes()
    except OSError as error:
        return Unpacked(job.number, f"segment {name} cannot be read: {error.strerror}")
    chunks = decode_full_untrusted(blob, [ChunkId(chunk) for chunk, _ in job.chunks], [size for _, size in job.chunks])
    try:
        with Path(job.file).open("r+b", buffering=0) as file:
            for chunk, offsets in zip(chunks, job.offsets, strict=True):
                # A hole reads as zeros.
                for offset in offsets if chunk.data.strip(b"\0") else ():
                    _put(file.fileno(), chunk.data, offset)
    except UntrustedBytes as error:
        return Unpacked(job.number, f"segment {name} is damaged: {error.message}")
    except OSError as error:
        raise storage_error(f"{job.file} cannot be written", error) from error
    return Unpacked(job.number)


def _put(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _read(job: Job, pieces: Sequence[Piece], workspace: bytearray) -> memoryview:
    """The pieces, joined; each is read in place, so that nothing is copied."""
    size_bytes = sum(piece.size for piece in pieces)
    if len(workspace) < size_bytes:
        workspace.extend(bytes(size_bytes - len(workspace)))
    view, at = memoryview(workspace)[:size_bytes], 0
    with contextlib.ExitStack() as stack:
        opened: dict[int, int] = {}
        for piece in pieces:
            path, place = Path(job.files[piece.file]), view[at : at + piece.size]
            try:
                if piece.file not in opened:
                    if len(opened) == _OPEN_FILES_MAX:
                        stack.close()
                        opened.clear()
                    opened[piece.file] = stack.enter_context(path.open("rb", buffering=0)).fileno()
                _fill(opened[piece.file], place, piece.offset)
            except OSError as error:
                raise InputError(f"cannot be read: {error.strerror}", path=path) from None
            if ChunkId.of(place) != piece.chunk:
                raise InputError("changed while it was being read", path=path, remedy="Run the command again.")
            at += piece.size
    return view


def _fill(descriptor: int, place: memoryview, offset: int) -> None:
    """Read until ``place`` is full or the file ends; what is not filled does not hash to its id."""
    while place and (size := os.preadv(descriptor, [place], offset)):
        place, offset = place[size:], offset + size


class Crew:
    """So many workers; a context manager. They are gone when it is left, whatever they were doing."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._workers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        # The package must be the caller's own, wherever the caller found it.
        root = str(Path(pcm_p2p.__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        try:
            for _ in range(self._processes):
                self._workers.append(
                    subprocess.Popen(
                        [sys.executable, "-P", "-m", "pcm_p2p.content.publishing.compressor"],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        env={**os.environ, "PYTHONPATH": path},
                    )
                )
        except OSError as error:
            self._end()
            raise StorageError(f"no process can be started for compression: {error.strerror}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.wait(_END_TIMEOUT_S)
            for pipe in (worker.stdin, worker.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def run(self, jobs: Iterable[Job | Unpack]) -> Iterator[Made | Unpacked]:
        """Do all jobs, at most one a worker at a time; answers come as they are ready. Raises what ``do`` raises."""
        waiting = iter(jobs)
        with selectors.DefaultSelector() as selector:
            for worker, job in zip(self._workers, waiting):  # noqa: B905 - either may be the shorter one
                self._give(worker, job)
                selector.register(_pipe(worker.stdout), selectors.EVENT_READ, worker)
            while selector.get_map():
                for key, _ in selector.select():
                    worker = key.data
                    answer = self._take(worker)
                    if isinstance(answer, Failed):
                        raise answer.error()
                    following = next(waiting, None)
                    if following is None:
                        selector.unregister(key.fileobj)
                    else:
                        self._give(worker, following)
                    yield answer

    def _give(self, worker: subprocess.Popen[bytes], job: Job | Unpack) -> None:
        try:
            _send(_pipe(worker.stdin), msgspec.msgpack.encode(job))
        except OSError:
            raise self._died(worker) from None

    def _take(self, worker: subprocess.Popen[bytes]) -> Made | Unpacked | Failed:
        data = _receive(_pipe(worker.stdout))
        if data is None:
            raise self._died(worker)
        return msgspec.msgpack.decode(data, type=Made | Unpacked | Failed)

    @staticmethod
    def _died(worker: subprocess.Popen[bytes]) -> StorageError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(_END_TIMEOUT_S)
        return StorageError(
            f"a compressing process ended by itself (status {worker.returncode})",
            remedy="Most likely memory ran out. Run the command again, it goes on where it was; a lower --level needs less.",
        )


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None, "made with PIPE"
    return pipe


def _send(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(len(data).to_bytes(_LENGTH_SIZE_BYTES, "big") + data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes | None:
    """The next message; None at the end, which may come within one."""
    head = pipe.read(_LENGTH_SIZE_BYTES)
    size = int.from_bytes(head, "big")
    data = pipe.read(size) if len(head) == _LENGTH_SIZE_BYTES else b""
    return data if data and len(data) == size else None


def _die_with_caller() -> None:
    # Linux only; elsewhere the end of the input is noticed after the segment in hand.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _work() -> None:
    _die_with_caller()
    # An interrupt from the terminal reaches the caller too, which then ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    workspace = bytearray()
    while (data := _receive(sys.stdin.buffer)) is not None:
        job = msgspec.msgpack.decode(data, type=Job | Unpack)
        answer: Made | Unpacked | Failed
        try:
            answer = do(job, workspace)
        except PcmError as error:
            answer = Failed(job.number, error.message, isinstance(error, InputError), isinstance(error, DiskFull))
        _send(sys.stdout.buffer, msgspec.msgpack.encode(answer))


if __name__ == "__main__":
    _work()

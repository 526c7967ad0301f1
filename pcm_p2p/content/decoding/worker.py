"""The worker process that decodes segments: apart, so that a crash, a hang or too much memory is not the daemon's.

``python -m pcm_p2p.content.decoding.worker MEMORY_BYTES_MAX [GZIP]``; GZIP is the program that some deltas need. Jobs come on its
standard input, answers go to its standard output, in order:

==============  =================================================================================================
to the worker   u32 length, a ``Job`` in MessagePack, and the base: ``base_bytes`` bytes
to the daemon   u8 outcome, u16 length, a reason in UTF-8; if the outcome is ``DONE``, ``output_bytes`` bytes
==============  =================================================================================================

It ends at the end of its input; on Linux the kernel kills it with the daemon even in the middle of a job. It writes no file.
Integers are big-endian.

Measured: the largest job there can be (48 MiB of base, a blob of 16 MiB with a dictionary of 16 MiB, 16 MiB of output) peaks
at 136 MB resident, a full segment at 88 MB; between jobs it is 25 MB. With 16 MiB of gzip members on either side to be unpacked
and packed again it peaks at 221 MB, and the program takes 2.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from pathlib import Path
from typing import BinaryIO

import msgspec

from pcm_p2p.content.decoding.gzip_program import Gzip
from pcm_p2p.content.decoding.job import Kind, decode_blob_untrusted
from pcm_p2p.content.delta.repacking import CannotPack
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import SegmentId

DONE, WRONG, FAILED = range(3)
"""Outcomes: the output follows; the published blob does not yield it; this device could not."""
JOB_HEAD = struct.Struct(">I")
ANSWER_HEAD = struct.Struct(">BH")
REASON_BYTES_MAX = 400
NICE = 10
"""Choice: half of what there is; whatever a person does on this device goes first."""
_IOPRIO_LOWEST = 2 << 13 | 7
"""Best effort, lowest level. Not idle: a busy disk never serves that, and a job that waits for ever looks like a hang."""
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30}
_PR_SET_PDEATHSIG = 1
_NO_MEMORY = "it needs more memory than the worker may have"


class Job(msgspec.Struct, frozen=True):
    """Decode the file ``blob``, which has to hash to ``segment``. Sizes in bytes."""

    kind: Kind
    blob: str
    segment: bytes
    blob_bytes: int
    base_bytes: int
    output_bytes: int


def serve(jobs: BinaryIO, answers: BinaryIO, gzip: Gzip | None = None) -> None:
    """Do jobs until there are no more, or one that failed for a reason that may be this process."""
    while len(head := jobs.read(JOB_HEAD.size)) == JOB_HEAD.size:
        job = msgspec.msgpack.decode(jobs.read(*JOB_HEAD.unpack(head)), type=Job)
        if not _serve_one(job, jobs, answers, gzip):
            return


def _serve_one(job: Job, jobs: BinaryIO, answers: BinaryIO, gzip: Gzip | None) -> bool:
    """Nothing of a job is kept for the next one. Returns whether there may be a next one."""
    output, outcome, reason = b"", DONE, ""
    try:
        # Buffered readers fill a read of this size in place: the base is in memory once.
        base = jobs.read(job.base_bytes)
        if len(base) != job.base_bytes:
            return False
        blob = read_blob(Path(job.blob), job.segment, job.blob_bytes)
        output = decode_blob_untrusted(job.kind, blob, base, job.output_bytes, gzip.packer() if gzip else None)
    except (BlobChanged, CannotPack) as error:
        outcome, reason = FAILED, str(error)
    except UntrustedBytes as error:
        # Decoders count a want of memory among the faults of what they were given.
        short = isinstance(error.__context__, MemoryError)
        outcome, reason = (FAILED, _NO_MEMORY) if short else (WRONG, error.message)
    except MemoryError:
        outcome, reason = FAILED, _NO_MEMORY
    said = reason.encode()[:REASON_BYTES_MAX]
    _write(answers, ANSWER_HEAD.pack(outcome, len(said)) + said)
    _write(answers, output)
    return outcome != FAILED


class BlobChanged(Exception):
    """The file is not, or not any more, the blob that was verified when it arrived."""


def read_blob(path: Path, segment: bytes, size_bytes: int) -> bytes:
    """The file ``path``, which has to have ``size_bytes`` bytes and hash to ``segment``. Raises ``BlobChanged``."""
    try:
        with path.open("rb", buffering=0) as file:
            blob = file.read(size_bytes + 1) or b""
    except OSError as error:
        raise BlobChanged(f"its file cannot be read: {error.strerror}") from None
    if len(blob) != size_bytes or SegmentId.of(blob) != segment:
        raise BlobChanged("its file changed since it was fetched")
    return blob


def _write(answers: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[answers.write(view) :]


def step_back() -> None:
    """The lowest priority that still gets served. On Linux this concerns the calling thread only; elsewhere it is the process,
    and the disk is shared as it comes."""
    with contextlib.suppress(OSError):
        os.nice(NICE)
    number = _IOPRIO_SET.get(platform.machine())
    if sys.platform == "linux" and number is not None:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).syscall(number, 1, 0, _IOPRIO_LOWEST)


def _confine(memory_bytes_max: int) -> None:
    """Bound the memory of this process, and leave no picture of it on disk when it crashes."""
    # On Linux this counts all private writable memory and not the code of libraries, which no device is short of.
    kind = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
    for limit, value in ((kind, memory_bytes_max), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(limit, (value, value))


def _die_with_daemon() -> None:
    # Elsewhere than on Linux the end of the input is noticed after the job in hand.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    _die_with_daemon()
    # An interrupt from the terminal reaches the daemon too, which then ends its worker.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    step_back()
    _confine(int(sys.argv[1]))
    with open(1, "wb", buffering=0, closefd=False) as answers:
        serve(sys.stdin.buffer, answers, Gzip(sys.argv[2]) if len(sys.argv) > 2 else None)


if __name__ == "__main__":
    main()

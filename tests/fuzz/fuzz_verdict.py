"""What counts as a finding, for the long run and for the replay alike: one input, one decoder, one verdict.

A decoder may return, or raise one of its documented errors. Anything else is a finding: another exception (``crash``), more
processor time than the limit (``slow``), a higher peak of memory than the limit because of one input (``memory``).
"""

from __future__ import annotations

import hashlib
import resource
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fuzz_mutations import Form

from pcm_p2p.errors import UntrustedBytes

REGRESSIONS = Path(__file__).parent / "regressions"


@dataclass(frozen=True)
class Decoder:
    """``decode`` eats foreign bytes; ``samples`` gives valid ones, made by the real encoders. ``input_bytes_max`` is where the
    fuzzer stops to grow inputs (decoders refuse larger ones by length, which needs no fuzzing)."""

    name: str
    decode: Callable[[bytes], object]
    samples: Callable[[], Sequence[bytes]]
    form: Form = "bytes"
    allowed: tuple[type[Exception], ...] = (UntrustedBytes,)
    input_bytes_max: int = 8_192
    memory_bytes_max: int = 48 << 20
    cpu_s_max: float = 1.0


@dataclass(frozen=True)
class Finding:
    kind: str
    where: str
    detail: str

    @property
    def same_as(self) -> str:
        """Findings with the same text have the same cause, as far as a machine can tell."""
        return f"{self.kind} {self.where}"


def judge(decoder: Decoder, data: bytes) -> Finding | None:
    """Feed ``data`` to ``decoder``; the finding if there is one."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin_s = time.process_time()
    try:
        decoder.decode(data)
    except decoder.allowed:
        pass
    except Exception as error:  # whatever it is, it is the finding
        last = traceback.extract_tb(error.__traceback__)[-1]
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/pcm_p2p/" in frame.filename]
        frame = ours[-1] if ours else last
        where = f"{type(error).__name__} {Path(frame.filename).name}:{frame.name}"
        return Finding("crash", where, "".join(traceback.format_exception(error)[-6:]))
    spent_s = time.process_time() - begin_s
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) << 10
    if spent_s > decoder.cpu_s_max:
        return Finding("slow", decoder.name, f"{spent_s:.2f} s of processor time for {len(data)} bytes")
    if grown > decoder.memory_bytes_max:
        return Finding("memory", decoder.name, f"{grown >> 20} MiB for {len(data)} bytes")
    return None


def keep(decoder: Decoder, data: bytes) -> Path:
    """Write ``data`` where the suite replays it from now on."""
    path = REGRESSIONS / f"{decoder.name}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path

"""How fast files become chunks and segments, and what share of plain hashing and copying that is.

Each measurement runs in a fresh process on the same file: *hash and copy* (SHA-256 while copying, the least that any tool
that publishes a file does), *ingest without compression*, and, with ``--level``, *ingest at that level*. Megabytes are of the
stored form. A second of a core is CPU time, so other work on the machine changes it little; wall time is given too. Peak
memory is the process's own high-water mark (workers not included: a worker holds one segment and its compressor).

    .venv/bin/python bench/ingest.py [--size-mb 400] [--level 19] [--file PATH] [--json]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from pcm_p2p.content.publishing.ingest import ingest

MB = 1_000_000
TARGET_MB_PER_CORE_SECOND = 300


def sample(path: Path, size_bytes: int) -> None:
    """Distinct bytes that compress to about a half: blocks of noise, each followed by words of a small dictionary."""
    rng = random.Random(1)
    words = b"".join(rng.choices([rng.randbytes(7) for _ in range(500)], k=20_000))
    with path.open("wb") as file:
        while (left := size_bytes - file.tell()) > 0:
            at = rng.randrange(60_000)
            file.write((rng.randbytes(64 << 10) + words[at : at + (64 << 10)])[:left])


def hash_and_copy(source: Path, work: Path) -> int:
    digest = hashlib.sha256()
    with source.open("rb", buffering=0) as file, (work / "copy").open("wb", buffering=0) as copy:
        while block := file.read(1 << 20):
            digest.update(block)
            copy.write(block)
    return source.stat().st_size


def ingest_at(level: int, source: Path, work: Path) -> tuple[int, int]:
    made = ingest([source], release="bench", version="1", counter=1, work=work, level=level, processes=2)
    return made.stored_bytes, sum(segment.size for segment in made.manifest.segments)


def measure(what: str, source: Path, work: Path) -> None:
    """In the fresh process: do it once, print the figures."""
    begun = time.monotonic()
    segment_bytes = 0
    if what == "copy":
        size_bytes = hash_and_copy(source, work)
    else:
        size_bytes, segment_bytes = ingest_at(int(what), source, work)
    wall_s = time.monotonic() - begun
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    peak = next(
        int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    figures = {
        "mb": size_bytes / MB,
        "wall_s": wall_s,
        "core_s": sum(one.ru_utime + one.ru_stime for one in used),
        "peak_mb": peak * 1024 / MB,
        "segment_mb": segment_bytes / MB,
    }
    print(json.dumps(figures))


def in_fresh_process(what: str, source: Path, runs: int) -> dict[str, float]:
    """The best of ``runs`` by CPU time."""
    best: dict[str, float] = {}
    for _ in range(runs):
        with tempfile.TemporaryDirectory(dir=source.parent) as work:
            command = [sys.executable, __file__, "--measure", what, "--file", str(source), "--work", work]
            figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        best = min(best or figures, figures, key=lambda one: one["core_s"])
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mb", type=int, default=400)
    parser.add_argument("--level", type=int, help="measure with compression too")
    parser.add_argument("--file", type=Path, help="a file of your own instead of the sample")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.measure, asked.file, asked.work)
        return
    with tempfile.TemporaryDirectory() as folder:
        source = asked.file
        if source is None:
            source = Path(folder) / "sample.bin"
            sample(source, asked.size_mb * MB)
        else:
            source = Path(folder) / asked.file.name
            source.symlink_to(asked.file.absolute())
        copy = in_fresh_process("copy", source, asked.runs)
        plain = in_fresh_process("0", source, asked.runs)
        packed = in_fresh_process(str(asked.level), source, 1) if asked.level else None
    rate = plain["mb"] / plain["core_s"]
    ceiling = copy["mb"] / copy["core_s"]
    result = {
        "schema": "pcm.bench.ingest/1",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "size_mb": round(plain["mb"], 1),
        "hash_and_copy_mb_per_core_s": round(ceiling, 1),
        "ingest_mb_per_core_s": round(rate, 1),
        "ratio_to_hash_and_copy": round(rate / ceiling, 3),
        "ingest_mb_per_s": round(plain["mb"] / plain["wall_s"], 1),
        "peak_mb": round(plain["peak_mb"], 1),
        "target_mb_per_core_s": TARGET_MB_PER_CORE_SECOND,
        "met": rate >= TARGET_MB_PER_CORE_SECOND,
    }
    if packed:
        result["compressed"] = {
            "level": asked.level,
            "mb_per_s": round(packed["mb"] / packed["wall_s"], 2),
            "size_to_stored": round(packed["segment_mb"] / packed["mb"], 3),
            "peak_mb": round(packed["peak_mb"], 1),
        }
    if asked.json:
        print(json.dumps(result))
        return
    print(f"hash and copy        {result['hash_and_copy_mb_per_core_s']:8} MB a second of a core")
    print(
        f"ingest, level 0      {result['ingest_mb_per_core_s']:8} MB a second of a core, {result['ingest_mb_per_s']} MB/s wall"
    )
    print(f"ratio                {result['ratio_to_hash_and_copy']:8}")
    print(f"peak memory          {result['peak_mb']:8} MB")
    if packed:
        compressed = result["compressed"]
        print(
            f"ingest, level {asked.level:<3}    {compressed['mb_per_s']:8} MB/s wall, to {compressed['size_to_stored']:.1%}"
        )  # type: ignore[index]
    print(
        f"target               {TARGET_MB_PER_CORE_SECOND:8} MB a second of a core: {'met' if result['met'] else 'NOT MET'}"
    )


if __name__ == "__main__":
    main()

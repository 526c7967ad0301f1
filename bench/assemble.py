"""How fast a device makes a file of chunks, and what share of plain copying that is.

The store on disk holds one artifact of distinct chunks; assembling reads, unpacks and verifies each, hashes the whole,
writes, flushes and renames. The ceiling, measured in the same run on the same bytes, copies the file with SHA-256 and fsync.
Both are the best of ``--runs``; a second of a core is CPU time, wall time is given too. Memory is the most that a process of
its own, which does nothing else, ever had resident (``VmHWM``).

    .venv/bin/python bench/assemble.py [--size-mb 400] [--json]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from pcm_p2p.content.chunk import Chunk
from pcm_p2p.content.keeping.assemble import assemble
from pcm_p2p.content.keeping.store import ChunkStore
from pcm_p2p.content.manifest import SCHEMA, Artifact, ChunkerParameters, Manifest

MB = 1_000_000
CHUNK_BYTES = 320 << 10
"""What the default chunker makes on average."""
TARGET_MB_PER_S = 200
TARGET_MEMORY_MB = 64


def fill(store: ChunkStore, size_bytes: int) -> Manifest:
    """A release of one artifact whose bytes compress to about a half."""
    rng = random.Random(1)
    words = b"".join(rng.choices([rng.randbytes(7) for _ in range(500)], k=40_000))
    ids, sha256, count = [], hashlib.sha256(), max(1, size_bytes // CHUNK_BYTES)
    for _ in range(count):
        at = rng.randrange(100_000)
        chunk = Chunk.of(rng.randbytes(CHUNK_BYTES // 2) + words[at : at + CHUNK_BYTES // 2])
        store.put(chunk)
        sha256.update(chunk.data)
        ids.append(chunk.id)
    size, digest = count * CHUNK_BYTES, sha256.digest()
    positions = struct.pack(f"<{count}I", *range(count))
    return Manifest(
        schema=SCHEMA,
        release="bench",
        version="1",
        counter=1,
        chunker=ChunkerParameters("fastcdc2020/nc1", 65536, 262144, 1048576),
        artifacts=(Artifact("bench.bin", "exact", size, digest, size, digest, positions),),
        chunk_ids=b"".join(ids),
        chunk_sizes=struct.pack(f"<{count}I", *[CHUNK_BYTES] * count),
        segments=(),
    )


def copy(source: Path, destination: Path) -> None:
    digest = hashlib.sha256()
    with source.open("rb", buffering=0) as file, destination.open("wb", buffering=0) as target:
        while block := file.read(1 << 20):
            digest.update(block)
            target.write(block)
        os.fsync(target.fileno())


def peak_mb() -> float:
    """The most that this process had resident so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / MB


def assemble_alone(folder: Path) -> None:
    """In a process of its own: assemble, and print the peak before and at the end."""
    manifest = msgspec.msgpack.decode((folder / "manifest").read_bytes(), type=Manifest)
    store = ChunkStore(folder / "store", 1 << 40).open().scan()
    before = peak_mb()
    assemble(manifest, manifest.artifacts[0], store, folder / "alone.bin")
    print(json.dumps([before, peak_mb()]))


def measure_memory(manifest: Manifest, folder: Path) -> tuple[float, float]:
    (folder / "manifest").write_bytes(manifest.encoded)
    words = [sys.executable, __file__, "--alone", str(folder)]
    before, peak = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, timeout=600).stdout)
    return before, peak


def rates(act: Callable[[], object], size_bytes: int, runs: int) -> tuple[float, float]:
    """MB a second of wall time, and of CPU time; the best of each."""
    wall, core = [], []
    for _ in range(runs):
        begun, used = time.monotonic(), time.process_time()
        act()
        wall.append(size_bytes / MB / (time.monotonic() - begun))
        core.append(size_bytes / MB / (time.process_time() - used))
    return max(wall), max(core)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mb", type=int, default=400)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.alone is not None:
        assemble_alone(asked.alone)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = ChunkStore(folder / "store", 4 * asked.size_mb * MB).open()
        manifest = fill(store, asked.size_mb * MB)
        artifact = manifest.artifacts[0]
        out = folder / "bench.bin"
        wall, core = rates(lambda: assemble(manifest, artifact, store, out), artifact.stored_size, asked.runs)
        memory_before, memory = measure_memory(manifest, folder)
        copy_wall, copy_core = rates(lambda: copy(out, folder / "copy"), artifact.stored_size, asked.runs)
    result = {
        "schema": "pcm.bench.assemble/1",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "size_mb": round(artifact.stored_size / MB, 1),
        "copy_mb_per_s": round(copy_wall, 1),
        "copy_mb_per_core_s": round(copy_core, 1),
        "assemble_mb_per_s": round(wall, 1),
        "assemble_mb_per_core_s": round(core, 1),
        "ratio_to_copy": round(core / copy_core, 3),
        "target_mb_per_s": TARGET_MB_PER_S,
        "met": wall >= TARGET_MB_PER_S,
        "memory_before_mb": round(memory_before, 1),
        "memory_peak_mb": round(memory, 1),
        "target_memory_mb": TARGET_MEMORY_MB,
        "memory_met": memory <= TARGET_MEMORY_MB,
    }
    if asked.json:
        print(json.dumps(result))
        return
    print(f"copy with hash and fsync  {copy_wall:8.1f} MB/s wall, {copy_core:8.1f} MB a second of a core")
    print(f"assemble                  {wall:8.1f} MB/s wall, {core:8.1f} MB a second of a core")
    print(f"ratio                     {result['ratio_to_copy']:8} (of a core)")
    print(f"target                    {TARGET_MB_PER_S:8} MB/s wall: {'met' if result['met'] else 'NOT MET'}")
    print(
        f"memory                    {memory:8.1f} MB resident at most, {memory_before:.1f} of them before the first chunk"
    )
    print(f"target                    {TARGET_MEMORY_MB:8} MB: {'met' if result['memory_met'] else 'NOT MET'}")


if __name__ == "__main__":
    main()

"""How fast a device decodes deltas, and what share of decoding without a process of its own that is.

For each pair OLD NEW of stored forms, one run of 16 MiB of NEW is made a delta, as level 19 makes it, from the same place in OLD
with 4 MiB on either side, in a store on disk. Then the run is decoded from the store into another one: by the worker process, by
the same code in this process, and by the decoder alone (unpack and apply, bytes to bytes), which is the ceiling that the patch
itself sets.
Figures are MB of output a second of wall time (the best of ``--runs``) and of CPU time of both processes (the mean); the ratio
is that of CPU time, which other work on the machine does not spoil. A full segment of the same run is there to compare.

    .venv/bin/python bench/decode.py [--json] [OLD NEW]...

Without files a pair is made up: words, of which every four thousandth byte changed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import struct
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import trio

from pcm_p2p.content.chunk import Chunk
from pcm_p2p.content.decoding.decoder import Decoder, InlineDecoder
from pcm_p2p.content.decoding.job import decode_blob_untrusted
from pcm_p2p.content.delta.blob import encode_delta
from pcm_p2p.content.keeping.store import ChunkStore
from pcm_p2p.content.manifest import SCHEMA, Base, ChunkerParameters, Manifest, Segment
from pcm_p2p.content.segment import encode_full
from pcm_p2p.ids import SegmentId

MB, MIB = 1_000_000, 1 << 20
RUN_BYTES, MARGIN_BYTES, CHUNK_BYTES = 16 * MIB, 4 * MIB, 256 << 10
TARGET_MB_PER_S = 100


@dataclass(frozen=True)
class Run:
    """A run that is published as a delta (segment 1) and as a full segment (0), whose base is in ``folder / "store"``."""

    name: str
    folder: Path
    manifest: Manifest
    base: bytes
    output_bytes: int

    def blob(self, index: int) -> Path:
        return self.folder / str(index)

    def store(self, name: str) -> ChunkStore:
        return ChunkStore(self.folder / name, 1 << 40).open()


def cut(data: bytes) -> list[Chunk]:
    return [Chunk.of(data[at : at + CHUNK_BYTES]) for at in range(0, len(data), CHUNK_BYTES)]


def run_of(name: str, old: bytes, new: bytes, folder: Path) -> Run:
    at = max(0, (len(new) - RUN_BYTES) // 2)
    output = new[at : at + RUN_BYTES]
    # What occurs twice is one chunk in the table, and once in the base.
    aids = list(
        {chunk.id: chunk for chunk in cut(old[max(0, at - MARGIN_BYTES) : at + RUN_BYTES + MARGIN_BYTES])}.values()
    )
    base, chunks = b"".join(chunk.data for chunk in aids), cut(output)
    blobs = (encode_full([output], 19), encode_delta(base, output, thorough=True))
    folder.mkdir()
    for index, blob in enumerate(blobs):
        (folder / str(index)).write_bytes(blob)
    full, delta = (bytes(SegmentId.of(blob)) for blob in blobs)
    count = len(chunks)
    manifest = Manifest(
        schema=SCHEMA,
        release="bench",
        version="1",
        counter=1,
        chunker=ChunkerParameters("fastcdc2020/nc1", 65536, 262144, 1048576),
        artifacts=(),
        chunk_ids=b"".join(chunk.id for chunk in chunks),
        chunk_sizes=struct.pack(f"<{count}I", *(len(chunk.data) for chunk in chunks)),
        segments=(
            Segment(full, len(blobs[0]), "full", 0, count),
            Segment(delta, len(blobs[1]), "delta", 0, count, tuple(range(count, count + len(aids)))),
        ),
        bases=(Base("0", bytes(32)),),
        aid_ids=b"".join(chunk.id for chunk in aids),
        aid_sizes=struct.pack(f"<{len(aids)}I", *(len(chunk.data) for chunk in aids)),
    )
    run = Run(name, folder, manifest, base, len(output))
    store = run.store("store")
    for chunk in aids:
        store.put(chunk)
    return run


def made_up() -> tuple[str, bytes, bytes]:
    rng = random.Random(1)
    words = [rng.randbytes(7) for _ in range(30_000)]
    old = b"".join(rng.choices(words, k=(RUN_BYTES + 2 * MARGIN_BYTES) // 7))
    new = bytearray(old)
    for at in range(0, len(new), 4_000):
        new[at] ^= 1
    return "made up", old, bytes(new)


def used_s(decoder: Decoder) -> float:
    """CPU time of this process and of the worker."""
    ticks = 0
    if decoder.pid is not None:
        fields = Path(f"/proc/{decoder.pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


async def rates(
    act: Callable[[int], Awaitable[object]], decoder: Decoder, output_bytes: int, runs: int
) -> tuple[float, float]:
    """MB a second of wall time, the best; and of CPU time, the mean, since a worker's is counted in hundredths."""
    best, used = 0.0, -used_s(decoder)
    for number in range(runs):
        begun = time.monotonic()
        await act(number)
        best = max(best, output_bytes / MB / (time.monotonic() - begun))
    return round(best, 1), round(output_bytes * runs / MB / (used + used_s(decoder)), 1)


async def measure(run: Run, runs: int) -> dict[str, object]:
    base = run.store("store")

    async def into_store(what: str, decoder: Decoder | InlineDecoder, index: int, number: int) -> None:
        store = run.store(f"{what}-{index}-{number}")

        def put(_position: int, chunk: Chunk) -> None:
            store.put(chunk)

        segment = run.manifest.segments[index]
        await decoder.decode(segment, run.manifest, run.blob(index), base.get, put)

    async def alone(index: int, _number: int) -> None:
        blob, kind = await trio.Path(run.blob(index)).read_bytes(), run.manifest.segments[index].kind
        decode_blob_untrusted(kind, blob, run.base if kind == "delta" else b"", run.output_bytes)

    row: dict[str, object] = {"name": run.name, "output_mb": round(run.output_bytes / MB, 1)}
    async with Decoder() as decoder:
        begun = time.monotonic()
        await into_store("first", decoder, 1, 0)
        row["first_delta_s"] = round(time.monotonic() - begun, 3)
        for index, kind in ((1, "delta"), (0, "full")):
            process = await rates(partial(into_store, "process", decoder, index), decoder, run.output_bytes, runs)
            here = InlineDecoder()
            await into_store("first-inline", here, index, 0)  # which looks for gzip, once
            inline = await rates(partial(into_store, "inline", here, index), decoder, run.output_bytes, runs)
            ceiling = await rates(partial(alone, index), decoder, run.output_bytes, runs)
            row |= {
                f"{kind}_bytes": run.manifest.segments[index].size,
                f"{kind}_mb_per_s": process[0],
                f"{kind}_mb_per_core_s": process[1],
                f"{kind}_inline_mb_per_s": inline[0],
                f"{kind}_inline_mb_per_core_s": inline[1],
                f"{kind}_alone_mb_per_s": ceiling[0],
                f"{kind}_alone_mb_per_core_s": ceiling[1],
                f"{kind}_ratio_to_inline": round(process[1] / inline[1], 2),
            }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", metavar="OLD NEW")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if len(asked.files) % 2:
        parser.error("files come in pairs: OLD NEW")
    pairs = [
        (new.name, old.read_bytes(), new.read_bytes())
        for old, new in zip(asked.files[::2], asked.files[1::2], strict=True)
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, pair in enumerate(pairs or [made_up()]):
            rows.append(trio.run(measure, run_of(*pair, Path(folder) / str(number)), asked.runs))
    if asked.json:
        facts = {"schema": "pcm.bench.decode/1", "at": datetime.now(UTC).isoformat(timespec="seconds")}
        print(json.dumps({**facts, "target_mb_per_s": TARGET_MB_PER_S, "pairs": rows}))
        return
    for row in rows:
        print(f"{row['name']}: {row['output_mb']} MB of output; with the start of its process {row['first_delta_s']} s")
        for kind in ("delta", "full"):
            for label, key in (("process", ""), ("without", "_inline"), ("decoder alone", "_alone")):
                wall, core = row[f"{kind}{key}_mb_per_s"], row[f"{kind}{key}_mb_per_core_s"]
                print(f"  {kind:5}  {label:13} {wall:>7} MB/s wall, {core:>7} MB a second of a core")
            print(f"  {kind:5}  ratio         {row[f'{kind}_ratio_to_inline']:>7} (of a core)")


if __name__ == "__main__":
    main()

"""What ``bench/delta.py`` measures of this project, each in a fresh process: ``delta_ours.py WHAT ARGUMENT…`` prints JSON."""

from __future__ import annotations

import json
import lzma
import mmap
import re
import sys
from collections.abc import Callable
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from time import monotonic
from typing import Any

import msgspec
import zstandard

from pcm_p2p.content.chunk import Chunk
from pcm_p2p.content.decoding.gzip_program import find_gzip
from pcm_p2p.content.delta.blob import decode_delta_untrusted
from pcm_p2p.content.forms.stored_form import detect, write_stored
from pcm_p2p.content.manifest import Manifest, decode_untrusted
from pcm_p2p.content.publishing.bases import BaseRelease
from pcm_p2p.content.publishing.chunker import cut, parameters_for
from pcm_p2p.content.publishing.ingest import ingest
from pcm_p2p.content.segment import decode_full_untrusted
from pcm_p2p.ids import ChunkId

LEVEL = 19
PROCESSES = 2
XZ_BYTES = 16 << 20


def stored(source: Path, destination: Path) -> dict[str, Any]:
    write_stored(source, detect(source), destination)
    return {}


def cdc_publish(old: Path, new: Path, blobs: Path) -> dict[str, Any]:
    """The new chunks in one file of ``[id, sealed or empty]``, which is what an endpoint needs and does not have."""
    parameters = parameters_for(new.stat().st_size)
    with old.open("rb", buffering=0) as file:
        had = {ChunkId.of(piece) for piece in cut(file, parameters)}
    packer, described, size = zstandard.ZstdCompressor(level=LEVEL), list[tuple[bytes, bytes]](), 0
    with new.open("rb", buffering=0) as file:
        for piece in cut(file, parameters):
            chunk = ChunkId.of(piece)
            blob = b"" if chunk in had else packer.compress(piece)
            had.add(chunk)
            size += len(blob)
            described.append((bytes(chunk), blob))
    blobs.write_bytes(msgspec.msgpack.encode(described))
    return {"size_bytes": size}


def cdc_apply(old: Path, blobs: Path, out: Path) -> dict[str, Any]:
    described = msgspec.msgpack.decode(blobs.read_bytes(), type=list[tuple[bytes, bytes]])
    unpacker, place = zstandard.ZstdDecompressor(), dict[ChunkId, tuple[int, int]]()
    with old.open("rb", buffering=0) as file:
        at = 0
        for piece in cut(file, parameters_for(old.stat().st_size)):
            place[ChunkId.of(piece)] = at, len(piece)
            at += len(piece)
    with old.open("rb") as file, out.open("w+b") as target:
        made = dict[ChunkId, tuple[int, int]]()
        for name, blob in described:
            chunk = ChunkId(name)
            if blob:
                data = Chunk.verified(chunk, unpacker.decompress(blob)).data
                made[chunk] = target.tell(), len(data)
            else:
                source, (at, size) = (target, made[chunk]) if chunk in made else (file, place[chunk])
                end = target.tell()
                source.seek(at)
                data = source.read(size)
                target.seek(end)
            target.write(data)
    return {}


def _named(deb: Path, work: Path) -> Path:
    """The file under a name that a release may have: apt writes colons as %3a."""
    link = work / re.sub(r"[^A-Za-z0-9._+~-]", "_", deb.name)
    if not link.exists():
        link.symlink_to(deb)
    return link


def publish_old(deb: Path, work: Path, level: Path) -> dict[str, Any]:
    files = [_named(deb, work)]
    made = ingest(
        files, release="bench", version="old", counter=1, work=work, level=int(level.name), processes=PROCESSES
    )
    (work / "old.manifest").write_bytes(made.manifest.encoded)
    return {}


def publish_new(deb: Path, work: Path, level: Path) -> dict[str, Any]:
    base = decode_untrusted((work / "old.manifest").read_bytes())
    made = ingest(
        [_named(deb, work)],
        release="bench",
        version="new",
        counter=2,
        work=work,
        level=int(level.name),
        processes=PROCESSES,
        bases=[BaseRelease(base, work / "segments", required=True)],
    )
    manifest = made.manifest
    (work / "new.manifest").write_bytes(manifest.encoded)
    layouts = sum(segment.size for _, segment in manifest.layout_segments())
    return {
        "size_bytes": sum(manifest.segments[place].size for place in fetched(manifest, base)),
        "manifest_bytes": len(manifest.encoded),
        "manifest_packed_bytes": len(zstandard.ZstdCompressor(level=LEVEL).compress(manifest.encoded)),
        "full_segment_bytes": sum(segment.size for _, segment in manifest.full_segments()),
        "delta_segment_bytes": sum(segment.size for segment in manifest.segments if segment.kind == "delta"),
        "layout_segment_bytes": layouts,
        "segments": {
            kind: sum(segment.kind == kind for segment in manifest.segments) for kind in ("full", "delta", "layout")
        },
    }


def fetched(manifest: Manifest, base: Manifest) -> list[int]:
    """The segments, as places in the manifest, that an office fetches which has all of ``base``: one a run, or none."""
    had, places = set(base.chunks), list[int]()
    for index, segment in manifest.full_segments():
        if not all(manifest.chunks[position] in had for position in segment.positions):
            choice = [index, *manifest.deltas.get(index, ())]
            places.append(min(choice, key=lambda place: manifest.segments[place].size))
    return places


def apply_new(old: Path, work: Path, out: Path) -> dict[str, Any]:
    """From the old stored form and blobs to the new stored form, every chunk verified; base bytes are read where they lie."""
    base, manifest = (decode_untrusted((work / f"{which}.manifest").read_bytes()) for which in ("old", "new"))
    place_of = _places(base)
    written = dict[ChunkId, tuple[int, int]]()
    decoded_bytes, deltas, gzip = 0, 0, find_gzip()
    with old.open("rb") as file, out.open("w+b") as target:
        source = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

        def had(chunk: ChunkId) -> bytes:
            at, size = place_of[chunk]
            return source[at : at + size]

        wanted = _places(manifest)
        target.truncate(manifest.artifacts[0].stored_size)
        wall_s = core_s = 0.0
        for index in fetched(manifest, base):
            segment = manifest.segments[index]
            ids = [manifest.chunks[position] for position in segment.positions]
            sizes = [manifest.sizes[position] for position in segment.positions]
            blob = (work / "segments" / segment.segment_id.hex()[:2] / segment.segment_id.hex()).read_bytes()
            since = monotonic(), _core_s()
            if segment.kind == "delta":
                joined = b"".join(had(manifest.table_chunks[position]) for position in segment.base)
                output = decode_delta_untrusted(blob, joined, sum(sizes), gzip.packer())
                data, at, chunks = memoryview(output), 0, list[Chunk]()
                for chunk, size in zip(ids, sizes, strict=True):
                    chunks.append(Chunk.verified(chunk, bytes(data[at : at + size])))
                    at += size
                deltas += 1
            else:
                chunks = list(decode_full_untrusted(blob, ids, sizes))
            wall_s, core_s = wall_s + monotonic() - since[0], core_s + _core_s() - since[1]
            decoded_bytes += sum(sizes)
            for one in chunks:
                target.seek(wanted[one.id][0])
                target.write(one.data)
                written[one.id] = wanted[one.id]
        target.flush()
        at = 0
        for position in manifest.artifacts[0].chunk_positions():
            chunk, size = manifest.chunks[position], manifest.sizes[position]
            if written.get(chunk, (-1, 0))[0] != at:
                target.seek(at)
                if chunk in written:
                    target.seek(written[chunk][0])
                    data_again = target.read(size)
                    target.seek(at)
                    target.write(data_again)
                else:
                    target.write(Chunk.verified(chunk, had(chunk)).data)
            at += size
    return {
        "decoded_bytes": decoded_bytes,
        "decoding_wall_s": wall_s,
        "decoding_core_s": core_s,
        "deltas": deltas,
        "gzip_deltas": sum(manifest.segments[place].needs_gzip for place in fetched(manifest, base)),
    }


def _core_s() -> float:
    """Seconds of a core that this process and the programs that it ran have taken."""
    return sum(usage.ru_utime + usage.ru_stime for usage in map(getrusage, (RUSAGE_SELF, RUSAGE_CHILDREN)))


def _places(manifest: Manifest) -> dict[ChunkId, tuple[int, int]]:
    """Where each chunk of the only artifact lies in its stored form, at its first place, and its size."""
    places, at = dict[ChunkId, tuple[int, int]](), 0
    for position in manifest.artifacts[0].chunk_positions():
        places.setdefault(manifest.chunks[position], (at, manifest.sizes[position]))
        at += manifest.sizes[position]
    return places


def xz(stored_form: Path) -> dict[str, Any]:
    """How fast xz alone is here and now, at the preset of level 19: seconds of a core a MB, over 16 MiB of the middle."""
    with stored_form.open("rb") as file:
        file.seek(max(0, (stored_form.stat().st_size - XZ_BYTES) // 2))
        data = file.read(XZ_BYTES)
    begun = _core_s()
    lzma.compress(data, preset=6)
    return {"xz_mb_per_core_s": len(data) / 1_000_000 / (_core_s() - begun)}


WHAT: dict[str, Callable[..., dict[str, Any]]] = {
    "stored": stored,
    "cdc-publish": cdc_publish,
    "cdc-apply": cdc_apply,
    "publish-old": publish_old,
    "publish-new": publish_new,
    "apply-new": apply_new,
    "xz": xz,
}

if __name__ == "__main__":
    print(json.dumps(WHAT[sys.argv[1]](*(Path(argument) for argument in sys.argv[2:]))))

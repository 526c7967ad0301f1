"""Bytes and packages for the tests of the content room: seeded, small, and of the kinds that matter."""

from __future__ import annotations

import hashlib
import io
import lzma
import random
import struct
import subprocess
import tarfile
import zlib
from pathlib import Path

import msgspec

from pcm_p2p.content.chunk import Chunk
from pcm_p2p.content.delta.blob import encode_delta
from pcm_p2p.content.manifest import (
    SCHEMA,
    Artifact,
    Base,
    ChunkerParameters,
    Layout,
    Manifest,
    Segment,
    decode_untrusted,
)
from pcm_p2p.content.segment import encode_full, plan_runs
from pcm_p2p.ids import SegmentId


def noise(size_bytes: int, seed: int = 1) -> bytes:
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(size_bytes)


def text(size_bytes: int, seed: int = 1) -> bytes:
    """Bytes that compress to about a third, and have cut points like real files."""
    rng = random.Random(seed)
    words = [rng.randbytes(rng.randrange(3, 12)) for _ in range(2000)]
    return b"".join(rng.choices(words, k=size_bytes // 3))[:size_bytes]


def chunks_of(*sizes: int, seed: int = 1) -> list[Chunk]:
    """Distinct chunks of these sizes."""
    return [Chunk.of(noise(size, seed * 1000 + number)) for number, size in enumerate(sizes)]


def release_of(chunks: list[Chunk], **artifacts: list[int]) -> Manifest:
    """A manifest over ``chunks`` with one artifact per keyword: the positions of its chunks."""
    runs = plan_runs([len(chunk.data) for chunk in chunks])
    segments = []
    for first, count in runs:
        blob = encode_full((chunk.data for chunk in chunks[first : first + count]), 1)
        segments.append(Segment(bytes(SegmentId.of(blob)), len(blob), "full", first, count))
    described = []
    for name, positions in artifacts.items():
        data = b"".join(chunks[position].data for position in positions)
        sha256 = hashlib.sha256(data).digest()
        packed = struct.pack(f"<{len(positions)}I", *positions)
        described.append(Artifact(name, "exact", len(data), sha256, len(data), sha256, packed))
    manifest = Manifest(
        schema=SCHEMA,
        release="sample",
        version="1",
        counter=1,
        chunker=ChunkerParameters("fastcdc2020/nc1", 65536, 262144, 1048576),
        artifacts=tuple(described),
        chunk_ids=b"".join(chunk.id for chunk in chunks),
        chunk_sizes=struct.pack(f"<{len(chunks)}I", *(len(chunk.data) for chunk in chunks)),
        segments=tuple(segments),
    )
    return decode_untrusted(msgspec.msgpack.encode(manifest))


def with_delta(manifest: Manifest, chunks: list[Chunk], base: list[Chunk], layout: list[Chunk]) -> Manifest:
    """``manifest`` of ``chunks``, with a delta of its first run from ``base`` and the first chunk, and one layout."""
    first = next(segment for _, segment in manifest.full_segments())
    blob = encode_delta(
        b"".join(chunk.data for chunk in [*base, chunks[0]]),
        b"".join(chunks[position].data for position in first.positions),
    )
    packed = encode_full((chunk.data for chunk in layout), 1)
    end = len(chunks) + len(base)
    segments = (
        Segment(
            bytes(SegmentId.of(blob)), len(blob), "delta", first.first, first.count, (*range(len(chunks), end), 0), 0
        ),
        Segment(bytes(SegmentId.of(packed)), len(packed), "layout", end, len(layout)),
    )
    aids = [*base, *layout]
    return decode_untrusted(
        msgspec.msgpack.encode(
            msgspec.structs.replace(
                manifest,
                segments=manifest.segments + segments,
                bases=(Base("0", b"m" * 32),),
                aid_ids=b"".join(chunk.id for chunk in aids),
                aid_sizes=struct.pack(f"<{len(aids)}I", *(len(chunk.data) for chunk in aids)),
                layouts=(Layout(0, "first", "deb", b"s" * 32, end, len(layout), "sample", "0", "all"),),
            )
        )
    )


def xz_with_dictionary(data: bytes, code: int) -> bytes:
    """An xz stream whose header asks for a dictionary of another size than it needs: 36 is 1 GiB, 40 is 4 GiB."""
    stream = bytearray(lzma.compress(data, check=lzma.CHECK_NONE, filters=[{"id": lzma.FILTER_LZMA2, "preset": 0}]))
    # The size is one byte of the block header, behind the filter's id and its length; a CRC ends the header.
    size_bytes = (stream[12] + 1) * 4
    stream[stream.index(b"\x21\x01", 12) + 2] = code
    end = 12 + size_bytes
    stream[end - 4 : end] = struct.pack("<I", zlib.crc32(bytes(stream[12 : end - 4])))
    return bytes(stream)


def tar_of(**members: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def ar_of(*members: tuple[str, bytes]) -> bytes:
    out = b"!<arch>\n"
    for name, data in members:
        out += f"{name:<16}{'1700000000':<12}{'0':<6}{'0':<6}{'100644':<8}{len(data):<10}`\n".encode() + data
        out += b"\n" * (len(data) % 2)
    return out


def zip_of_many(count: int, *, data: bytes = b"", overlapping: bool = False) -> bytes:
    """A zip with members 0000000 …, all of the same content; ``overlapping``: there is only one, with a directory of many."""
    packer = zlib.compressobj(9, wbits=-15)
    packed = packer.compress(data) + packer.flush()
    out, directory = bytearray(), bytearray()
    for number in range(count):
        name = b"%07d" % number
        facts = struct.pack("<5H3I2H", 20, 0, 8, 0, 33, zlib.crc32(data), len(packed), len(data), len(name), 0)
        at = 0 if overlapping else len(out)
        if at == len(out):
            out += b"PK\x03\x04" + facts + name + packed
        directory += b"PK\x01\x02\x14\0" + facts + struct.pack("<3H2I", 0, 0, 0, 0, at) + name
    counted = min(count, 0xFFFF)
    end = struct.pack("<4H2IH", 0, 0, counted, counted, len(directory), len(out), 0)
    return bytes(out + directory + b"PK\x05\x06" + end)


def build_deb(folder: Path, payload: bytes, *, compression: str = "xz", version: str = "1") -> Path:
    """A package made by dpkg-deb itself."""
    tree = folder / f"tree-{compression}-{version}"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        f"Package: sample\nVersion: {version}\nArchitecture: all\nMaintainer: N <n@example.org>\nDescription: sample\n"
    )
    (tree / "opt").mkdir()
    (tree / "opt" / "payload").write_bytes(payload)
    path = folder / f"sample_{version}_{compression}_all.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", f"-Z{compression}", "-b", tree, path],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=120,
    )
    return path

"""The ends of the range of sizes: an artifact of nothing, of one byte, and one whose offsets need more than 31 bits."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import pytest
from content_samples import noise

from pcm_p2p.content.keeping import assemble as assemble_module
from pcm_p2p.content.keeping.assemble import assemble
from pcm_p2p.content.keeping.memory_store import MemoryStore
from pcm_p2p.content.publishing.ingest import Ingested, ingest
from pcm_p2p.content.segment import decode_full_untrusted

GIB = 1 << 30
_ZEROS = bytes(4 << 20)


def ingested(source: Path, level: int = 1) -> Ingested:
    work = source.with_name("work")
    return ingest([source], release="app", version="1", counter=1, work=work, level=level, processes=0)


def arrived(made: Ingested) -> MemoryStore:
    """What a device holds that fetched every segment."""
    store, manifest = MemoryStore(), made.manifest
    for _, segment in manifest.full_segments():
        name = segment.segment_id.hex()
        blob = (made.segments_folder / name[:2] / name).read_bytes()
        ids = [manifest.chunks[position] for position in segment.positions]
        for chunk in decode_full_untrusted(blob, ids, [manifest.sizes[position] for position in segment.positions]):
            store.put(chunk)
    return store


@pytest.mark.parametrize("level", [0, 1, 19])
@pytest.mark.parametrize("data", [b"", b"\0", b"x"], ids=["nothing", "zero", "one byte"])
def test_the_smallest_artifacts_arrive(tmp_path: Path, data: bytes, level: int) -> None:
    source, out = tmp_path / "small.bin", tmp_path / "out"
    source.write_bytes(data)
    made = ingested(source, level)
    (artifact,) = made.manifest.artifacts
    assert (artifact.form, artifact.delivered_size, artifact.stored_size) == ("exact", len(data), len(data))
    assert artifact.stored_sha256 == hashlib.sha256(data).digest()
    assert len(made.manifest.chunks) == len(made.manifest.segments) == len(data)
    assemble(made.manifest, artifact, arrived(made), out)
    assert out.read_bytes() == data


def test_a_release_of_nothing_and_something_arrives(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    contents = {"a-nothing": b"", "b-byte": b"x", "c-more": noise(300_000), "d-nothing": b""}
    for name, data in contents.items():
        (tmp_path / "in" / name).write_bytes(data)
    files = sorted((tmp_path / "in").iterdir())
    made = ingest(files, release="app", version="1", counter=1, work=tmp_path / "work", level=1, processes=0)
    store = arrived(made)
    for artifact in made.manifest.artifacts:
        assemble(made.manifest, artifact, store, tmp_path / artifact.name)
        assert (tmp_path / artifact.name).read_bytes() == contents[artifact.name]


class _Sparse(io.FileIO):
    """A file that stores blocks of zeros as holes, as some file systems do: the test shall not write 3 GiB."""

    def write(self, data: object, /) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        if view.tobytes() == _ZEROS[: len(view)]:
            self.seek(len(view), os.SEEK_CUR)
            return len(view)
        return super().write(view)


@pytest.mark.timeout(900)
def test_an_artifact_of_3_gib_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mostly a hole, so that a few chunks are all there is; the marks lie at the ends and behind 2 GiB."""
    source, out = tmp_path / "large.bin", tmp_path / "out"
    marks = {0: b"begin", 2 * GIB + 12_345: b"behind what 31 bits can say", 3 * GIB - 3: b"end"}
    with source.open("wb") as file:
        file.truncate(3 * GIB)
        for at, mark in marks.items():
            file.seek(at)
            file.write(mark)
    made = ingested(source)
    (artifact,) = made.manifest.artifacts
    assert artifact.stored_size == 3 * GIB
    assert made.unique_bytes < 64 << 20
    assert len(made.manifest.encoded) < 20_000
    temporary = tmp_path / ".out.assembling"
    monkeypatch.setattr(assemble_module, "_create", lambda _: (temporary, _Sparse(temporary, "wb")))
    # Hashes all that it writes, and gives it its name only if that is what ingest read.
    assemble(made.manifest, artifact, arrived(made), out)
    assert out.stat().st_size == 3 * GIB
    with out.open("rb") as file:
        for at, mark in marks.items():
            file.seek(at)
            assert file.read(len(mark)) == mark

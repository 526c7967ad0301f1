"""The manifest decoder: every invariant has a manifest that breaks it and nothing else."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from content_samples import chunks_of, release_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pcm_p2p.content.manifest import SIZE_BYTES_MAX, decode_untrusted
from pcm_p2p.errors import UntrustedBytes

GOOD = release_of(chunks_of(1000, 2000, 3000), first=[0, 1, 0], second=[2])
TREE: dict[str, Any] = msgspec.msgpack.decode(GOOD.encoded)


def u32(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def broken(change: Callable[[dict[str, Any]], object]) -> bytes:
    tree = msgspec.msgpack.decode(GOOD.encoded)
    change(tree)
    return msgspec.msgpack.encode(tree)


def artifact(**fields: object) -> Callable[[dict[str, Any]], object]:
    return lambda tree: tree["artifacts"][0].update(fields)


def segment(**fields: object) -> Callable[[dict[str, Any]], object]:
    return lambda tree: tree["segments"][0].update(fields)


def top(**fields: object) -> Callable[[dict[str, Any]], object]:
    return lambda tree: tree.update(fields)


def test_a_good_manifest_comes_back_whole() -> None:
    again = decode_untrusted(GOOD.encoded)
    assert again == GOOD
    assert again.manifest_id == GOOD.manifest_id
    assert list(again.sizes) == [1000, 2000, 3000]
    assert again.position_of[again.chunks[2]] == 2
    assert list(again.artifact("first").chunk_positions()) == [0, 1, 0]  # type: ignore[union-attr]


def test_the_id_is_over_the_bytes_received() -> None:
    reordered = msgspec.msgpack.encode(dict(reversed(TREE.items())))
    assert decode_untrusted(reordered) == GOOD
    assert decode_untrusted(reordered).manifest_id != GOOD.manifest_id


def test_a_manifest_of_the_first_schema_is_still_read() -> None:
    """As it was written before there were deltas: devices keep some to roll back to."""
    tree = {key: value for key, value in TREE.items() if key not in ("bases", "aid_ids", "aid_sizes", "layouts")}
    tree["schema"] = "pcm.manifest/1"
    tree["segments"] = [{key: value for key, value in one.items() if key != "of"} for one in tree["segments"]]
    again = decode_untrusted(msgspec.msgpack.encode(tree))
    assert again.schema == "pcm.manifest/1"
    assert again.table_chunks == GOOD.chunks
    assert again.segments == GOOD.segments
    assert (again.bases, again.layouts, again.deltas) == ((), (), {})
    assert again.layout_first == 3


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (top(schema="pcm.manifest/3"), "schema"),
        (top(schema="pcm.manifest/"), "schema"),
        (top(extra=1), "extra"),
        (top(release="../x"), "release"),
        (top(version="a/b"), "version"),
        (top(counter=-1), "counter"),
        (top(counter=1 << 63), "counter"),
        (top(artifacts=[]), "artifacts"),
        (lambda tree: tree["artifacts"].append(tree["artifacts"][0]), "same name"),
        (artifact(name="SECOND"), "same name, or names that differ"),
        (artifact(name=".."), "artifact"),
        (artifact(name="../evil"), "artifact"),
        (artifact(name="/etc/passwd"), "artifact"),
        (artifact(name="a/b"), "artifact"),
        (artifact(name="a\\b"), "artifact"),
        (artifact(name="a\0b"), "artifact"),
        (artifact(name=".hidden"), "artifact"),
        (artifact(name="-rf"), "artifact"),
        (artifact(name="con"), "some systems"),
        (artifact(name="Aux.deb"), "some systems"),
        (artifact(name="lpt1.tar.gz"), "some systems"),
        (artifact(name="first."), "some systems"),
        (artifact(form="rpm"), "schema"),
        (artifact(delivered_sha256=b"x"), "SHA-256"),
        (artifact(positions=b"xyz"), "positions"),
        (artifact(positions=u32(0, 1, 3)), "outside the table"),
        (artifact(stored_size=3999), "add up"),
        (artifact(delivered_size=-1), "add up"),
        (artifact(positions=u32(0), stored_size=1000), "no artifact uses"),
        (top(chunk_ids=b"x" * 95), "same number"),
        (top(chunk_sizes=u32(1000, 2000)), "same number"),
        (top(chunk_sizes=u32(0, 2000, 3000)), "chunk size"),
        (top(chunk_sizes=u32(1000, 2000, (4 << 20) + 1)), "chunk size"),
        (top(chunk_ids=TREE["chunk_ids"][:32] * 2 + TREE["chunk_ids"][64:]), "twice"),
        (top(segments=[]), "tile"),
        (segment(first=1, count=2), "tile"),
        (segment(count=2), "tile"),
        (segment(count=4), "outside the table"),
        (segment(first=-1), "outside the table"),
        (segment(count=0), "outside the table"),
        (segment(id=b"x"), "32 bytes"),
        (segment(size=0), "refused"),
        (segment(size=6000 + (64 << 10) + 1), "refused"),
        (segment(base=[0]), "a full segment has no base"),
        (segment(of=1), "a full segment has no base"),
        (segment(kind="other"), "schema"),
        (lambda tree: tree["segments"].append(tree["segments"][0]), "tile"),
    ],
)
def test_each_invariant_is_enforced(change: Callable[[dict[str, Any]], object], why: str) -> None:
    with pytest.raises(UntrustedBytes, match=why):
        decode_untrusted(broken(change))


def test_a_segment_with_too_much_output_is_refused() -> None:
    chunks = chunks_of(*range(10, 16))
    tree = msgspec.msgpack.decode(release_of(chunks, one=list(range(6))).encoded)
    tree["chunk_sizes"] = u32(*[4 << 20] * 6)
    tree["artifacts"][0]["stored_size"] = 6 * (4 << 20)
    with pytest.raises(UntrustedBytes, match="at most 16777216 are allowed"):
        decode_untrusted(msgspec.msgpack.encode(tree))


def test_bad_utf8_is_bad_bytes_like_any_other() -> None:
    with pytest.raises(UntrustedBytes, match="schema"):
        decode_untrusted(GOOD.encoded.replace(b"sample", b"\xff\xfeple", 1))


def test_too_many_bytes_are_not_even_parsed() -> None:
    with pytest.raises(UntrustedBytes, match="at most"):
        decode_untrusted(bytes(SIZE_BYTES_MAX + 1))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(UntrustedBytes):
        decode_untrusted(data)


def test_changed_bytes_are_refused_or_still_a_sound_manifest() -> None:
    rng = random.Random(11)
    for _ in range(300):
        spoilt = bytearray(GOOD.encoded)
        for _ in range(rng.randrange(1, 4)):
            spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
        try:
            manifest = decode_untrusted(bytes(spoilt))
        except UntrustedBytes:
            continue
        assert sum(part.count for _, part in manifest.full_segments()) == len(manifest.chunks)

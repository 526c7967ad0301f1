"""What matching wants to know of a release: its members and anchors, read from its stored forms.

Reading runs at about 1 GB/s; what is kept does not grow with the release.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pyfastcdc import BinaryStreamReader, FastCDC

from pcm_p2p.content.forms.member import Member, normalized
from pcm_p2p.content.forms.members import members
from pcm_p2p.content.manifest import Form
from pcm_p2p.content.publishing.deltas import Pile
from pcm_p2p.content.publishing.matching import Anchors, Side
from pcm_p2p.content.publishing.workplace import storage_error
from pcm_p2p.errors import InputError

ANCHORS_MAX = 1 << 18
"""Choice: about so many anchors a release, which take 60 MB to index; fewer bytes between two are of no use below 512."""
_STEP_BYTES_MIN = 512
_KEY_BYTES = 16
_KEY_MASK = (1 << 64) - 1
_KEY_FACTOR = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored form that lies in ``path`` from ``begin``."""

    name: str
    form: Form
    path: Path
    begin: int
    size: int

    def copy_to(self, destination: Path) -> None:
        """Write it to a file of its own. Raises ``StorageError``."""
        try:
            with self.path.open("rb") as source, destination.open("xb") as target:
                at, end = self.begin, self.begin + self.size
                while at < end and (sent := os.sendfile(target.fileno(), source.fileno(), at, end - at)):
                    at += sent
        except OSError as error:
            raise storage_error(f"{destination} cannot be written", error) from error


def step_for(sizes: Sequence[int]) -> int:
    """How many bytes should lie between two anchors in releases of these sizes: the same for all that are matched."""
    step = _STEP_BYTES_MIN
    while max(sizes, default=0) > step * ANCHORS_MAX:
        step *= 2
    return step


def side_of(artifacts: Sequence[Stored], pile: Pile, positions: Sequence[Sequence[int]], step: int) -> Side:
    """What matching wants to know of a release. ``positions``: the chunks of each artifact in order. Raises ``InputError``."""
    everything, anchors = list[Member](), Anchors()
    offsets, places = array("Q"), array("L")
    at = 0
    for artifact, of_artifact in zip(artifacts, positions, strict=True):
        for member in members(artifact.path, artifact.form, artifact.begin, artifact.begin + artifact.size):
            path = f"{normalized(artifact.name)}/{member.path}"
            everything.append(Member(path, at + member.offset, member.size))
        for offset, key in _anchors(artifact, step):
            anchors.offsets.append(at + offset)
            anchors.keys.append(key)
        for position in of_artifact:
            offsets.append(at)
            places.append(position)
            at += pile.sizes[position]
    return Side(everything, anchors, offsets, places, pile.sizes)


def _anchors(stored: Stored, step: int) -> Iterator[tuple[int, int]]:
    """Offset and key of the anchors in a stored form: see ``matching``."""
    cutter = FastCDC(step, min_size=step // 4, max_size=step * 8, normalized_chunking=1)
    try:
        with stored.path.open("rb", buffering=0) as file:
            file.seek(stored.begin)
            for piece in cutter.cut_stream(cast(BinaryStreamReader, _Part(file, stored.size))):
                head = bytes(piece.data[:_KEY_BYTES])
                if len(head) == _KEY_BYTES and head.strip(b"\0"):
                    high, low = int.from_bytes(head[:8], "little"), int.from_bytes(head[8:], "little")
                    yield piece.offset, (high * _KEY_FACTOR ^ low) & _KEY_MASK
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=stored.path) from None


class _Part:
    """The next so many bytes of a file as a file of their own."""

    def __init__(self, file: object, size: int) -> None:
        self._file, self._left = file, size

    def readinto(self, buffer: memoryview) -> int:
        got: int = self._file.readinto(memoryview(buffer)[: self._left])  # type: ignore[attr-defined]
        self._left -= got
        return got

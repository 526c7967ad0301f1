"""A release that is being made, compared with earlier ones: which of these can be used, which deltas are to be made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pcm_p2p.content.manifest import CHUNKS_MAX
from pcm_p2p.content.publishing.bases import BaseRelease, Rebuilt, Unusable, layouts_of, pack_layout, rebuild
from pcm_p2p.content.publishing.deltas import Delta, PackedLayout, Pile, plan_deltas, that_fit
from pcm_p2p.content.publishing.packing import Workshop
from pcm_p2p.content.publishing.sides import Stored, side_of, step_for
from pcm_p2p.content.publishing.workplace import Workplace
from pcm_p2p.errors import InputError

Tell = Callable[[Literal["rebuilding", "matching"], str, int, int], None]
"""Phase, title of the base, how much is done of how much: bytes while rebuilding, bases while matching."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A base from which no deltas were made, and why."""

    version: str
    reason: str


@dataclass(slots=True)
class Comparison:
    """The bases that can be used, newest first, what is to be made of them, and why the others cannot."""

    rebuilt: list[Rebuilt] = field(default_factory=list)
    deltas: list[Delta] = field(default_factory=list)
    layouts: dict[int, list[PackedLayout]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)


def compare(
    bases: Sequence[BaseRelease],
    artifacts: Sequence[Stored],
    positions: Sequence[Sequence[int]],
    pile: Pile,
    runs: Sequence[tuple[int, int]],
    place: Workplace,
    workshop: Workshop,
    level: int,
    tell: Tell,
) -> Comparison:
    """Compare the release of ``artifacts`` with ``bases``, newest first. Their stored forms stay until the workplace is left.

    Raises ``InputError`` for a base that is required and cannot be used, ``StorageError``, ``DiskFull``.
    """
    found = Comparison()
    _rebuild(bases, found, place, workshop, tell)
    if not found.rebuilt:
        return found
    tell("matching", "", 0, len(found.rebuilt))
    sizes = [sum(artifact.size for artifact in each) for each in (artifacts, *(one.artifacts for one in found.rebuilt))]
    step = step_for(sizes)
    new = side_of(artifacts, pile, positions, step)
    for of, one in enumerate(found.rebuilt):
        of_base = [artifact.chunk_positions() for artifact in one.manifest.artifacts]
        base = side_of(one.artifacts, one.pile, of_base, step)
        layouts = [pack_layout(of, layout, place, level) for layout in layouts_of(one, place)]
        found.layouts[of] = layouts
        found.deltas += plan_deltas(new, pile.chunks, runs, of, base, one.pile.chunks, installable=bool(layouts))
        tell("matching", one.manifest.title, of + 1, len(found.rebuilt))
    layout_chunks = [sum(len(layout.chunks) for layout in found.layouts[of]) for of in range(len(found.rebuilt))]
    fit = that_fit(found.deltas, pile.chunks, [one.pile.chunks for one in found.rebuilt], layout_chunks)
    why = f"the table would have more than {CHUNKS_MAX} chunks"
    found.skipped += [Skipped(one.manifest.version, why) for one in found.rebuilt[fit:]]
    del found.rebuilt[fit:]
    found.deltas = [delta for delta in found.deltas if delta.of < fit]
    return found


def _rebuild(bases: Sequence[BaseRelease], found: Comparison, place: Workplace, workshop: Workshop, tell: Tell) -> None:
    total, before = sum(sum(base.manifest.sizes) for base in bases), 0
    for number, base in enumerate(bases):
        title, done = base.manifest.title, before
        tell("rebuilding", title, done, total)

        def count(size: int, title: str = title, done: int = done) -> None:
            tell("rebuilding", title, done + size, total)

        try:
            found.rebuilt.append(rebuild(base, place.stored / f"base-{number}", workshop, count))
        except Unusable as error:
            if base.required:
                raise InputError(
                    f"{title} cannot be a base: {error}", remedy="Leave it out of --base, or bring its segments back."
                ) from None
            found.skipped.append(Skipped(base.manifest.version, str(error)))
        before += sum(base.manifest.sizes)

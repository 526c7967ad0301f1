"""Parts of segments that lie on the disk: what they are worth when a release is wanted again, and when they go."""

from __future__ import annotations

from pcm_p2p.content.manifest import Manifest
from pcm_p2p.swarm.segment_fetch import SegmentSource


async def look_at_parts(origin: SegmentSource, manifest: Manifest, held: int) -> dict[int, int]:
    """How many percent are here of which segments. ``held``: the chunks in the store (a bit field); what yields only those is
    of no use any more and goes."""
    parts, partial_pct = await origin.parts(), {}
    for index, segment in enumerate(manifest.segments):
        size = parts.get(segment.segment_id, 0)
        if size and not ((1 << segment.count) - 1) << segment.first & ~held:
            await origin.discard(segment.segment_id)
        elif size:
            partial_pct[index] = min(99, 100 * size // segment.size)
    return partial_pct


async def discard_parts(origin: SegmentSource, manifest: Manifest) -> None:
    """The release is complete: what changes of plan left of its segments goes. Layouts are for whoever asks for them."""
    parts = await origin.parts()
    for segment in manifest.segments:
        if segment.kind != "layout" and segment.segment_id in parts:
            await origin.discard(segment.segment_id)

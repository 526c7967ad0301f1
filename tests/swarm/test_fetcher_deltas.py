"""The fetcher's shell with deltas: real blobs, real decoding, over in-memory sessions in virtual time."""

from __future__ import annotations

import msgspec
import pytest
import trio
from office_in_memory import InMemoryOffice, Member, MemoryOrigin, Release, make_release, make_update
from trio.testing import MockClock

from pcm_p2p.content.chunk import Chunk
from pcm_p2p.content.manifest import decode_untrusted
from pcm_p2p.ids import SegmentId

LAYOUT = b"how the old release is made of installed files" * 20


@pytest.fixture(scope="module")
def old() -> Release:
    return make_release()


@pytest.fixture(scope="module")
def new(old: Release) -> Release:
    return make_update(old)


@pytest.fixture(scope="module")
def rebuildable(old: Release) -> Release:
    return make_update(old, layout=LAYOUT)


async def office_wanting(office: InMemoryOffice, count: int, release: Release, *bases: Release) -> list[Member]:
    """The first member has the bases."""
    members = [await office.add() for _ in range(count)]
    for base in bases:
        members[0].store.fill(base)
    for member in members:
        await member.fetcher.want(release.manifest)
    return members


async def complete(members: list[Member], release: Release, timeout_s: float = 120.0) -> float:
    began = trio.current_time()
    with trio.fail_after(timeout_s):
        for member in members:
            await member.fetcher.wait_complete(release.manifest.manifest_id)
    for member in members:
        assert all(member.store.get(chunk) is not None for chunk in release.chunks)
    return trio.current_time() - began


def sent_by_kind(office: InMemoryOffice, release: Release) -> dict[str, int]:
    kinds = {segment.segment_id: segment.kind for segment in release.manifest.segments}
    sent: dict[str, int] = {}
    for segment, size in office.origin.sent.items():
        sent[kinds[segment]] = sent.get(kinds[segment], 0) + size
    return sent


@pytest.mark.parametrize("count", [1, 2, 6])
async def test_an_office_with_the_base_fetches_the_deltas_once(
    autojump_clock: MockClock, old: Release, new: Release, count: int
) -> None:
    async with InMemoryOffice(MemoryOrigin(new.blobs)).open() as office:
        members = await office_wanting(office, count, new, old)
        await complete(members, new)
        await trio.sleep(1)
        assert sent_by_kind(office, new) == {"delta": new.bytes_of("delta")}
        assert new.bytes_of("delta") < new.bytes_of("full") // 20
        for member in members:
            progress = member.fetcher.progress(new.manifest.manifest_id)
            assert progress.complete
            assert progress.needed_bytes == new.bytes_of("delta")
            for row in member.fetcher.why(new.manifest.manifest_id):
                assert row.source.startswith("lan:") or row.reason.endswith("for the office as a delta from 1")
        assert office.origin.discarded >= set(office.origin.sent), "no partial file is left behind"


async def test_why_tells_the_way_and_the_price_of_the_others(
    autojump_clock: MockClock, old: Release, new: Release
) -> None:
    async with InMemoryOffice(MemoryOrigin(new.blobs, bytes_per_s=100)).open() as office:
        [owner] = await office_wanting(office, 1, new, old)
        manifest = new.manifest.manifest_id
        rows = owner.fetcher.why(manifest)
        assert [row.size_bytes for row in rows] == [
            sum(new.manifest.sizes[one.first : one.first + one.count]) for _, one in new.manifest.full_segments()
        ]
        first = new.manifest.segments
        assert [(each.name, each.size_bytes, each.why_not) for each in rows[0].alternatives] == [
            ("delta from 1", first[1].size, ""),
            ("full", first[0].size, ""),
        ]
        await trio.sleep(12)
        assert any("as a delta from 1" in row.reason for row in owner.fetcher.why(manifest))
        assert owner.fetcher.progress(manifest).needed_bytes == new.bytes_of("delta")
        owner.store.remove(old.manifest.chunks[1])
        await trio.sleep(6)
        [delta, _] = owner.fetcher.why(manifest)[0].alternatives
        assert delta.why_not == "the office lacks 1 of its 8 base chunks"
        assert owner.fetcher.progress(manifest).needed_bytes == new.bytes_of("delta") - first[1].size + first[0].size


async def test_a_delta_that_the_origin_lacks_gives_way_to_the_full_segment_at_once(
    autojump_clock: MockClock, old: Release, new: Release
) -> None:
    deltas = {segment.segment_id for segment in new.manifest.segments if segment.kind == "delta"}
    async with InMemoryOffice(MemoryOrigin(new.blobs, missing=deltas)).open() as office:
        members = await office_wanting(office, 3, new, old)
        took_s = await complete(members, new)
        assert sent_by_kind(office, new) == {"full": new.bytes_of("full")}
        assert took_s < 12
        rows = [row for member in members for row in member.fetcher.why(new.manifest.manifest_id)]
        assert any("has no segment" in each.why_not for row in rows for each in row.alternatives)


async def test_a_delta_that_yields_other_bytes_gives_way_to_the_full_segment_at_once(
    autojump_clock: MockClock, old: Release
) -> None:
    new = make_update(old, broken=True)
    async with InMemoryOffice(MemoryOrigin(new.blobs)).open() as office:
        members = await office_wanting(office, 3, new, old)
        await complete(members, new, timeout_s=30)
        assert sent_by_kind(office, new) == {"full": new.bytes_of("full"), "delta": new.bytes_of("delta")}


async def test_a_base_chunk_that_is_rotten_comes_from_a_neighbour_again(
    autojump_clock: MockClock, old: Release, new: Release
) -> None:
    async with InMemoryOffice(MemoryOrigin(new.blobs)).open() as office:
        members = await office_wanting(office, 2, new, old)
        members[1].store.fill(old)
        for chunk in old.manifest.chunks[1:4]:
            members[0].store.spoil(chunk)
            members[1].store.spoil(chunk)
        third = await office.add()
        third.store.fill(old)
        await third.fetcher.want(new.manifest)
        await complete([*members, third], new)
        assert sent_by_kind(office, new) == {"delta": new.bytes_of("delta")}


async def test_a_base_chunk_that_is_rotten_everywhere_costs_its_full_segment(
    autojump_clock: MockClock, old: Release, new: Release
) -> None:
    async with InMemoryOffice(MemoryOrigin(new.blobs)).open() as office:
        members = await office_wanting(office, 2, new, old)
        rotten = old.manifest.chunks[1]
        members[0].store.spoil(rotten)
        await complete(members, new)
        sent, segments = sent_by_kind(office, new), new.manifest.segments
        assert sent["full"] == segments[0].size, "the run whose base is gone"
        assert sent["delta"] in (new.bytes_of("delta"), new.bytes_of("delta") - segments[1].size)


async def test_neighbours_that_never_deliver_the_base_are_given_up(
    autojump_clock: MockClock, old: Release, new: Release
) -> None:
    async with InMemoryOffice(MemoryOrigin(new.blobs)).open() as office:
        holder = await office.add(weight=0)
        holder.store.fill(old)
        holder.nature = "mute"
        await holder.fetcher.want(new.manifest)
        [owner] = await office_wanting(office, 1, new)
        await complete([owner], new, timeout_s=60)
        assert sent_by_kind(office, new)["full"] == new.bytes_of("full")


async def test_a_release_that_is_unwanted_while_a_delta_is_fetched_stops(
    autojump_clock: MockClock, old: Release, new: Release
) -> None:
    async with InMemoryOffice(MemoryOrigin(new.blobs, bytes_per_s=100)).open() as office:
        [member] = await office_wanting(office, 1, new, old)
        await trio.sleep(11)
        assert member.fetcher.progress(new.manifest.manifest_id).fetching
        member.fetcher.unwant(new.manifest.manifest_id)
        sent = office.origin.bytes_sent
        await trio.sleep(60)
        assert office.origin.bytes_sent == sent
        office.origin.bytes_per_s = 1 << 20
        await member.fetcher.want(new.manifest)
        await complete([member], new)


async def test_a_change_of_plan_leaves_no_part_behind(autojump_clock: MockClock, old: Release, new: Release) -> None:
    parts: dict[SegmentId, int] = {}

    class Origin(MemoryOrigin):
        async def parts(self) -> dict[SegmentId, int]:
            return parts

    async with InMemoryOffice(Origin(new.blobs)).open() as office:
        [member] = await office_wanting(office, 1, new, old)
        aborted = next(segment for _, segment in new.manifest.full_segments())
        parts[aborted.segment_id] = 100
        await complete([member], new)
        await trio.sleep(1)
        assert aborted.segment_id in office.origin.discarded


async def test_what_is_missing_of_a_base_is_told_once_the_roster_is_settled(
    autojump_clock: MockClock, old: Release, rebuildable: Release
) -> None:
    manifest = rebuildable.manifest.manifest_id
    async with InMemoryOffice(MemoryOrigin(rebuildable.blobs)).open() as office:
        [member] = await office_wanting(office, 1, rebuildable)
        assert member.fetcher.bases_missing(manifest) == {}
        with trio.fail_after(15):
            await member.fetcher.wait_bases_changed()
        missing = member.fetcher.bases_missing(manifest)
        assert set(missing) == {0}
        told = {rebuildable.manifest.table_chunks[position] for position in missing[0]}
        assert told == set(old.chunks)
        assert "rebuild" in member.fetcher.progress(manifest).waiting


async def test_a_base_that_is_rebuilt_in_time_spares_the_full_segments(
    autojump_clock: MockClock, old: Release, rebuildable: Release
) -> None:
    manifest = rebuildable.manifest.manifest_id
    async with InMemoryOffice(MemoryOrigin(rebuildable.blobs)).open() as office:
        members = await office_wanting(office, 4, rebuildable)
        maker = members[2]
        with trio.fail_after(15):
            await maker.fetcher.wait_bases_changed()
            maker.fetcher.want_layout(manifest, 0)
            await maker.fetcher.wait_layout(manifest, 0)
        row = rebuildable.manifest.layouts[0]
        found = maker.store.get(rebuildable.manifest.table_chunks[row.first])
        assert found is not None
        assert found.data == LAYOUT
        for position in maker.fetcher.bases_missing(manifest)[0]:
            await trio.sleep(0.05)
            chunk = rebuildable.manifest.table_chunks[position]
            maker.store.put(Chunk.verified(chunk, old.chunks[chunk]))
            maker.fetcher.gained(manifest, [chunk])
        await complete(members, rebuildable)
        wanted = {"delta": rebuildable.bytes_of("delta"), "layout": rebuildable.bytes_of("layout")}
        assert sent_by_kind(office, rebuildable) == wanted
        assert members[0].fetcher.progress(manifest).chunks_have == len(rebuildable.chunks)


async def test_a_layout_that_is_not_wanted_any_more_is_not_fetched(
    autojump_clock: MockClock, rebuildable: Release
) -> None:
    manifest = rebuildable.manifest.manifest_id
    async with InMemoryOffice(MemoryOrigin(rebuildable.blobs)).open() as office:
        [member] = await office_wanting(office, 1, rebuildable)
        member.fetcher.want_layout(manifest, 0)
        member.fetcher.drop_layout(manifest, 0)
        await complete([member], rebuildable)
        assert sent_by_kind(office, rebuildable) == {"full": rebuildable.bytes_of("full")}
        with pytest.raises(KeyError):
            member.fetcher.want_layout(make_release().manifest.manifest_id, 0)


async def test_two_updates_of_one_base_share_it(autojump_clock: MockClock, old: Release) -> None:
    one, two = make_update(old), make_update(old, prefix=b"other")
    async with InMemoryOffice(MemoryOrigin({**one.blobs, **two.blobs})).open() as office:
        members = await office_wanting(office, 3, one, old)
        for member in members:
            await member.fetcher.want(two.manifest)
        await complete(members, one)
        await complete(members, two)
        assert office.origin.bytes_sent == one.bytes_of("delta") + two.bytes_of("delta")


async def test_a_store_without_room_for_the_base_takes_the_full_segments(
    autojump_clock: MockClock, old: Release, new: Release
) -> None:
    async with InMemoryOffice(MemoryOrigin(new.blobs)).open() as office:
        holder = await office.add(weight=0)
        holder.store.fill(old)
        await holder.fetcher.want(new.manifest)
        [small] = await office_wanting(office, 1, new)
        small.store.refused = frozenset(set(old.chunks) - set(new.chunks))
        await complete([small, holder], new, timeout_s=30)
        assert sent_by_kind(office, new)["full"] == new.bytes_of("full")
        assert "no room" in small.fetcher.why(new.manifest.manifest_id)[0].alternatives[0].why_not


async def test_devices_that_only_keep_the_old_release_lend_it_to_those_that_fetch_the_new_one(
    autojump_clock: MockClock, old: Release, new: Release
) -> None:
    async with InMemoryOffice(MemoryOrigin(new.blobs)).open() as office:
        first_ring = [await office.add() for _ in range(2)]
        others = [await office.add() for _ in range(4)]
        for member in [*first_ring, *others]:
            await member.fetcher.keep(old.manifest)
        for number, (chunk, data) in enumerate(old.chunks.items()):
            others[number % 3].store.put(Chunk.verified(chunk, data))
            others[number % 3].fetcher.gained(old.manifest.manifest_id, [chunk])
        await trio.sleep(1)
        for member in first_ring:
            await member.fetcher.want(new.manifest)
        late = others[3]
        await complete(first_ring, new)
        assert sent_by_kind(office, new) == {"delta": new.bytes_of("delta")}
        await late.fetcher.want(new.manifest)
        await complete([late], new, timeout_s=5)
        assert office.origin.bytes_sent == new.bytes_of("delta")
        assert not any(member.fetcher.wan_in_bytes for member in others), "who lends fetches nothing"


async def test_a_lender_that_drops_a_chunk_is_believed(autojump_clock: MockClock, old: Release, new: Release) -> None:
    async with InMemoryOffice(MemoryOrigin(new.blobs)).open() as office:
        [fetches, lends] = [await office.add() for _ in range(2)]
        lends.store.fill(old)
        for member in (fetches, lends):
            await member.fetcher.keep(old.manifest)
        await fetches.fetcher.want(new.manifest)
        await trio.sleep(0.5)
        dropped = old.manifest.chunks[1]
        lends.fetcher.let_go([dropped])
        lends.store.trim([dropped])
        await trio.sleep(0.5)
        [delta, _] = fetches.fetcher.why(new.manifest.manifest_id)[0].alternatives
        assert delta.why_not == "the office lacks 1 of its 8 base chunks"
        await complete([fetches], new)
        segments = new.manifest.segments
        assert office.origin.bytes_sent == new.bytes_of("delta") - segments[1].size + segments[0].size


async def test_a_lender_that_let_go_of_the_old_release_without_a_word_is_not_blamed(
    autojump_clock: MockClock, old: Release, new: Release
) -> None:
    async with InMemoryOffice(MemoryOrigin(new.blobs)).open() as office:
        [fetches, lends] = [await office.add() for _ in range(2)]
        lends.store.fill(old)
        for member in (fetches, lends):
            await member.fetcher.keep(old.manifest)
        await trio.sleep(0.5)
        lends.fetcher.unwant(old.manifest.manifest_id)
        lends.store.trim(list(old.chunks))
        await fetches.fetcher.want(new.manifest)
        await complete([fetches], new)
        assert fetches.fetcher.blamed == {}
        assert sent_by_kind(office, new)["full"] == new.bytes_of("full")


def needing_gzip(release: Release) -> Release:
    """The same, all of whose deltas need gzip."""
    segments = tuple(
        msgspec.structs.replace(one, needs="gzip") if one.kind == "delta" else one for one in release.manifest.segments
    )
    manifest = msgspec.structs.replace(release.manifest, segments=segments)
    return Release(decode_untrusted(manifest.encoded), release.blobs, release.chunks)


async def test_a_device_without_gzip_takes_the_chunks_from_a_neighbour_that_has_it_and_says_why(
    autojump_clock: MockClock, old: Release, new: Release
) -> None:
    release, why_not = needing_gzip(new), "there is no /usr/bin/gzip and no /bin/gzip"
    async with InMemoryOffice(MemoryOrigin(new.blobs, bytes_per_s=20)).open() as office:
        lacking = [await office.add(why_not_gzip=why_not) for _ in range(3)]
        able = await office.add()
        lacking[0].store.fill(old)
        members = [*lacking, able]
        for member in members:
            await member.fetcher.want(release.manifest)
        reasons = set[str]()
        for _ in range(40):
            await trio.sleep(0.5)
            for row in lacking[1].fetcher.why(release.manifest.manifest_id):
                assert [each.why_not for each in row.alternatives] == [f"it needs gzip, and {why_not}", ""]
                reasons.add(row.reason.rpartition("; ")[2])
        assert "it is left to neighbours that have gzip, for whom a delta is cheaper" in reasons
        office.origin.bytes_per_s = 1 << 20
        await complete(members, release)
        assert sent_by_kind(office, release) == {"delta": new.bytes_of("delta")}
        assert able.fetcher.wan_in_bytes == new.bytes_of("delta")
        assert lacking[1].fetcher.progress(release.manifest.manifest_id).needed_bytes == new.bytes_of("delta")


async def test_a_device_without_gzip_that_is_alone_takes_full_segments(
    autojump_clock: MockClock, old: Release, new: Release
) -> None:
    release = needing_gzip(new)
    async with InMemoryOffice(MemoryOrigin(new.blobs)).open() as office:
        member = await office.add(why_not_gzip="/usr/bin/gzip does not pack as GNU gzip does")
        member.store.fill(old)
        await member.fetcher.want(release.manifest)
        took_s = await complete([member], release)
        assert sent_by_kind(office, release) == {"full": new.bytes_of("full")}
        assert took_s < 15
        assert member.fetcher.progress(release.manifest.manifest_id).needed_bytes == new.bytes_of("full")

"""The README's walk-through, followed literally: each block on its machine, in order, with what it shows."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from machine_room import MACHINES, Done, MachineRoom, why_not
from readme import README, Block, blocks, lacking

UNTIL_TIMEOUT_S = 240.0
NEEDED = re.compile(r'"needed":(\d+)')
OVERHEAD = 1.2
"""Frames, TLS, tokens over SSH, metadata, acknowledgements: everything else that the kernel counts on the office's link."""
WHY_NOT = why_not()


def test_what_a_block_shows_is_found_in_order_with_gaps() -> None:
    output = "device  a1b2\ntrust   fresh: root 1\nlast line\n"
    assert lacking(["device …", "trust fresh", "last line"], output) == ""
    assert lacking(["last line", "device"], output) == "device"
    assert lacking(["trust … root 2"], output) == "trust … root 2"


def test_a_block_says_where_and_until_when() -> None:
    (block, shown) = blocks("# Top\n```sh machine=dev1,dev2 until=a.*b\nx y\n```\n```text shows\nx\n```\n")
    assert (block.language, block.machines, block.until, block.text) == ("sh", ("dev1", "dev2"), "a.*b", "x y\n")
    assert (block.line, block.section, block.shows, shown.words) == (2, "Top", ["x"], ("shows",))


@pytest.mark.netns
@pytest.mark.timeout(900)
@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-")
def test_the_walk_through_works_as_written(tmp_path: Path) -> None:
    page = blocks(README.read_text(encoding="utf-8"))
    firewall = next(block for block in page if block.language == "nft")
    log = tmp_path / "walk-through.log"
    needed = 0
    with MachineRoom() as room, log.open("w") as record:
        for block in page:
            for machine in MACHINES if block.machines == ("every",) else block.machines:
                if "firewall" in block.words:
                    assert room.run(machine, f"cat >/etc/nftables.conf <<'END'\n{firewall.text}END").status == 0
                started = time.monotonic()
                done = follow(room, machine, block)
                seconds = time.monotonic() - started
                record.write(f"=== README.md:{block.line} on {machine}, {seconds:.1f} s, status {done.status}\n")
                record.write(f"{block.text}--- output\n{done.output}\n")
                record.flush()
                where = f"README.md:{block.line} on {machine}"
                assert done.status == 0, f"{where}: status {done.status}\n{done.output}"
                needed = max([needed, *map(int, NEEDED.findall(done.output))])
                missing = lacking(block.shows, done.output)
                assert not missing, f"{where}: the output does not have {missing!r}:\n{done.output}"
        received = room.received_over_wan()
        record.write(f"=== the office needed {needed} bytes, the kernel counted {received}\n")
        assert 0 < needed <= received <= OVERHEAD * needed


def follow(room: MachineRoom, machine: str, block: Block) -> Done:
    """Run the block; where it says until when, look again like a person would, with a deadline."""
    deadline = time.monotonic() + UNTIL_TIMEOUT_S
    while True:
        done = room.run(machine, block.text)
        if not block.until or (done.status == 0 and re.search(block.until, done.output)):
            return done
        if time.monotonic() > deadline:
            return Done(done.status or 1, f"{done.output}\n(waited for {block.until!r})")
        time.sleep(0.5)

"""What a security update costs an office that has the version before, against the other ways to bring it there.

    .venv/bin/python bench/delta.py [PAIR…] [--cache FOLDER] [--tools NAME,…] [--level 19] [--timeout 900] [--kept] [--json]

A PAIR is ``OLD.deb NEW.deb``, two files (packages or archives), or ``NAME=OLDVERSION:NEWVERSION``, which apt is asked for (with
``NAME=OLDVERSION:NEWNAME=NEWVERSION`` where the name holds the version). Without one it is a set of Debian packages of different
kinds. Packages are kept in ``--cache``; what the mirrors no longer have and the cache does not hold is reported and skipped.
The other tools are Debian's (``apt-get install debdelta xdelta3 zsync casync zstd``); how each is used is in ``delta_tools.py``.

*ours* is what ``ingest`` makes with the old version as base: for each run of 16 MiB the delta, or the full segment where that is
smaller, and nothing where no chunk is new; the manifest (which names every chunk and its place) is counted on top, as devices
fetch it. Publisher time is the whole ingest of the new version: stored form, chunks, full segments and deltas, by two worker
processes, at ``--level`` (what a level does: ``pcm_p2p/content/xz_packing.py``). Endpoint time is everything from blobs to the
complete stored form, every chunk verified, by one process. Beside the publisher's rate stands that of xz alone, on 16 MiB of the
same bytes: a machine that is slow today is slow with both.
*decoding* is the part of it from blobs to verified chunks; its rate is of what the segments fetched yield.

Ratios are from one run; only debdelta's results are taken from the cache, because it takes up to a quarter of an hour a pair
(with ``--kept`` those of all others too, to try changes of ours). Rates are judged in seconds of a core, because other work on
the machine changes those little, and given in wall time too. The exit code is 1 if an aim is missed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from delta_tools import MB, TOOLS, Figures, NotMeasured, Pair, measured, python, same, scratch

SET = (
    ("service", "openssh-server=1:9.2p1-2+deb12u9:1:9.2p1-2+deb12u10"),
    ("library", "libssl3=3.0.20-1~deb12u2:3.0.22-1~deb12u2"),
    ("many small files", "libpython3.11-stdlib=3.11.2-6+deb12u8:3.11.2-6+deb12u9"),
    ("service", "postgresql-15=15.18-0+deb12u1:15.20-0+deb12u1"),
    ("runtime", "openjdk-17-jre-headless=17.0.19+10-1~deb12u2:17.0.21.1+2-1~deb12u1"),
    ("office suite", "libreoffice-core-nogui=4:7.4.7-1+deb12u13:4:7.4.7-1+deb12u14"),
    ("kernel image", "linux-image-6.1.0-55-amd64=6.1.192-1:linux-image-6.1.0-56-amd64=6.1.192-2"),
    ("one big binary", "mariadb-server-core=1:10.11.18-0+deb12u1:1:10.11.19-0+deb12u1"),
    ("libraries", "samba-libs=2:4.17.12+dfsg-0+deb12u2:2:4.17.12+dfsg-0+deb12u4"),
    ("tool", "git=1:2.39.5-0+deb12u2:1:2.39.5-0+deb12u3"),
    ("big binaries", "qemu-system-x86=1:7.2+dfsg-7+deb12u15:1:7.2+dfsg-7+deb12u18+b3"),
)
SUM_MAX = 0.20
FULL_MAX = 1.08
ENDPOINT_MB_PER_S = 100
PUBLISHER_MB_PER_S = 5
CORES = 2
"""What the publisher has."""
_PAIR = re.compile(r"(?P<name>[^=]+)=(?P<old>(\d+:)?[^:=]+):((?P<newname>[^=:]+)=)?(?P<new>(\d+:)?[^:=]+)")


def packages(name: str, version: str, cache: Path) -> Path:
    """The package in the cache, asked of apt if it is not there. Raises ``NotMeasured``."""
    # apt writes the colon of an epoch, and nothing else, as %3a.
    pattern = f"{name}_{version.replace(':', '%3a')}_*.deb"
    if not (found := sorted(cache.glob(pattern))):
        asked = subprocess.run(
            ["apt-get", "download", f"{name}={version}"], cwd=cache, capture_output=True, text=True, check=False
        )
        if not (found := sorted(cache.glob(pattern))):
            said = (asked.stderr.strip().splitlines() or ["apt-get said nothing"])[-1]
            raise NotMeasured(f"{name} {version} is not to be had: {said}")
    return found[0]


def pairs(asked: Sequence[str]) -> Iterator[tuple[str, str, tuple[str, str] | re.Match[str]]]:
    """Name, kind, and two files or what to ask apt for."""
    left = [(kind, text) for kind, text in SET] if not asked else [("", text) for text in asked]
    while left:
        kind, text = left.pop(0)
        if not Path(text).is_file() and (match := _PAIR.fullmatch(text)):
            yield re.sub(r"-\d[\d.]*-\d+-amd64$", "", match["name"]), kind, match
        elif left:
            old, new = Path(text), Path(left.pop(0)[1])
            yield re.split(r"[_.]", new.name)[0], kind, (str(old), str(new))
        else:
            sys.exit(f"{text} is neither NAME=OLDVERSION:NEWVERSION nor followed by a second file")


def measure_ours(pair: Pair, level: int) -> tuple[Figures, dict[str, Any]]:
    with scratch(pair) as folder:
        python("publish-old", pair, pair.old_deb, folder, str(level))
        publisher, made = python("publish-new", pair, pair.new_deb, folder, str(level))
        endpoint, applied = python("apply-new", pair, pair.old, folder, folder / "out")
        same(folder / "out", pair.new)
        _, ceiling = python("xz", pair, pair.new)
    facts = made | applied | ceiling
    return Figures(facts["size_bytes"] + facts["manifest_bytes"], publisher, endpoint), facts


def measure(pair: Pair, tools: Sequence[str], cache: Path, *, level: int, kept: bool) -> dict[str, Any]:
    for deb, which in ((pair.old_deb, pair.old), (pair.new_deb, pair.new)):
        python("stored", pair, deb, which)
    row: dict[str, Any] = {
        "name": pair.name,
        "kind": pair.kind,
        "old": pair.old_deb.name,
        "new": pair.new_deb.name,
        "delivered_bytes": pair.new_deb.stat().st_size,
        "stored_bytes": pair.new.stat().st_size,
        "tools": {},
    }
    for tool in tools:
        try:
            if tool == "ours":
                figures, row["ours"] = measure_ours(pair, level)
            else:
                figures = measured(tool, pair, cache, kept=kept or tool == "debdelta")
            row["tools"][tool] = asdict(figures)
        except NotMeasured as error:
            row["tools"][tool] = {"failed": str(error)}
        print(f"  {pair.name}: {tool}: {row['tools'][tool]}", file=sys.stderr, flush=True)
    return row


def verdict(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The aims, from rows in which ours was measured."""
    rows = [row for row in rows if "ours" in row]
    if not rows:
        return {}

    def spent(row: dict[str, Any], tool: str = "ours") -> int:
        return int(row["tools"][tool].get("size_bytes", sys.maxsize)) if tool in row["tools"] else sys.maxsize

    above = [
        f"{row['name']}: {tool} {spent(row, tool)} B, ours {spent(row)} B"
        for row in rows
        for tool in row["tools"]
        if tool != "ours" and spent(row) > spent(row, tool)
    ]
    plain_bytes = sum(row["delivered_bytes"] for row in rows)
    stored_bytes = sum(row["stored_bytes"] for row in rows)
    decoded_bytes = sum(row["ours"]["decoded_bytes"] for row in rows)
    full = {row["name"]: round(row["ours"]["full_segment_bytes"] / row["delivered_bytes"], 3) for row in rows}

    def rate(size_bytes: int, end: str, unit: str) -> float:
        return round(size_bytes / MB / sum(row["tools"]["ours"][end][unit] for row in rows), 1)

    share = sum(spent(row) for row in rows) / plain_bytes
    xz_core_s = sum(row["stored_bytes"] / MB / row["ours"]["xz_mb_per_core_s"] for row in rows)
    # Two equal versions decode nothing, in no time.
    decoding = {
        unit: decoded_bytes / MB / (sum(row["ours"][f"decoding_{unit}"] for row in rows) or 1)
        for unit in ("wall_s", "core_s")
    }
    return {
        "others_are_smaller": above,
        "sum_to_plain": round(share, 4),
        "full_to_delivered": full,
        "decoding_mb_per_s": round(decoding["wall_s"], 1),
        "decoding_mb_per_core_s": round(decoding["core_s"], 1),
        "endpoint_mb_per_s": rate(stored_bytes, "endpoint", "wall_s"),
        "publisher_mb_per_s": rate(stored_bytes, "publisher", "wall_s"),
        "publisher_mb_per_core_s": rate(stored_bytes, "publisher", "core_s"),
        "xz_mb_per_core_s": round(stored_bytes / MB / xz_core_s, 1),
        "publisher_to_xz": round(xz_core_s / sum(row["tools"]["ours"]["publisher"]["core_s"] for row in rows), 2),
        "met": {
            "bytes": not above,
            "sum": share <= SUM_MAX,
            "full": max(full.values()) <= FULL_MAX,
            "endpoint": not decoded_bytes or decoding["core_s"] >= ENDPOINT_MB_PER_S,
            "publisher": CORES * rate(stored_bytes, "publisher", "core_s") >= PUBLISHER_MB_PER_S,
        },
    }


def table(rows: Sequence[dict[str, Any]], tools: Sequence[str]) -> Iterator[str]:
    def lines(title: str, cell: Any) -> Iterator[str]:
        yield f"{title:27}" + "".join(f"{tool:>12}" for tool in tools)
        for row in rows:
            cells = (row["tools"].get(tool, {"failed": ""}) for tool in tools)
            yield f"{row['name']:27}" + "".join(f"{cell(one) if 'failed' not in one else '–':>12}" for one in cells)
        yield ""

    yield from lines("bytes", lambda one: one["size_bytes"])
    for row in rows:
        row["share"] = {
            tool: one["size_bytes"] / row["delivered_bytes"]
            for tool, one in row["tools"].items()
            if "failed" not in one
        }
    yield f"{'share of the package':27}" + "".join(f"{tool:>12}" for tool in tools)
    for row in rows:
        yield f"{row['name']:27}" + "".join(
            f"{row['share'][tool]:12.1%}" if tool in row["share"] else f"{'–':>12}" for tool in tools
        )
    yield ""
    for end in ("publisher", "endpoint"):
        yield from lines(f"{end}, s", lambda one, end=end: f"{one[end]['wall_s']:.1f}")
        yield from lines(f"{end}, peak MB", lambda one, end=end: f"{one[end]['peak_mb']:.0f}")
    if any("ours" in row for row in rows):
        heads = ("stored MB", "segments B", "manifest B", "layouts B", "full/.deb", "decode MB/s")
        yield f"{'ours':27}" + "".join(f"{head:>12}" for head in heads)
        for row in rows:
            if ours := row.get("ours"):
                rate = ours["decoded_bytes"] / MB / (ours["decoding_core_s"] or 1)
                yield (
                    f"{row['name']:27}{row['stored_bytes'] / MB:12.1f}{ours['size_bytes']:12}{ours['manifest_bytes']:12}"
                    f"{ours['layout_segment_bytes']:12}{ours['full_segment_bytes'] / row['delivered_bytes']:12.1%}{rate:12.0f}"
                )
        yield ""
    for row in rows:
        for tool, one in row["tools"].items():
            if "failed" in one:
                yield f"{row['name']}: {tool}: {one['failed']}"


def aims(found: dict[str, Any]) -> Iterator[str]:
    met = {name: "met" if good else "NOT MET" for name, good in found["met"].items()}
    yield f"aim: bytes at or below every other on every pair: {met['bytes']}"
    yield from (f"     {line}" for line in found["others_are_smaller"])
    yield f"aim: sum at most {SUM_MAX:.0%} of the packages: {found['sum_to_plain']:.1%}, {met['sum']}"
    largest = max(found["full_to_delivered"].values())
    yield f"aim: full segments at most {FULL_MAX:.0%} of the package: {largest:.1%}, {met['full']}"
    yield (
        f"aim: decoding at least {ENDPOINT_MB_PER_S} MB of output a second of a core: {found['decoding_mb_per_core_s']}, "
        f"{met['endpoint']} (wall {found['decoding_mb_per_s']} MB/s)"
    )
    yield (
        f"aim: publishing at least {PUBLISHER_MB_PER_S} MB/s of stored bytes on {CORES} cores: "
        f"{found['publisher_mb_per_core_s']} a second of a core, {met['publisher']} (wall {found['publisher_mb_per_s']} MB/s)"
    )
    yield (
        f"     xz 6 alone packs {found['xz_mb_per_core_s']} MB a second of a core here and now; full segments and deltas"
        f" together are made at {found['publisher_to_xz']} of that"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", metavar="PAIR")
    parser.add_argument("--cache", type=Path, default=Path(".cache/delta"))
    parser.add_argument("--tools", default=",".join([*TOOLS, "ours"]), help="some of them, by commas")
    parser.add_argument("--level", type=int, default=19, help="of ours")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for a tool on a pair")
    parser.add_argument("--kept", action="store_true", help="of the other tools, take what they gave before")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    tools = asked.tools.split(",")
    if unknown := [tool for tool in tools if tool != "ours" and tool not in TOOLS]:
        sys.exit(f"unknown tools: {', '.join(unknown)}; known are {', '.join([*TOOLS, 'ours'])}")
    cache = asked.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    rows, skipped = list[dict[str, Any]](), list[str]()
    for name, kind, what in pairs(asked.pairs):
        with tempfile.TemporaryDirectory(dir=cache) as work:
            try:
                if isinstance(what, tuple):
                    old, new = (Path(path).resolve() for path in what)
                else:
                    old = packages(what["name"], what["old"], cache)
                    new = packages(what["newname"] or what["name"], what["new"], cache)
                pair = Pair(name, kind, old, new, Path(work), asked.timeout)
                rows.append(measure(pair, tools, cache, level=asked.level, kept=asked.kept))
            except NotMeasured as error:
                skipped.append(f"{name}: {error}")
    found = verdict(rows)
    if asked.json:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        print(
            json.dumps(
                {
                    "schema": "pcm.bench.delta/1",
                    "at": at,
                    "level": asked.level,
                    "pairs": rows,
                    "skipped": skipped,
                    "aims": found,
                }
            )
        )
    else:
        for line in (*(table(rows, tools) if rows else ()), *skipped, *(aims(found) if found else ())):
            print(line)
    if found and not all(found["met"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()

"""The pages and the API: every link leads somewhere, every linked number is the number of rows behind it."""

from __future__ import annotations

import csv
import io
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from console_client import NOW_MS, links, main_of, signed_in
from seed_archive import SILENT, Seen, demo_id, fleet

from pcm_p2p.collector.archive import Archive, Opened
from pcm_p2p.collector.console import presentation
from pcm_p2p.collector.fleet import DEVICE_STATES
from pcm_p2p.collector.schema import MIGRATIONS
from pcm_p2p.compliance.finding import Finding
from pcm_p2p.compliance.report import ReleaseStatus, ReportBody
from pcm_p2p.database import open_database
from pcm_p2p.ids import DeviceId
from pcm_p2p.sidecar import open_sidecar

EVERY = len(fleet()) + len(SILENT)


async def test_every_link_of_every_page_leads_somewhere(demo_archive: Path) -> None:
    async with signed_in(demo_archive) as client:
        seen: set[str] = set()
        waiting = ["/"]
        while waiting and len(seen) < 160:
            address = waiting.pop(0).partition("#")[0]
            if not address or address in seen:
                continue
            seen.add(address)
            response = await client.get(address)
            assert response.status_code == 200, address
            if "text/html" in response.headers["content-type"]:
                found = [target for target, _ in links(response.text) if not target.startswith("#")]
                waiting += [
                    target if target.startswith("/") else address.partition("?")[0] + target for target in found
                ]
    assert {"/", "/devices", "/releases", "/savings"} <= seen


async def test_a_linked_number_is_the_number_of_rows_behind_it(demo_archive: Path) -> None:
    async with signed_in(demo_archive) as client:
        numbered = 0
        for page in ("/", "/releases", "/devices"):
            html = main_of((await client.get(page)).text)
            for target, text in links(html):
                number = re.fullmatch(r"(?:\D* )?(\d+)(?: \D*)?", text)
                if number is None or not target.startswith(("/devices?", "/releases/")) or "%" in text:
                    continue
                rows = main_of((await client.get(target)).text).rpartition("<tbody>")[2].count('<tr><th scope="row">')
                assert rows == int(number[1]), (page, target, text)
                numbered += 1
    assert numbered > 60


@pytest.mark.parametrize("address", ["/", "/devices", "/releases", "/savings", f"/devices/{fleet()[3].device}"])
async def test_a_page_says_as_of_when_and_holds_nothing_inline(demo_archive: Path, address: str) -> None:
    async with signed_in(demo_archive) as client:
        response = await client.get(address)
    assert presentation.clock(NOW_MS) in response.text
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=|javascript:", response.text)
    assert response.headers["content-security-policy"].startswith("default-src 'self';")
    assert response.headers["cache-control"] == "no-store"


async def test_htmx_cannot_start_before_its_extension_has_arrived(demo_archive: Path) -> None:
    """Deferred, it starts by a timer; if the extension is still on its way then, the page is never live."""
    async with signed_in(demo_archive) as client:
        html = (await client.get("/")).text
    scripts = [re.sub(r"\?v=[0-9a-f]+", "", one) for one in re.findall(r'<script src="/static/([^>]*)>', html)]
    assert scripts == ['theme.js"', 'vendor/htmx.min.js"', 'vendor/hx-sse.min.js"', 'live.js"']
    assert html.index("htmx.min.js") > html.index("</main>")


async def test_state_is_icon_and_word_and_colour(demo_archive: Path) -> None:
    async with signed_in(demo_archive) as client:
        html = (await client.get("/devices")).text
    for state in DEVICE_STATES:
        pattern = rf'class="state tone-{presentation.tone(state)}"><svg class="icon".*?</svg><span>{presentation.label(state)}<'
        assert re.search(pattern, html), state


async def test_unknown_and_stale_are_drawn_even_when_there_are_none(tmp_path: Path) -> None:
    device = DeviceId(b"1" * 16)
    body = ReportBody(
        schema="pcm.report/1", device=str(device), site="here", hostname="one", created_ms=NOW_MS, agent_version="1"
    )
    async with open_sidecar() as sidecar, open_database(sidecar, tmp_path / "a", MIGRATIONS) as database:
        await Archive(database).take([Opened(device, 1, 1, b"h" * 32, bytes(32), "", NOW_MS, body)])
    async with signed_in(tmp_path / "a") as client:
        html = (await client.get("/")).text
    assert {"/devices?coverage=stale", "/devices?coverage=unknown"} <= {target for target, _ in links(html)}


async def test_filters_compose_and_the_download_holds_the_same_rows(demo_archive: Path) -> None:
    async with signed_in(demo_archive) as client:
        for query in ("", "site=lis-branch", "state=failing&site=muc-headquarters", "q=nbo-desk", "q=no-such-host"):
            told = (await client.get(f"/api/devices?{query}")).json()
            page = main_of((await client.get(f"/devices?{query}")).text)
            rows = list(csv.DictReader(io.StringIO((await client.get(f"/devices.csv?{query}")).text)))
            assert {row["device"] for row in rows} == {row["device"] for row in told["devices"]}
            assert page.count('<tr><th scope="row">') == told["total"] == len(rows)


async def test_the_api_has_the_objects_of_the_pages(demo_archive: Path) -> None:
    device = str(fleet()[3].device)
    async with signed_in(demo_archive) as client:
        overview = (await client.get("/api/overview")).json()
        assert overview["devices"] == EVERY
        assert sum(overview["states"].values()) == sum(overview["coverage"].values()) == EVERY
        assert (await client.get(f"/api/devices/{device}")).json()["device"] == device
        for one in (await client.get("/api/releases")).json()["releases"]:
            told = (await client.get(f"/api/releases/{one['name']}/{one['version']}")).json()
            assert told["progress"] == one
        assert (await client.get("/api/savings")).json()["total"] == overview["savings"]
        for address in ("/api/devices/00", "/api/releases/none/1", "/api/none"):
            response = await client.get(address)
            assert response.status_code == 404
            assert response.json()["error"]


async def test_what_cannot_be_asked_and_what_is_not_there_is_said(demo_archive: Path, tmp_path: Path) -> None:
    async with signed_in(demo_archive) as client:
        for address, status in (
            (f"/devices?q={'x' * 900}", 400),
            ("/devices?q=%00", 400),
            ("/devices?page=99999999999&sort=nonsense", 200),
            ("/devices?page=-1", 200),
            ("/devices/%3Cscript%3E", 404),
            ("/releases/none/1", 404),
            ("/nowhere", 404),
        ):
            response = await client.get(address)
            assert response.status_code == status, address
            assert "<script>" not in response.text
        assert (await client.put("/devices")).status_code == 405
    async with signed_in(tmp_path / "absent.sqlite") as client:
        response = await client.get("/")
        assert (response.status_code, "Start the collector" in response.text) == (503, True)
        assert (await client.get("/healthz")).status_code == 503


async def test_an_empty_archive_tells_what_to_do_next(tmp_path: Path) -> None:
    async with open_sidecar() as sidecar, open_database(sidecar, tmp_path / "a", MIGRATIONS):
        pass
    async with signed_in(tmp_path / "a") as client:
        assert "enroll join" in (await client.get("/")).text
        for address in ("/devices", "/releases", "/savings", "/api/overview", "/api/savings", "/healthz"):
            assert (await client.get(address)).status_code == 200


async def test_what_a_device_says_is_shown_as_text(tmp_path: Path) -> None:
    """A hostile report may hold anything that fits the schema; it must never become markup, a link or a formula."""
    evil = '"><img src=x onerror=alert(1)>{{7*7}}'
    device = DeviceId(b"e" * 16)
    body = ReportBody(
        schema="pcm.report/1",
        device=str(device),
        site=f"=1+1{evil}",
        hostname=f"=cmd|{evil}",
        created_ms=NOW_MS,
        agent_version=evil,
        releases=(ReleaseStatus(f"a/b?{evil}", "1 2", "parked", detail=evil),),
        findings=(Finding(f"p/{evil}", 1, evil, "fail", evil, evil, evil, evil, evil),),
    )
    async with open_sidecar() as sidecar, open_database(sidecar, tmp_path / "a", MIGRATIONS) as database:
        archive = Archive(database)
        await archive.take([Opened(device, 1, 1, b"h" * 32, bytes(32), evil, NOW_MS, body)])
        await archive.seen([Seen(demo_id("x"), evil)], by=device, now_ms=NOW_MS)
    async with signed_in(tmp_path / "a") as client:
        for address in ("/", "/devices", f"/devices/{device}", "/releases", "/savings", "/devices?q=%22%3E%3Cimg"):
            response = await client.get(address)
            assert response.status_code == 200
            assert "<img" not in response.text
            assert "{49}" not in response.text
            for target, _ in links(response.text):
                assert target.startswith(("/", "#")), target
                assert not target.startswith("//")
        rows = list(csv.reader(io.StringIO((await client.get("/devices.csv")).text)))
        assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (presentation.size(0), "0\xa0B"),
        (presentation.size(999), "999\xa0B"),
        (presentation.size(1_000), "1.00\xa0kB"),
        (presentation.size(402_573_812), "403\xa0MB"),
        (presentation.size(999_600_000), "1.00\xa0GB"),
        (presentation.size(3 * 10**18), "3000\xa0PB"),
        (presentation.size(-2_500), "\N{MINUS SIGN}2.50\xa0kB"),
        (presentation.percent(43, 44), "97\xa0%"),
        (presentation.percent(999, 1_000), "99\xa0%"),
        (presentation.percent(1, 1_000), "<1\xa0%"),
        (presentation.percent(0, 5), "0\xa0%"),
        (presentation.percent(5, 5), "100\xa0%"),
        (presentation.percent(0, 0), "\N{EN DASH}"),
        (presentation.factor(1.018), "1.02×"),
        (presentation.factor(None), "\N{EN DASH}"),
        (presentation.ago(0, 5), "never"),
        (presentation.ago(NOW_MS - 3_000, NOW_MS), "just now"),
        (presentation.ago(NOW_MS - 90_000, NOW_MS), "1\xa0min ago"),
        (presentation.ago(NOW_MS - 30 * 3_600_000, NOW_MS), "30\xa0h ago"),
        (presentation.ago(NOW_MS - 49 * 3_600_000, NOW_MS), "2\xa0days ago"),
        (presentation.ago(NOW_MS + 600_000, NOW_MS), "10\xa0min ahead"),
        (presentation.moment(1 << 52), "9999-12-31 23:59:59 UTC"),
        (presentation.label("not_run"), "Not run"),
        (presentation.label("brand_new"), "brand new"),
        (presentation.cell("=1+1"), "'=1+1"),
    ],
)
def test_numbers_and_times_as_people_read_them(given: str, shown: str) -> None:
    assert given == shown


def test_every_state_that_a_report_can_hold_has_words() -> None:
    known = {*presentation.LABELS}
    states = msgspec.json.schema(ReportBody)["$defs"]
    for owner, name in (
        ("ReleaseStatus", "state"),
        ("Finding", "state"),
        ("Trust", "state"),
        ("PolicyInForce", "mode"),
    ):
        words = states[owner]["properties"][name]["enum"]
        assert set(words) <= known, (owner, words)


async def test_pages_say_who_is_revoked_and_whose_metadata_was_signed_twice(demo_archive: Path, tmp_path: Path) -> None:
    path, gone, forked, silent = tmp_path / "archive.sqlite", fleet()[3].device, fleet()[4].device, demo_id("silent 0")
    with closing(sqlite3.connect(demo_archive)) as source, closing(sqlite3.connect(path)) as copy:
        source.backup(copy)
        rows = [(str(gone), 1_790_000_000_000, "stolen in <Lyon>", 4), (str(silent), 1_790_000_000_000, "lost", 0)]
        copy.executemany("INSERT INTO revoked VALUES (?,?,?,?)", rows)
        copy.execute("INSERT INTO fork VALUES (?,?,?,?,?)", (str(forked), "timestamp", 7, "aa bb", 1_790_000_000_000))
        copy.execute("INSERT INTO clone VALUES (?,?)", (str(gone), str(forked)))
        copy.commit()
    async with signed_in(path) as client:
        page = (await client.get(f"/devices/{gone}")).text
        assert "<b>Revoked</b> since" in page
        assert "stolen in &lt;Lyon&gt;" in page
        assert "4 of its reports were refused since" in page
        assert "<b>Revoked</b> since" in (await client.get(f"/devices/{silent}")).text
        page = (await client.get(f"/devices/{forked}")).text
        assert "timestamp version 7 was signed twice" in page
        assert "<b>Two devices use this identity:</b> 1 device has proof" in page
        front = (await client.get("/")).text
        assert "2 revoked" in front
        assert "Metadata signed twice" in front
        assert "Identity used twice" in front

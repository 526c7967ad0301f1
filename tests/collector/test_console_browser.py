"""The console in a real browser: policy-clean, live, in both schemes, by keyboard, on a telephone."""

from __future__ import annotations

from pathlib import Path

import pytest
from chromium import PROGRAM, Tab, open_tab
from console_client import PLAIN
from console_process import RunningConsole, running_console
from seed_archive import fleet, reports

from pcm_p2p.collector.archive import Archive
from pcm_p2p.collector.schema import MIGRATIONS
from pcm_p2p.database import open_database
from pcm_p2p.sidecar import open_sidecar

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="needs Chromium: apt-get install chromium"),
]
PAGES = ("/", "/devices", "/devices?state=failing", f"/devices/{fleet()[9].device}", "/releases", "/savings")


async def sign_in(tab: Tab, console: RunningConsole) -> None:
    await tab.go(f"{console.address}/login")
    await tab.evaluate(f"document.querySelector('[type=password]').value = {PLAIN!r}")
    await tab.evaluate("document.querySelector('form').submit()")
    await tab.until("location.pathname === '/' && document.getElementById('live').dataset.state === 'on'")


async def test_pages_are_clean_live_and_fit_in_both_schemes_and_widths(demo_archive: Path, tmp_path: Path) -> None:
    async with running_console(demo_archive, tmp_path) as console, open_tab(tmp_path) as tab:
        await sign_in(tab, console)
        for scheme in ("light", "dark"):
            await tab.colours(scheme)
            for pixels in (1_440, 390):
                await tab.width(pixels)
                for page in PAGES:
                    await tab.go(console.address + page)
                    await tab.until("document.getElementById('live').dataset.state === 'on'")
                    over = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
                    assert await tab.evaluate(over) <= 0, (page, pixels)
            ground = await tab.evaluate("getComputedStyle(document.body).backgroundColor")
            assert ground == {"light": "rgb(244, 246, 249)", "dark": "rgb(14, 19, 26)"}[scheme]
        assert tab.complaints == []


async def test_the_chart_is_drawn_from_the_api_and_says_the_latest_sums(demo_archive: Path, tmp_path: Path) -> None:
    async with running_console(demo_archive, tmp_path) as console, open_tab(tmp_path) as tab:
        await sign_in(tab, console)
        await tab.go(f"{console.address}/savings")
        await tab.until("document.querySelector('#chart canvas')")
        await tab.until("[...document.querySelectorAll('.u-value')].every((one) => /\\d/.test(one.textContent))")
        told = await tab.evaluate("document.querySelectorAll('.u-series')[3].textContent")
        shown = await tab.evaluate("document.querySelector('.figure').textContent")
        assert told.replace("\xa0", " ").endswith(shown.replace("\xa0", " "))
        assert tab.complaints == []


async def test_a_page_follows_the_archive_and_keeps_the_focus(tmp_path: Path) -> None:
    path = tmp_path / "archive.sqlite"
    async with open_sidecar() as sidecar, open_database(sidecar, path, MIGRATIONS) as database:
        archive = Archive(database)
        now_ms = 1_795_445_000_000
        await archive.take(list(reports(fleet()[0], now_ms, 2)))
        async with running_console(path, tmp_path) as console, open_tab(tmp_path) as tab:
            await sign_in(tab, console)
            await tab.evaluate("document.querySelector('.side nav a').focus()")
            await tab.evaluate("window.same = true")
            assert await tab.evaluate("document.querySelector('.figure').textContent") == "1"
            await archive.take(list(reports(fleet()[1], now_ms, 2)))
            await tab.until("document.querySelector('.figure').textContent === '2'")
            assert await tab.evaluate("window.same && document.activeElement.matches('.side nav a')")
            assert tab.complaints == []


async def test_colours_can_be_chosen_and_stay_and_a_key_leads_to_the_search(demo_archive: Path, tmp_path: Path) -> None:
    async with running_console(demo_archive, tmp_path) as console, open_tab(tmp_path) as tab:
        await sign_in(tab, console)
        await tab.colours("light")
        for theme in ("light", "dark"):
            await tab.evaluate("document.getElementById('theme').click()")
            assert await tab.evaluate("document.documentElement.dataset.theme") == theme
        await tab.go(f"{console.address}/devices")
        assert await tab.evaluate("document.documentElement.dataset.theme") == "dark"
        assert await tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 19, 26)"
        await tab.press("/", 191, "/")
        assert await tab.evaluate("document.activeElement.name") == "q"
        await tab.call("Input.insertText", text="nbo-desk")
        await tab.press("Enter", 13, "\r")
        await tab.until("location.search.includes('q=nbo-desk') && document.querySelector('tbody tr')")
        assert tab.complaints == []


async def test_signing_out_ends_live_pages(demo_archive: Path, tmp_path: Path) -> None:
    async with running_console(demo_archive, tmp_path) as console, open_tab(tmp_path) as tab:
        await sign_in(tab, console)
        await tab.evaluate("document.querySelector('form[action=\"/logout\"] button').click()")
        await tab.until("location.pathname === '/login'")
        await tab.go(f"{console.address}/devices")
        await tab.until("location.pathname === '/login'")

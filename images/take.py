"""Takes the pictures of the README: the console over the demonstration archive, in a real browser (needs Chromium).

    .venv/bin/python images/take.py

The archive is the one of ``tests/collector/seed_archive.py``: 41 invented devices in three offices, every state once at least.
"""

from __future__ import annotations

import base64
import sys
import tempfile
import time
from pathlib import Path

import trio

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "collector"))

from chromium import open_tab  # noqa: E402
from console_client import PLAIN  # noqa: E402
from console_process import running_console  # noqa: E402
from seed_archive import fleet, seed  # noqa: E402

PICTURES = (
    ("console-overview", "light", "/"),
    ("console-overview-dark", "dark", "/"),
    ("console-devices", "light", "/devices?state=failing"),
    ("console-device", "light", f"/devices/{fleet()[9].device}"),
    ("console-savings", "light", "/savings"),
)


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="pcm-pictures-") as folder:
        place = Path(folder)
        await seed(place / "archive.sqlite", now_ms=time.time_ns() // 1_000_000, reports_each=30)
        async with running_console(place / "archive.sqlite", place) as console, open_tab(place) as tab:
            await tab.width(1_280)
            await tab.go(f"{console.address}/login")
            await tab.evaluate(f"document.querySelector('[type=password]').value = {PLAIN!r}")
            await tab.evaluate("document.querySelector('form').submit()")
            await tab.until("location.pathname === '/'")
            for name, scheme, page in PICTURES:
                await tab.colours(scheme)
                await tab.go(console.address + page)
                await tab.until("document.getElementById('live').dataset.state === 'on'")
                if page == "/savings":
                    await tab.until("document.querySelector('#chart canvas')")
                picture = await tab.call("Page.captureScreenshot", format="png")
                (HERE / f"{name}.png").write_bytes(base64.b64decode(picture["data"]))


if __name__ == "__main__":
    trio.run(main)

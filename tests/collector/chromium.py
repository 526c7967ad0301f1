"""A real browser without a screen, spoken to over two pipes (the DevTools protocol, messages end with NUL)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--mute-audio"),
    *("--remote-debugging-pipe", "--no-proxy-server", "--hide-scrollbars", "about:blank"),
)
CALL_TIMEOUT_S = 120.0


class Unanswered(AssertionError):
    """The browser refused a call; most often because the page it was about has been replaced."""


class Tab:
    """One tab. ``complaints`` collects errors of scripts, of the console and of the network."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._out = trio.lowlevel.FdStream(to_browser)
        self._in = trio.lowlevel.FdStream(from_browser)
        self._answers: dict[int, dict[str, Any]] = {}
        self._arrived = trio.Event()
        self._number = 0
        self._session = ""
        self.complaints: list[str] = []

    async def run(self) -> None:
        received = b""
        while part := await self._in.receive_some():
            *messages, received = (received + part).split(b"\0")
            for data in messages:
                self._take(msgspec.json.decode(data))
            self._arrived.set()
            self._arrived = trio.Event()

    def _take(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if "id" in message:
            self._answers[message["id"]] = message
        elif message["method"] == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"])[:300])
        elif message["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif message["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.complaints.append(str(params["args"])[:300])

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        await self._out.send_all(msgspec.json.encode(message) + b"\0")
        with trio.fail_after(CALL_TIMEOUT_S):
            while number not in self._answers:
                await self._arrived.wait()
        answer = self._answers.pop(number)
        if "error" in answer:
            raise Unanswered(str(answer["error"]))
        result: dict[str, Any] = answer["result"]
        return result

    async def attach(self) -> None:
        target = (await self.call("Target.createTarget", url="about:blank"))["targetId"]
        self._session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")

    async def evaluate(self, script: str) -> Any:
        """The value of a script, promises awaited."""
        result = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait inside the page, whichever that is by then, until ``condition`` is true there."""
        look = (
            "new Promise((done) => { const end = Date.now() + 1000; const look = () => { let value = null;"
            f" try {{ value = ({condition}); }} catch {{}}"
            " if (value || Date.now() > end) done(Boolean(value)); else setTimeout(look, 20); }; look(); })"
        )
        with trio.move_on_after(CALL_TIMEOUT_S):
            while True:
                try:
                    if await self.evaluate(look):
                        return
                except Unanswered:
                    continue
        raise AssertionError(f"never became true: {condition}; complaints: {self.complaints}")

    async def go(self, address: str) -> None:
        """Open an address and wait until it has loaded."""
        await self.evaluate("window.leaving = true")
        await self.call("Page.navigate", url=address)
        await self.until("!window.leaving && document.readyState === 'complete'")

    async def colours(self, scheme: str) -> None:
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def width(self, pixels: int) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=pixels, height=900, deviceScaleFactor=1, mobile=pixels < 600
        )

    async def press(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, text=text)


@asynccontextmanager
async def open_tab(folder: Path) -> AsyncIterator[Tab]:
    """A fresh browser with a fresh profile below ``folder``."""
    assert PROGRAM is not None
    browser_in, to_browser = os.pipe()
    from_browser, browser_out = os.pipe()
    # The protocol's pipes are file descriptors 3 and 4 of the browser.
    script = f'exec 3<&{browser_in} 4>&{browser_out}; exec "$@"'
    process = await trio.lowlevel.open_process(
        ["bash", "-c", script, "bash", PROGRAM, *FLAGS, f"--user-data-dir={folder / 'profile'}"],
        pass_fds=(browser_in, browser_out),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(browser_in)
    os.close(browser_out)
    tab = Tab(to_browser, from_browser)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tab.run)
            await tab.attach()
            yield tab
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await tab._out.aclose()  # the browser ends when its pipe is closed
            await tab._in.aclose()
            with trio.move_on_after(5):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()

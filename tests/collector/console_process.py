"""The console as its own process, the way the collector starts it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import trio
from console_client import PLAIN, token_of

START_TIMEOUT_S = 120.0


@dataclass
class RunningConsole:
    process: trio.Process
    host: str
    port: int
    log: Path

    @property
    def address(self) -> str:
        return f"http://{self.host}:{self.port}"

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx2.AsyncClient]:
        async with httpx2.AsyncClient(base_url=self.address, timeout=60, trust_env=False) as client:
            form = await client.get("/login")
            response = await client.post("/login", data={"token": token_of(form.text), "password": PLAIN, "next": "/"})
            assert response.status_code == 303
            yield client


@asynccontextmanager
async def running_console(archive: Path, folder: Path, *more: str) -> AsyncIterator[RunningConsole]:
    """Start it on a free port of loopback, wait until it serves, and end it by closing its standard input."""
    password_file, port_file, log = folder / "password", folder / "port", folder / "console.log"
    if not password_file.exists():
        password_file.write_text(PLAIN)
    port_file.unlink(missing_ok=True)
    command = [
        *(sys.executable, "-m", "pcm_p2p.collector.console", "--until-stdin-closes", "--archive", str(archive)),
        *("--listen", "127.0.0.1:0", "--password-file", str(password_file), "--port-file", str(port_file), *more),
    ]
    with log.open("ab") as output:
        process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stderr=output)
    try:
        with trio.fail_after(START_TIMEOUT_S):
            while not port_file.exists():
                assert process.poll() is None, log.read_text()
                await trio.sleep(0.02)
        host, _, port = port_file.read_text().rpartition(":")
        yield RunningConsole(process, host, int(port), log)
    finally:
        with trio.CancelScope(shield=True):
            assert process.stdin is not None
            await process.stdin.aclose()
            with trio.move_on_after(60):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()

"""A browser without a screen: the console's ASGI application in-process, behind ``httpx2``."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import unescape
from pathlib import Path

import httpx2
import nacl.pwhash

from pcm_p2p.collector.console.app import create_app
from pcm_p2p.collector.console.login import Gate
from pcm_p2p.collector.console.password import Password
from pcm_p2p.collector.console.state import Console

NOW_MS = 1_795_445_000_000
PLAIN = "correct horse"
HASHED = nacl.pwhash.argon2id.str(
    PLAIN.encode(), opslimit=nacl.pwhash.argon2id.OPSLIMIT_MIN, memlimit=nacl.pwhash.argon2id.MEMLIMIT_MIN
)


@asynccontextmanager
async def browser(
    archive: Path, *, secure: bool = False, address: str = "192.0.2.7"
) -> AsyncIterator[httpx2.AsyncClient]:
    """A client that has not logged in."""
    console = Console(archive, Gate(Password(HASHED), secure=secure), now_ms=lambda: NOW_MS)
    transport = httpx2.ASGITransport(app=create_app(console), client=(address, 40_000), raise_app_exceptions=False)
    async with httpx2.AsyncClient(
        transport=transport, base_url=f"http{'s' if secure else ''}://console.test"
    ) as client:
        yield client


@asynccontextmanager
async def signed_in(archive: Path) -> AsyncIterator[httpx2.AsyncClient]:
    """A client after the login form."""
    async with browser(archive) as client:
        response = await log_in(client)
        assert response.status_code == 303, response.text
        yield client


async def log_in(client: httpx2.AsyncClient, password: str = PLAIN, **changes: str) -> httpx2.Response:
    """Fetch the form, fill it, send it."""
    form = await client.get("/login")
    return await client.post(
        "/login", data={"token": token_of(form.text), "password": password, "next": "/", **changes}
    )


def token_of(html: str) -> str:
    (token,) = re.findall(r'name="token" value="([^"]*)"', html)
    return str(token)


def links(html: str) -> list[tuple[str, str]]:
    """(address, text without tags) of each link."""
    return [
        (unescape(address), re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", text))).strip())
        for address, text in re.findall(r'<a [^>]*?href="([^"]+)"[^>]*>(.*?)</a>', html, flags=re.DOTALL)
    ]


def main_of(html: str) -> str:
    return html.partition("<main")[2].partition("</main>")[0]

"""The console as it runs: a real process, a real socket, and what a hostile or broken client sends to it."""

from __future__ import annotations

import signal
import sqlite3
import ssl
import subprocess
import sys
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import httpx2
import pytest
import trio
from console_client import NOW_MS, PLAIN
from console_process import RunningConsole, running_console
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID
from seed_archive import fleet, reports

from pcm_p2p.collector.archive import Archive
from pcm_p2p.collector.schema import MIGRATIONS
from pcm_p2p.database import open_database
from pcm_p2p.sidecar import open_sidecar

UPGRADE = (
    b"GET %b HTTP/1.1\r\nHost: console\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
EVENTS = b"GET /events HTTP/1.1\r\nHost: console\r\nCookie: %b\r\nLast-Event-ID: %b\r\n\r\n"


async def send(console: RunningConsole, *parts: bytes, patience_s: float = 1.0) -> bytes:
    """Send raw bytes over one connection and read what comes until it closes, or for a moment. It may close early."""
    stream = await trio.open_tcp_stream(console.host, console.port)
    answer = b""
    async with stream:
        with suppress(trio.BrokenResourceError):
            for part in parts:
                await stream.send_all(part)
        with suppress(trio.BrokenResourceError), trio.move_on_after(patience_s) as scope:
            while received := await stream.receive_some():
                answer += received
                scope.deadline = min(scope.deadline, trio.current_time() + 1.0)
    return answer


async def test_malformed_upgrades_and_noise_do_not_end_it(demo_archive: Path, tmp_path: Path) -> None:
    """A valid WebSocket upgrade followed by stray bytes, sent twice, ends other servers as a whole."""
    async with running_console(demo_archive, tmp_path) as console, console.client() as client:
        async with trio.open_nursery() as nursery:
            for path in (b"/", b"/events", b"/login"):
                for _ in range(2):
                    nursery.start_soon(send, console, UPGRADE % path, b"x\n")
            for parts in (
                (UPGRADE % b"/" + b"x\n",),
                (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",),
                (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\xff" * 64),
                (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,),
                (b"POST /login HTTP/1.1\r\nHost: c\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",),
                (b"POST /login HTTP/1.1\r\nHost: c\r\nContent-Length: -1\r\n\r\n",),
                (b"GET http://[::1/ HTTP/1.1\r\nHost: c\r\n\r\n",),
                (b"\0" * 5_000,),
            ):
                nursery.start_soon(send, console, *parts)
        assert console.process.poll() is None, console.log.read_text()
        assert (await client.get("/healthz")).json() == {"ok": True}
        assert (await client.get("/")).status_code == 200


@pytest.mark.parametrize("path", [b"/", b"/events", b"/login"])
async def test_no_upgrade_is_ever_accepted(demo_archive: Path, tmp_path: Path, path: bytes) -> None:
    async with running_console(demo_archive, tmp_path) as console:
        answer = await send(console, UPGRADE % path, patience_s=60.0)
        assert answer.startswith(b"HTTP/1.1 40")


async def test_a_form_without_end_is_refused(demo_archive: Path, tmp_path: Path) -> None:
    head = b"POST /login HTTP/1.1\r\nHost: c\r\nContent-Length: 90000000\r\n\r\n"
    async with running_console(demo_archive, tmp_path) as console:
        assert (await send(console, head, b"x" * 100_000, patience_s=60.0)).startswith(b"HTTP/1.1 400")


async def test_a_page_is_told_when_the_archive_changes(tmp_path: Path) -> None:
    path = tmp_path / "archive.sqlite"
    first, second, *_ = list(reports(fleet()[0], NOW_MS, 2))
    async with open_sidecar() as sidecar, open_database(sidecar, path, MIGRATIONS) as database:
        archive = Archive(database)
        await archive.take([first])
        async with running_console(path, tmp_path) as console, console.client() as client:
            cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
            with trio.fail_after(60):
                async with await trio.open_tcp_stream(console.host, console.port) as stream:
                    await stream.send_all(EVENTS % (cookie.encode(), b"nonsense"))
                    head = await receive_until(stream, b"event: hello\ndata: 1\n\n")
                    assert b"content-type: text/event-stream" in head
                    await archive.take([second])
                    await receive_until(stream, b"id: 2\nevent: archive\ndata: 2\n\n")
                # Whoever comes back and names an older event is told at once.
                async with await trio.open_tcp_stream(console.host, console.port) as stream:
                    await stream.send_all(EVENTS % (cookie.encode(), b"1"))
                    await receive_until(stream, b"id: 2\nevent: archive\ndata: 2\n\n")


async def receive_until(stream: trio.SocketStream, wanted: bytes) -> bytes:
    received = b""
    while wanted not in received:
        part = await stream.receive_some()
        assert part, received
        received += part
    return received


async def test_it_ends_with_its_parent_and_on_sigterm_with_status_0(demo_archive: Path, tmp_path: Path) -> None:
    async with (
        running_console(demo_archive, tmp_path) as console,
        console.client() as client,
        client.stream("GET", "/events"),
    ):
        console.process.send_signal(signal.SIGTERM)
        with trio.fail_after(60):
            assert await console.process.wait() == 0
    async with running_console(demo_archive, tmp_path) as console:
        assert console.process.stdin is not None
        await console.process.stdin.aclose()
        with trio.fail_after(60):
            assert await console.process.wait() == 0
    assert PLAIN not in console.log.read_text()


async def test_the_password_is_shown_once(demo_archive: Path, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("")
    (tmp_path / "password").unlink()
    for _ in range(2):
        command = [
            *(
                sys.executable,
                "-m",
                "pcm_p2p.collector.console",
                "--until-stdin-closes",
                "--archive",
                str(demo_archive),
            ),
            *("--listen", "127.0.0.1:0", "--password-file", str(tmp_path / "password")),
        ]
        done = await trio.run_process(command, stdin=b"", capture_stderr=True)
        with (tmp_path / "log").open("ab") as log:
            log.write(done.stderr)
    assert (tmp_path / "log").read_text().count("shown once") == 1


async def test_it_starts_before_the_archive_exists_and_finds_it_later(tmp_path: Path) -> None:
    path = tmp_path / "archive.sqlite"
    async with running_console(path, tmp_path) as console, console.client() as client:
        assert (await client.get("/healthz")).status_code == 503
        assert (await client.get("/")).status_code == 503
        async with open_sidecar() as sidecar, open_database(sidecar, path, MIGRATIONS):
            assert (await client.get("/")).status_code == 200
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript("DROP TABLE device")
        assert (await client.get("/")).status_code == 503


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--listen", "203.0.113.1:1"], "cannot listen on 203.0.113.1:1"),
        (["--listen", "nowhere"], "is not HOST:PORT"),
        (["--certificate", "/dev/null", "--key", "/dev/null"], "cannot use /dev/null"),
        (["--password-file", "/dev/null/x"], "password file"),
    ],
)
def test_what_keeps_it_from_starting_is_one_sentence_and_an_exit_status(
    tmp_path: Path, arguments: list[str], says: str
) -> None:
    command = [
        *(sys.executable, "-m", "pcm_p2p.collector.console", "--archive", str(tmp_path / "a")),
        *("--password-file", str(tmp_path / "password"), *arguments),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode in (2, 6)
    assert says in done.stderr
    assert "Traceback" not in done.stderr


async def test_it_speaks_https_when_given_a_certificate(demo_archive: Path, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make_certificate(certificate, key)
    more = ["--certificate", str(certificate), "--key", str(key)]
    async with running_console(demo_archive, tmp_path, *more) as console:
        context = ssl.create_default_context(cafile=str(certificate))
        async with httpx2.AsyncClient(verify=context, trust_env=False) as client:
            response = await client.get(f"https://{console.host}:{console.port}/login")
        assert response.status_code == 200
        assert "__Host-pcm-form=" in response.headers["set-cookie"]
        assert "Secure" in response.headers["set-cookie"]


def make_certificate(certificate: Path, key: Path) -> None:
    """A self-signed certificate for 127.0.0.1."""
    private = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "console")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(private, None)
    )
    pem = serialization.Encoding.PEM
    certificate.write_bytes(made.public_bytes(pem))
    key.write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))

"""The other ways to bring a new version to who has the old one, each run as its users would, for ``bench/delta.py``.

=========  ==================  ===============================================================================================
name       on                  how
=========  ==================  ===============================================================================================
debdelta   the packages        ``debdelta --no-md5``, ``debpatch -A``; the endpoint's time includes packing the .deb again
xdelta3    the stored forms    ``-9 -S lzma`` with a source window as large as the old file, 64 MiB at least
zstd       the stored forms    ``-19 --long=31 --patch-from``
zsync      the stored forms    ``zsyncmake -z``, so that what is fetched is compressed; bytes are the .zsync file and what a
                               local server was asked for
casync     the stored forms    ``casync make`` of both into one store, zstd inside; bytes are the new chunks and the index
cdc        the stored forms    the chunks of this project that are new, each packed alone by zstd 19
=========  ==================  ===============================================================================================

Who does not know debs gets stored forms, because two compressed packages share nothing. What comes out is compared with what
should. Time is wall time, memory that of the largest process, as the kernel counts them for processes that have ended (a
process begins with the peak of who started it, so this one imports little).
"""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

MB = 1_000_000
PACKAGES = "apt-get install debdelta xdelta3 zsync casync zstd"


class NotMeasured(Exception):
    """A tool is absent, took too long, or did not give what it should."""


@dataclass
class Used:
    """What a child process took, and those that it waited for."""

    wall_s: float = 0
    core_s: float = 0
    peak_mb: float = 0

    def __add__(self, other: Used) -> Used:
        return Used(self.wall_s + other.wall_s, self.core_s + other.core_s, max(self.peak_mb, other.peak_mb))


@dataclass
class Figures:
    """Of one tool on one pair: bytes that the endpoint fetches, and what both ends took."""

    size_bytes: int
    publisher: Used
    endpoint: Used


@dataclass
class Pair:
    """Two packages and, where ``stored`` made them, their stored forms; ``work`` is a folder for one tool after the other."""

    name: str
    kind: str
    old_deb: Path
    new_deb: Path
    work: Path
    timeout_s: float

    @property
    def old(self) -> Path:
        return self.work / "old.stored"

    @property
    def new(self) -> Path:
        return self.work / "new.stored"


def run(command: Sequence[str | Path], pair: Pair, *, cwd: Path | None = None) -> tuple[Used, str]:
    """Run to the end: what it took, and what it printed. Raises ``NotMeasured``."""
    log, begun = pair.work / "log", monotonic()
    with log.open("w+b") as output:
        child = subprocess.Popen(
            [str(part) for part in command],
            cwd=cwd or pair.work,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        late = threading.Timer(pair.timeout_s, os.killpg, (child.pid, signal.SIGKILL))
        late.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
        finally:
            in_time = late.is_alive()
            late.cancel()
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read().decode(errors="replace")
    used = Used(monotonic() - begun, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / MB)
    if not in_time:
        raise NotMeasured(f"more than {pair.timeout_s:.0f} s")
    if child.returncode:
        raise NotMeasured(f"{Path(command[0]).name} ended with {child.returncode}: {said.strip()[-200:]}")
    return used, said


def python(what: str, pair: Pair, *arguments: str | Path) -> tuple[Used, dict[str, Any]]:
    """A measurement of this project, in a fresh process that prints JSON."""
    used, said = run([sys.executable, Path(__file__).with_name("delta_ours.py"), what, *arguments], pair)
    result: dict[str, Any] = json.loads(said)
    return used, result


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def same(made: Path, wanted: Path) -> None:
    if sha256(made) != sha256(wanted):
        raise NotMeasured("what came out is not the new version")


@contextmanager
def scratch(pair: Pair) -> Iterator[Path]:
    folder = pair.work / "scratch"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def plain(pair: Pair) -> Figures:
    return Figures(pair.new_deb.stat().st_size, Used(), Used())


def cdc(pair: Pair) -> Figures:
    with scratch(pair) as folder:
        publisher, made = python("cdc-publish", pair, pair.old, pair.new, folder / "blobs")
        endpoint, _ = python("cdc-apply", pair, pair.old, folder / "blobs", folder / "out")
        same(folder / "out", pair.new)
    return Figures(made["size_bytes"], publisher, endpoint)


def xdelta3(pair: Pair) -> Figures:
    window = str(1 << max(26, (pair.old.stat().st_size - 1).bit_length()))
    with scratch(pair) as folder:
        patch = folder / "patch"
        publisher, _ = run(["xdelta3", "-e", "-9", "-S", "lzma", "-B", window, "-s", pair.old, pair.new, patch], pair)
        endpoint, _ = run(["xdelta3", "-d", "-B", window, "-s", pair.old, patch, folder / "out"], pair)
        same(folder / "out", pair.new)
        return Figures(patch.stat().st_size, publisher, endpoint)


def zstd(pair: Pair) -> Figures:
    with scratch(pair) as folder:
        patch = folder / "patch"
        publisher, _ = run(["zstd", "-q", "-19", "--long=31", f"--patch-from={pair.old}", pair.new, "-o", patch], pair)
        endpoint, _ = run(
            ["zstd", "-q", "-d", "--long=31", f"--patch-from={pair.old}", patch, "-o", folder / "out"], pair
        )
        same(folder / "out", pair.new)
        return Figures(patch.stat().st_size, publisher, endpoint)


def casync(pair: Pair) -> Figures:
    with scratch(pair) as folder:
        store = folder / "store"
        make: list[str | Path] = ["casync", "make", f"--store={store}", "--compression=zstd"]
        run([*make, folder / "old.caibx", pair.old], pair)
        before = set(store.rglob("*.cacnk"))
        publisher, _ = run([*make, folder / "new.caibx", pair.new], pair)
        new = set(store.rglob("*.cacnk")) - before
        endpoint, _ = run(["casync", "extract", f"--store={store}", folder / "new.caibx", folder / "out"], pair)
        same(folder / "out", pair.new)
        size = sum(path.stat().st_size for path in new) + (folder / "new.caibx").stat().st_size
    return Figures(size, publisher, endpoint)


def zsync(pair: Pair) -> Figures:
    with scratch(pair) as folder:
        (folder / "new").symlink_to(pair.new)
        publisher, _ = run(["zsyncmake", "-z", "-u", "new.gz", "-o", "new.zsync", "new"], pair, cwd=folder)
        with _served(folder) as (address, fetched):
            # The client resolves relative addresses against a local .zsync file not at all: it gets it by address too.
            endpoint, _ = run(["zsync", "-q", "-i", pair.old, "-o", "out", f"{address}/new.zsync"], pair, cwd=folder)
        same(folder / "out", pair.new)
        return Figures(sum(fetched), publisher, endpoint)


def debdelta(pair: Pair) -> Figures:
    with scratch(pair) as folder:
        patch = folder / "patch.debdelta"
        publisher, _ = run(["debdelta", "--no-md5", pair.old_deb, pair.new_deb, patch], pair)
        if not patch.exists():
            raise NotMeasured("made no delta")
        size = patch.stat().st_size
        try:
            endpoint, _ = run(["debpatch", "-A", "--no-md5", patch, pair.old_deb, folder / "out.deb"], pair)
            same(folder / "out.deb", pair.new_deb)
        except NotMeasured as error:
            # A delta whose package cannot be rebuilt bit by bit is still one; what it cost to fetch stands.
            print(f"{pair.name}: debpatch: {error}", file=sys.stderr)
            endpoint = Used()
        return Figures(size, publisher, endpoint)


def measured(tool: str, pair: Pair, cache: Path, *, kept: bool) -> Figures:
    """What ``tool`` takes, kept in ``cache``; with ``kept`` what it took before on the same two files, if it is there."""
    key = hashlib.sha256(f"{sha256(pair.old_deb)} {sha256(pair.new_deb)}".encode()).hexdigest()[:20]
    note = cache / f"{pair.name}-{key}.{tool}.json"
    found: dict[str, Any] = json.loads(note.read_text()) if kept and note.exists() else {}
    if "size_bytes" in found:
        return Figures(found["size_bytes"], Used(**found["publisher"]), Used(**found["endpoint"]))
    if found.get("timeout_s", 0) >= pair.timeout_s:
        raise NotMeasured(found["failed"])
    program, how = TOOLS[tool]
    if not shutil.which(program):
        raise NotMeasured(f"there is no {program} here ({PACKAGES})")
    try:
        figures = how(pair)
    except NotMeasured as error:
        note.write_text(json.dumps({"failed": str(error), "timeout_s": pair.timeout_s}))
        raise
    note.write_text(json.dumps(asdict(figures)))
    return figures


TOOLS: dict[str, tuple[str, Callable[[Pair], Figures]]] = {
    "plain": ("true", plain),
    "cdc": ("true", cdc),
    "zsync": ("zsync", zsync),
    "casync": ("casync", casync),
    "xdelta3": ("xdelta3", xdelta3),
    "zstd": ("zstd", zstd),
    "debdelta": ("debdelta", debdelta),
}
"""The program that each needs, and how to run it."""


class _Ranges(http.server.BaseHTTPRequestHandler):
    """Files of one folder, whole or in ranges: the server of the standard library knows no ranges."""

    protocol_version = "HTTP/1.1"
    folder: Path
    fetched: list[int]

    def do_GET(self) -> None:
        path = self.folder / Path(self.path).name
        if not path.is_file():
            self.send_error(404)
            return
        data, asked = path.read_bytes(), self.headers.get("Range", "")
        parts = [self._range(part, len(data)) for part in asked.removeprefix("bytes=").split(",")] if asked else []
        if not parts:
            self._answer(200, {}, data)
        elif len(parts) == 1:
            begin, end = parts[0]
            self._answer(206, {"Content-Range": f"bytes {begin}-{end - 1}/{len(data)}"}, data[begin:end])
        else:
            body = b"".join(
                f"\r\n--x\r\nContent-Type: application/octet-stream\r\n"
                f"Content-Range: bytes {begin}-{end - 1}/{len(data)}\r\n\r\n".encode()
                + data[begin:end]
                for begin, end in parts
            )
            self._answer(206, {"Content-Type": "multipart/byteranges; boundary=x"}, body + b"\r\n--x--\r\n")

    @staticmethod
    def _range(part: str, size: int) -> tuple[int, int]:
        begin, _, end = part.strip().partition("-")
        return int(begin), min(int(end) + 1 if end else size, size)

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.fetched.append(len(body))

    def log_message(self, *_: object) -> None:
        """Nothing: the table is what is printed."""


@contextmanager
def _served(folder: Path) -> Iterator[tuple[str, list[int]]]:
    fetched: list[int] = []
    handler = type("Handler", (_Ranges,), {"folder": folder, "fetched": fetched})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

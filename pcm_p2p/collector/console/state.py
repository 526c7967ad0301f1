"""What the pages, the API and the events share: where the archive is, who may ask, and how a page is filled."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import jinja2
import msgspec
import trio
from starlette.requests import Request
from starlette.responses import HTMLResponse

from pcm_p2p.collector import fleet
from pcm_p2p.collector.console import presentation
from pcm_p2p.collector.console.events import Watch
from pcm_p2p.collector.console.login import Gate
from pcm_p2p.collector.snapshot import STALE_AFTER_MS, Snapshot, open_snapshot
from pcm_p2p.errors import UntrustedBytes

HERE = Path(__file__).parent
STATIC = HERE / "static"
PARAMETER_CHARS_MAX = 600
READERS = 4
"""Choice: requests that read the archive at the same time; others wait their turn."""

T = TypeVar("T")
Chosen = TypeVar("Chosen", bound=msgspec.Struct)


def wall_clock_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


@dataclass
class Console:
    """One console: made once, used by every request."""

    archive: Path
    gate: Gate
    now_ms: Callable[[], int] = wall_clock_ms
    stale_after_ms: int = STALE_AFTER_MS
    watch: Watch = field(init=False)
    templates: jinja2.Environment = field(init=False)
    _readers: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(READERS))

    def __post_init__(self) -> None:
        self.watch = Watch(self.archive)
        self.templates = _environment()

    async def read(self, view: Callable[[Snapshot], T]) -> T:
        """Run ``view`` on a snapshot of now, in a worker thread. Raises ``StorageError`` and ``Degraded``."""

        def work() -> T:
            with open_snapshot(self.archive, self.now_ms(), stale_after_ms=self.stale_after_ms) as snapshot:
                return view(snapshot)

        return await trio.to_thread.run_sync(work, limiter=self._readers)

    def page(self, request: Request, template: str, *, status: int = 200, **values: object) -> HTMLResponse:
        """Fill ``template``."""
        session = self.gate.session(request)
        html = self.templates.get_template(template).render(
            path=request.url.path,
            form_token=session.form_token if session else "",
            signed_in=session is not None,
            ago=partial(presentation.ago, now_ms=self.now_ms()),
            **values,
        )
        return HTMLResponse(html, status)


def parameters_untrusted(request: Request, kind: type[Chosen]) -> Chosen:
    """The query parameters that ``kind`` has a text field for. Raises ``UntrustedBytes`` if one is too long."""
    chosen = {}
    for name in kind.__struct_fields__:
        value = request.query_params.get(name, "")
        if len(value) > PARAMETER_CHARS_MAX or "\0" in value:
            raise UntrustedBytes(f"{name} has more than {PARAMETER_CHARS_MAX} characters, or a NUL")
        chosen[name] = value.strip()
    return kind(**chosen)


def number_untrusted(text: str, default: int) -> int:
    """A number of at most eight digits; anything else is ``default``."""
    return int(text) if len(text) <= 8 and text.isascii() and text.isdigit() else default


def _environment() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("label", "tone", "size", "percent", "factor", "span", "moment", "clock", "iso"):
        templates.filters[name] = getattr(presentation, name)
    templates.globals["static"] = dict(_static_addresses())
    templates.globals["DEVICE_STATES"] = fleet.DEVICE_STATES
    templates.globals["COVERAGE"] = fleet.COVERAGE
    templates.globals["PROGRESS"] = fleet.PROGRESS
    return templates


def _static_addresses() -> Iterator[tuple[str, str]]:
    """Each static file's address, with its hash, so that a browser may keep it for ever."""
    for path in sorted(STATIC.rglob("*")):
        if path.is_file():
            name = path.relative_to(STATIC).as_posix()
            yield name, f"/static/{name}?v={hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"

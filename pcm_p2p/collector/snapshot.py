"""A view of the archive at one moment: read-only, consistent, bounded in time.

The console opens one for each request. All numbers of a page come from one SQLite read transaction, and all freshness from one
``now_ms``, so a page cannot contradict itself.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pcm_p2p.errors import Degraded, StorageError

STALE_AFTER_MS = 6 * 3_600_000
"""Choice: three assessment intervals (``config.Assess``); a device that missed three is not known to be anything."""
TIMEOUT_S = 10.0
"""Choice: a query that takes longer is ended, so that one page cannot hold up the others."""


@dataclass(frozen=True)
class Snapshot:
    """``as_of_ms`` is the moment of reading, by this machine's clock."""

    connection: sqlite3.Connection
    as_of_ms: int
    stale_after_ms: int = STALE_AFTER_MS

    @property
    def fresh_from_ms(self) -> int:
        """Reports older than this are stale."""
        return self.as_of_ms - self.stale_after_ms

    def rows(self, sql: str, values: Mapping[str, object] | None = None) -> list[sqlite3.Row]:
        """Run a query; ``:fresh_from_ms`` is always there to be used."""
        return list(self.connection.execute(sql, {"fresh_from_ms": self.fresh_from_ms, **(values or {})}))

    def changes(self) -> int:
        """How often the archive has changed: grows by at least one whenever a page could look different."""
        ((value,),) = self.rows("SELECT value FROM meta WHERE key = 'changes'")
        return int(value)


@contextlib.contextmanager
def open_snapshot(path: Path, now_ms: int, *, stale_after_ms: int = STALE_AFTER_MS) -> Iterator[Snapshot]:
    """Open the archive at ``path``, which may be written at the same time by the collector.

    Raises ``StorageError`` if it is absent or unreadable, ``Degraded`` if a query took longer than ``TIMEOUT_S``.
    """
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=2.0, isolation_level=None)
    except sqlite3.Error as error:
        raise StorageError(
            f"cannot open the archive {path}: {error}", remedy="Start the collector; it creates the archive."
        ) from None
    try:
        connection.row_factory = sqlite3.Row
        deadline = time.monotonic() + TIMEOUT_S
        connection.set_progress_handler(lambda: time.monotonic() > deadline, 50_000)
        connection.execute("BEGIN")
        yield Snapshot(connection, now_ms, stale_after_ms)
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
            raise Degraded(
                f"the archive did not answer within {TIMEOUT_S:.0f} s", remedy="Narrow the filter."
            ) from None
        raise StorageError(
            f"cannot read the archive {path}: {error}", remedy="Start the collector; it creates or repairs the archive."
        ) from None
    finally:
        connection.close()

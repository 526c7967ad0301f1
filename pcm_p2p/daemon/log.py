"""Where log lines go: standard error, which systemd keeps with the unit; one line each, as text or as one JSON object."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from pcm_p2p.shown_text import shown


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "room": record.name.removeprefix("pcm_p2p."),
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


class _OneLine(logging.Formatter):
    """What neighbours and files say of themselves stands in messages: it ends no line, and a terminal obeys none of it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        record.message = shown(record.message)
        return super().formatMessage(record)


def configure(*, json_lines: bool, verbose: bool) -> None:
    """Set up logging for a long-running command. Libraries log at WARNING: their chatter is not ours."""
    handler = logging.StreamHandler(sys.stderr)
    text = _OneLine("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%d %H:%M:%S")
    handler.setFormatter(_JsonLines() if json_lines else text)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("pcm_p2p").setLevel(logging.DEBUG if verbose else logging.INFO)

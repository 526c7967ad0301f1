"""Numbers and times as people read them. Pure functions; templates know them as filters."""

from __future__ import annotations

from datetime import UTC, datetime

LABELS = {
    "compliant": "Compliant",
    "failing": "Failing",
    "undecided": "Undecided",
    "unchecked": "No checks",
    "stale": "Stale",
    "unknown": "Never reported",
    "revoked": "Revoked",
    "reporting": "Reporting",
    "installed": "Installed",
    "under_way": "Under way",
    "in_trouble": "In trouble",
    "pass": "Pass",
    "fail": "Fail",
    "error": "Error",
    "not_run": "Not run",
    "not_applicable": "Not applicable",
    "manual": "Manual",
    "wanted": "Wanted",
    "fetching": "Fetching",
    "staged": "Staged",
    "waiting": "Waiting",
    "applying": "Applying",
    "applied": "Installed",
    "rolled_back": "Rolled back",
    "parked": "Parked",
    "failed": "Failed",
    "fresh": "Fresh",
    "frozen": "Frozen",
    "none": "None yet",
    "conflict": "Two reports under one number",
    "clone": "Identity used twice",
    "fork": "Metadata signed twice",
    "gap": "Reports missing",
    "clock": "Clock ahead",
    "asked": "Asked",
    "observe": "Observe",
    "notify": "Notify",
    "enforce": "Enforce",
}
"""Every word of state that a page can show."""

TONES = {
    "compliant": "good", "installed": "good", "applied": "good", "pass": "good", "fresh": "good", "reporting": "good",
    "failing": "bad", "in_trouble": "bad", "fail": "bad", "failed": "bad", "parked": "bad", "rolled_back": "bad",
    "frozen": "bad", "conflict": "bad", "clone": "bad", "fork": "bad", "revoked": "plain",
    "undecided": "warn", "error": "warn", "not_run": "warn", "manual": "warn", "gap": "warn", "clock": "warn",
    "under_way": "busy", "wanted": "busy", "fetching": "busy", "staged": "busy", "waiting": "busy", "applying": "busy",
    "stale": "stale", "unknown": "blank", "none": "blank", "unchecked": "plain", "not_applicable": "plain",
}  # fmt: skip
"""Which of the seven colours a word gets; the word and its icon say the same without colour."""


def label(word: str) -> str:
    """The words of a state; an unknown one is shown as it is, never hidden."""
    return LABELS.get(word, word.replace("_", " ") or "none")


def tone(word: str) -> str:
    """The colour class of a state."""
    return TONES.get(word, "plain")


def size(size_bytes: float) -> str:
    """Bytes in decimal units, three significant digits: ``402 MB``."""
    sign, value = ("\N{MINUS SIGN}", -size_bytes) if size_bytes < 0 else ("", size_bytes)
    if value < 1_000:
        return f"{sign}{value:.0f}\N{NO-BREAK SPACE}B"
    units = ["kB", "MB", "GB", "TB", "PB"]
    value /= 1_000
    while value >= 999.5 and len(units) > 1:
        value /= 1_000
        del units[0]
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{sign}{value:.{digits}f}\N{NO-BREAK SPACE}{units[0]}"


def percent(part: int, whole: int) -> str:
    """A share that never says "all" or "none" when it is not so."""
    if whole <= 0:
        return "\N{EN DASH}"
    share = 100 * part / whole
    if 0 < share < 1:
        return "<1\N{NO-BREAK SPACE}%"
    return f"{int(share)}\N{NO-BREAK SPACE}%"


def factor(value: float | None) -> str:
    """Amplification: ``1.02×``."""
    return "\N{EN DASH}" if value is None else f"{value:.2f}\N{MULTIPLICATION SIGN}"


def ago(at_ms: int, now_ms: int) -> str:
    """How long ago, in its largest unit: ``3 h ago``."""
    if at_ms <= 0:
        return "never"
    if -60_000 < now_ms - at_ms < 10_000:
        return "just now"
    return f"{span(abs(now_ms - at_ms))} {'ago' if now_ms >= at_ms else 'ahead'}"


def span(duration_ms: int) -> str:
    """A duration in its largest unit: ``45 s``, ``12 min``, ``3 h``, ``9 days``."""
    seconds = duration_ms // 1_000
    for unit, unit_s in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= (2 * unit_s if unit == "days" else unit_s):
            return f"{seconds // unit_s}\N{NO-BREAK SPACE}{unit}"
    return f"{seconds}\N{NO-BREAK SPACE}s"


def moment(at_ms: int) -> str:
    """Date and time to the second, UTC."""
    return "" if at_ms <= 0 else f"{_utc(at_ms):%Y-%m-%d %H:%M:%S} UTC"


def clock(at_ms: int) -> str:
    """Time of day, UTC."""
    return f"{_utc(at_ms):%H:%M:%S} UTC"


def iso(at_ms: int) -> str:
    """For the ``datetime`` attribute."""
    return f"{_utc(at_ms):%Y-%m-%dT%H:%M:%SZ}"


def cell(text: object) -> str:
    """A CSV cell that no spreadsheet takes for a formula."""
    value = str(text)
    return f"'{value}" if value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _utc(at_ms: int) -> datetime:
    return datetime.fromtimestamp(min(at_ms, 253_402_300_799_000) / 1_000, UTC)

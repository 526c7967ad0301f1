"""What in a fleet comes near its end, and what would stop it if one person were away. Pure.

===================  =========================  ========================================================================
what                 days before the end        why so many
===================  =========================  ========================================================================
root                 180 / 90 / 30              people have to meet, or carry files (research/trust.md 4.2)
targets, halt        90 / 30 / 14               signed anew with each release anyway (research/trust.md 4.2)
sites and teams      30 / 30 / 14               they live 90 days; a warning on the first day would be none (choice)
snapshot, timestamp  a third, a ninth of life   the desk signs at two thirds: less means that it does not (choice)
the fleet's CA       730 / 365 / 180            certificates of a year never outlive it (choice)
===================  =========================  ========================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Any

from pcm_p2p.authority.people.rotation import Holders
from pcm_p2p.shown_text import shown


class Level(IntEnum):
    """How much it presses. ``note`` is a choice that somebody made, and no reason to wake anybody."""

    ok = 0
    note = 1
    warn = 2
    critical = 3
    expired = 4


DAYS: dict[str, tuple[int, int, int]] = {
    "root": (180, 90, 30),
    "targets": (90, 30, 14),
    "halt": (90, 30, 14),
    "ca": (730, 365, 180),
}
"""Choices and sources: see the module. The first two are warnings, the last is critical."""
DELEGATED_DAYS = (30, 30, 14)


@dataclass(frozen=True)
class Finding:
    """One line of the check. ``expires`` is ``None`` for what has no end."""

    what: str
    level: Level
    text: str
    expires: datetime | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "level": self.level.name,
            "text": self.text,
            "expires": self.expires.isoformat() if self.expires else None,
        }


def of_people(role: str, expires: datetime, now: datetime) -> Finding:
    """A document that people sign, or the CA."""
    days = DAYS.get(role, DELEGATED_DAYS)
    left = expires - now
    remedy = {
        "root": "propose it anew with 'pcm-p2p fleet renew --role root'",
        "ca": "begin a new authority with 'pcm-p2p fleet new-authority'",
        "targets": "'pcm-p2p fleet renew', and let its holders sign",
    }.get(role, f"'pcm-p2p fleet renew --role {shown(role)}', and let its holders sign")
    if left <= timedelta():
        return Finding(role, Level.expired, f"expired {_span(-left)} ago: {remedy}", expires)
    if left < timedelta(days=days[2]):
        return Finding(role, Level.critical, f"{_span(left)} left, less than {days[2]} days: {remedy}", expires)
    if left < timedelta(days=days[0]):
        bound = days[1] if left < timedelta(days=days[1]) else days[0]
        return Finding(role, Level.warn, f"{_span(left)} left, less than {bound} days: {remedy}", expires)
    return Finding(role, Level.ok, f"{_span(left)} left", expires)


def of_publisher(role: str, expires: datetime, now: datetime, lifetime: timedelta) -> Finding:
    """A document that the publisher signs by itself."""
    left = expires - now
    remedy = "is the desk running with --origin, or 'pcm-p2p fleet refresh' in a timer?"
    if left <= timedelta():
        return Finding(role, Level.expired, f"expired {_span(-left)} ago; {remedy}", expires)
    for share, level in ((9, Level.critical), (3, Level.warn)):
        if left < lifetime / share:
            return Finding(role, level, f"{_span(left)} left of {_span(lifetime)}; {remedy}", expires)
    return Finding(role, Level.ok, f"{_span(left)} left", expires)


def of_floor(overdue: str, expires: datetime, now: datetime) -> Finding:
    """What a site that acts alone holds of the fleet; ``overdue`` says in words that it is out of date, else it is empty."""
    if overdue:
        return Finding("floor", Level.warn, f"{overdue}: 'pcm-p2p site floor'", expires)
    return Finding("floor", Level.ok, f"{_span(expires - now)} left of what is held of the fleet", expires)


def of_thresholds(roles: Iterable[Holders]) -> Iterator[Finding]:
    """Roles that stand still when one person is away, or that one person decides alone."""
    for holders in roles:
        number = len(holders.keys)
        if holders.threshold == number:
            alone = f"{shown(holders.owners[0])} alone signs" if number == 1 else f"all {number} must sign"
            yield Finding(
                holders.role, Level.note, f"{alone}: if one person is away or loses a key, nothing more is signed"
            )


def of_double_roles(roles: Iterable[Holders]) -> Iterator[Finding]:
    """People whose one lost bag takes keys of root and of targets."""
    held = {holders.role: holders.owners for holders in roles}
    both = sorted(set(held.get("root", ())) & set(held.get("targets", ())))
    if both:
        names = ", ".join(shown(name) for name in both)
        hold = "holds" if len(both) == 1 else "hold"
        yield Finding(
            "people", Level.note, f"{names} {hold} keys of root and of targets: keep the root keys in another place"
        )


def of_untested(untested: Iterable[tuple[str, str]]) -> Iterator[Finding]:
    """Keys that never signed anything, as (role, owner): a passphrase that nobody knows is found out when it is needed."""
    by_role: dict[str, list[str]] = {}
    for role, owner in untested:
        by_role.setdefault(role, []).append(shown(owner))
    for role, owners in by_role.items():
        text = f"the key of {', '.join(owners)} never signed: 'pcm-p2p key test KEYFILE --fleet FOLDER'"
        yield Finding(role, Level.warn, text)


def worst(findings: Iterable[Finding]) -> Level:
    return max((finding.level for finding in findings), default=Level.ok)


def _span(span: timedelta) -> str:
    if span >= timedelta(days=2):
        return f"{span.days} days"
    hours = int(span.total_seconds() // 3600)
    return f"{hours} hours" if hours else f"{int(span.total_seconds() // 60)} minutes"

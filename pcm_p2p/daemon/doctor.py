"""A read-only look at one device's set-up: each item with its state and the next step. Quick, changes nothing.

Local items (folder, settings, identity, clock) need no daemon; the rest is asked of it. ``bad`` needs attention now, ``warn``
soon, ``skip`` could not be examined and says why.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from pcm_p2p.apply.dialogue import GetStanding, Standing
from pcm_p2p.config import load_config
from pcm_p2p.daemon.applying.client import ask_once
from pcm_p2p.daemon.control import ask
from pcm_p2p.daemon.state_check import STATE_PRIVATE, faults
from pcm_p2p.enrolment.admittance import GRACE
from pcm_p2p.errors import PcmError

ItemState = Literal["ok", "warn", "bad", "skip"]
CERTIFICATE_WARN_DAYS = 30
"""Choice: a month is enough for a person to act; renewal itself starts at two thirds of the life, 120 days before the end."""


FAULTS_MAX = 8
"""Choice: who has more to mend sees the rest at the next look."""


@dataclass(frozen=True)
class Item:
    name: str
    state: ItemState
    what: str
    next_step: str = ""

    def facts(self) -> dict[str, str]:
        return asdict(self)


def examine(state: Path) -> list[Item]:
    """Every item, in the order in which a person would fix them."""
    items = [*_folder(state), _settings(state), *_apply_service(state), *_identity(state), _disk(state)]
    try:
        facts = ask(state, "status", timeout_s=5.0)
    except PcmError as error:
        return [*items, Item("daemon", "bad", error.message, error.remedy)]
    return [*items, Item("daemon", "ok", f"answers, up {facts['uptime_s']:.0f} s"), *_asked(facts)]


def _folder(state: Path) -> list[Item]:
    """As the daemon looks at it when it starts, for the user whose folder it is."""
    if not state.is_dir():
        return [
            Item(
                "state folder", "bad", f"{state} is not a folder", "Enrol with 'pcm-p2p enroll join TOKEN --state DIR'."
            )
        ]
    found = list(faults(state, STATE_PRIVATE, uid=state.stat().st_uid))[:FAULTS_MAX]
    return [Item("state folder", "bad", f"{one.path}: {one.what}", one.remedy) for one in found] or [
        Item("state folder", "ok", str(state))
    ]


def _settings(state: Path) -> Item:
    try:
        load_config(state / "config.toml")
    except PcmError as error:
        return Item("config.toml", "bad", error.message, error.remedy)
    return Item("config.toml", "ok", "read")


def _apply_service(state: Path) -> list[Item]:
    """Nothing where the daemon applies by itself below a private root."""
    try:
        config = load_config(state / "config.toml")
    except PcmError:
        return []  # said by what looks at the settings
    if not config.apply.service:
        if config.apply.root != "/":
            return []
        text = "the daemon changes the system itself: who takes it over from the network has the device"
        return [Item("apply service", "warn", text, "Let a process apart do it: 'pcm-p2p apply-service adopt'.")]
    try:
        found = ask_once(Path(config.apply.service), GetStanding(), timeout_s=5.0)
    except PcmError as error:
        return [Item("apply service", "bad", error.message, error.remedy)]
    if not isinstance(found, Standing):
        return [Item("apply service", "bad", f"answered with {type(found).__name__}", "Install one version of both.")]
    mine, its = (config.device.site, config.device.labels), (found.site, found.labels)
    if mine != its:
        text = f"takes this for site {its[0]}, labels {', '.join(its[1]) or 'none'}; config.toml says otherwise"
        return [Item("apply service", "warn", text, "Make [device] in config.toml and in its apply.toml the same.")]
    return [Item("apply service", "ok", f"answers, trusts {found.freshness} metadata")]


def _identity(state: Path) -> list[Item]:
    from pcm_p2p.trust.identity import DeviceIdentity, peer_identity_untrusted

    folder = state / "identity"
    try:
        identity = DeviceIdentity.load(folder)
    except (PcmError, OSError) as error:
        return [Item("identity", "bad", str(error), "Enrol again with a new token.")]
    left = identity.not_after - datetime.now(UTC)
    text = f"{identity.role} {identity.device_id.short}, certificate valid for {left.days} more days"
    if left < -GRACE:
        ended = f"the certificate ended on {identity.not_after:%Y-%m-%d}, too long ago to be renewed"
        return [Item("identity", "bad", ended, "Enrol again with a new token: 'pcm-p2p enroll join TOKEN'.")]
    if left < timedelta():
        ended = (
            f"the certificate ended on {identity.not_after:%Y-%m-%d}; neighbours refuse this device until it is renewed"
        )
        way = "Give it a way to the desk or to a neighbour that has one; then the daemon renews by itself."
        return [Item("identity", "bad", ended, way)]
    if left.days < CERTIFICATE_WARN_DAYS:
        return [
            Item("identity", "warn", text, "It should have been renewed long ago: is the daemon running, and the desk?")
        ]
    certified, said = peer_identity_untrusted(identity.certificate_der).site, _site(state)
    if certified and said and certified != said:
        text = f"certified for site {certified}, which neighbours go by; config.toml says {said}"
        return [Item("identity", "warn", text, "A device that moved is enrolled anew, with a token of its site.")]
    return [Item("identity", "ok", text)]


def _site(state: Path) -> str:
    try:
        return load_config(state / "config.toml").device.site
    except PcmError:
        return ""  # said by what looks at the settings


def _disk(state: Path) -> Item:
    if not state.is_dir():
        return Item("disk", "skip", "there is no state folder")
    usage = shutil.disk_usage(state)
    free_pct = 100 * usage.free / usage.total
    if free_pct < 10:
        return Item("disk", "warn", f"{free_pct:.0f} % free", "Free space: the store leaves the last 10 % to others.")
    return Item("disk", "ok", f"{free_pct:.0f} % free")


def _asked(facts: dict[str, Any]) -> list[Item]:
    trust, reports = facts["trust"], facts["reports"]
    items = []
    if trust["state"] == "none":
        items.append(
            Item("trust", "bad", "no signed metadata yet", "Check that the origin or a neighbour is reachable.")
        )
    elif trust["state"] == "fresh":
        items.append(Item("trust", "ok", f"fresh, timestamp {trust['timestamp']}"))
    else:
        items.append(Item("trust", "warn", f"{trust['state']}: {trust['reason']}", "Check the way to the origin."))
    if problem := facts["certificate"]["problem"]:
        items.append(Item("renewal", "warn", problem, "Check the [[desk]] table of fleet.toml and the way there."))
    allowed = facts["activation"]["allowed"]
    items.append(
        Item("activation", "ok", "changes are allowed")
        if allowed
        else Item(
            "activation", "warn", facts["activation"]["why_not"], "An authority signs it: 'pcm-p2p fleet activate'."
        )
    )
    items.append(
        Item("gzip", "ok", "packs as the publisher's does")
        if facts["gzip"]["usable"]
        else Item(
            "gzip",
            "warn",
            f"{facts['gzip']['why_not']}: some deltas are of no use here",
            "Install GNU gzip; until then neighbours that have it take those deltas, or this device full segments.",
        )
    )
    where = ", ".join(facts["listening"])
    items.append(
        Item("listening", "ok", where)
        if where
        else Item(
            "listening",
            "warn",
            "nowhere: no address of this machine is in a subnet of a site, so it dials out only",
            "If neighbours should reach it here, add the subnet to [[site]] in fleet.toml, or set [listen] addresses.",
        )
    )
    site = facts["peers"]["site"]
    items.append(
        Item("neighbours", "ok", f"{site} at this site")
        if site
        else Item("neighbours", "warn", "none at this site", "Check mDNS (UDP 5353) and the peer port between devices.")
    )
    items.append(
        Item("collector", "ok", f"route {reports['route']}, {reports['outbox']} reports waiting")
        if reports["route"] != "none"
        else Item(
            "collector", "warn", f"no route, {reports['outbox']} reports waiting", "Reports are kept until one exists."
        )
    )
    ahead = facts.get("clock_ms", 0) / 1000 - time.time()
    if abs(ahead) > 2:
        items.append(
            Item("clock", "warn", f"the daemon's clock differs by {ahead:.0f} s", "Check time synchronisation.")
        )
    items += [Item("problem", "bad", text, "See 'pcm-p2p status' and 'pcm-p2p why'.") for text in facts["problems"]]
    return items

"""Halts: signed orders to stop one release, or every change, until a threshold lifts them. Pure.

One key is enough to halt, so the role ``halt`` is delegated to all of them with a threshold of one (``authority.delegating``).
Its signature proves only that *somebody* with a key put a list of halts together. Whom a halt stops is therefore bound to the
key that made it: each one carries a signature of its author over a statement of its own, and counts

- for the whole fleet, if root or the top-level targets name that key;
- for the devices of a site, if the site's delegation does;
- for the releases of a team, if the team's delegation does;
- for nobody, if the signature is wrong or nobody names the key.

``halts/<id>.toml``::

    schema = "pcm.halt/1"
    id = "<32 hex>"
    fleet = "<32 hex>"
    release = "openssl"            # empty or absent: every change
    version = "3.0.13-1"           # empty or absent: every version
    reason = "breaks VPN"
    by = "alice"
    since = 2026-03-01T12:00:00Z
    keyid = "<64 hex>"
    signature = "<hex>"            # over everything else, under the domain of halts

Halts stick: a newer list must hold each one that was known, but for those that ``fleet/lifted.toml`` names, which takes the
threshold of targets::

    schema = "pcm.lifted/1"
    lifted = ["<32 hex>"]
    confirmed = ["<32 hex>"]       # halts that stand for the whole fleet, although the key of their author went

Confirmed are the halts of a person who leaves: taking a key away must not let go what it stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import Signature  # type: ignore[attr-defined]
from tuf.api.metadata import Key, Root, Targets  # type: ignore[attr-defined]

from pcm_p2p.errors import InputError, UntrustedBytes
from pcm_p2p.ids import check_name
from pcm_p2p.toml_document import decode_toml
from pcm_p2p.trust.delegation import kind_of
from pcm_p2p.trust.lint import owner_of

DOMAIN = b"pcm_p2p halt 1\n"
SIZE_BYTES_MAX = 8_192
HALTS_MAX = 1_000
LIFTED_MAX = 10_000
REASON_LENGTH_MAX = 500
"""Choice: one or two sentences; it is shown on every device."""

_Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
_Hex64 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Line = Annotated[str, msgspec.Meta(max_length=REASON_LENGTH_MAX, pattern=r"^[^\x00-\x1f\x7f-\x9f]*\Z")]


class Halt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One halt as it is in its file. Empty ``release``: everything; empty ``version``: every version of it."""

    schema: Literal["pcm.halt/1"]
    id: _Hex32
    fleet: _Hex32
    reason: _Line
    by: Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f-\x9f]*\Z")]
    since: Annotated[datetime, msgspec.Meta(tz=True)]
    keyid: _Hex64
    release: Annotated[str, msgspec.Meta(max_length=128)] = ""
    version: Annotated[str, msgspec.Meta(max_length=128)] = ""
    signature: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{2})*\Z", max_length=512)] = ""

    @property
    def statement(self) -> bytes:
        """What the author signs: every other field, in an order that is fixed."""
        fields = [self.id, self.fleet, self.release, self.version, self.reason, self.by, self._moment, self.keyid]
        return DOMAIN + msgspec.json.encode(fields)

    @property
    def _moment(self) -> str:
        return self.since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    @property
    def what(self) -> str:
        """For people: ``openssl 3.0.13-1``, ``openssl``, or ``everything``."""
        return f"{self.release} {self.version}".strip() or "everything"

    def encoded(self) -> bytes:
        """The file: TOML, each string in JSON's escapes, which TOML reads alike."""
        rows = {
            "schema": self.schema,
            "id": self.id,
            "fleet": self.fleet,
            "release": self.release,
            "version": self.version,
            "reason": self.reason,
            "by": self.by,
            "since": None,
            "keyid": self.keyid,
            "signature": self.signature,
        }
        lines = [
            f"{key} = {self._moment if value is None else msgspec.json.encode(value).decode()}"
            for key, value in rows.items()
        ]
        return ("\n".join(lines) + "\n").encode()


class Lifted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``fleet/lifted.toml``: ids of halts that a threshold lifted, and of those that it took over."""

    schema: Literal["pcm.lifted/1"]
    lifted: Annotated[tuple[_Hex32, ...], msgspec.Meta(max_length=LIFTED_MAX)] = ()
    confirmed: Annotated[tuple[_Hex32, ...], msgspec.Meta(max_length=LIFTED_MAX)] = ()

    def encoded(self) -> bytes:
        def row(key: str, ids: tuple[str, ...]) -> str:
            return f"{key} = [\n" + "".join(f'    "{one}",\n' for one in sorted(set(ids))) + "]\n"

        return f'schema = "{self.schema}"\n{row("lifted", self.lifted)}{row("confirmed", self.confirmed)}'.encode()


NOTHING_LIFTED = Lifted("pcm.lifted/1")


def decode_halt_untrusted(data: bytes, path: str) -> Halt:
    """One halt; its id is the name of its file. Raises ``UntrustedBytes`` only."""
    if len(data) > SIZE_BYTES_MAX:
        raise UntrustedBytes(f"{path} has {len(data)} bytes; at most {SIZE_BYTES_MAX} are read")
    try:
        halt = decode_toml(data, Halt, path)
    except InputError as error:
        raise UntrustedBytes(error.message) from None
    if path != f"halts/{halt.id}.toml":
        raise UntrustedBytes(f"{path} holds the halt {halt.id}")
    if not 1 < halt.since.year < 9_999:  # in UTC, which is what is signed, it may be in no year at all
        raise UntrustedBytes(f"{path} began in the year {halt.since.year}")
    for what, text in (("release", halt.release), ("version", halt.version)):
        if text:
            check_name(text, what)
    if halt.version and not halt.release:
        raise UntrustedBytes(f"{path} names a version and no release")
    return halt


def decode_lifted_untrusted(data: bytes, path: str = "fleet/lifted.toml") -> Lifted:
    """Raises ``UntrustedBytes`` only."""
    try:
        return decode_toml(data, Lifted, path)
    except InputError as error:
        raise UntrustedBytes(error.message) from None


def dropped(known: Mapping[str, str], offered: Mapping[str, str], lifted: Lifted) -> tuple[str, ...]:
    """Ids of the known halts that ``offered`` leaves out or alters, and that were not lifted. Both by id, to their SHA-256."""
    gone = set(lifted.lifted)
    return tuple(sorted(one for one, sha256 in known.items() if one not in gone and offered.get(one) != sha256))


@dataclass(frozen=True)
class Reach:
    """For whom one key may halt."""

    fleet: bool = False
    sites: frozenset[str] = frozenset()
    teams: frozenset[str] = frozenset()

    def stops(self, site: str, team: str) -> bool:
        """Whether it reaches a change on a device of ``site``; ``team`` is whose release it is, empty for the fleet's."""
        return self.fleet or site in self.sites or (bool(team) and team in self.teams)

    def sentence(self) -> str:
        """For people: ``the fleet``, or the sites and teams."""
        if self.fleet:
            return "the fleet"
        parts = [f"site {site}" for site in sorted(self.sites)] + [
            f"releases of team {team}" for team in sorted(self.teams)
        ]
        return ", ".join(parts) or "nobody"


WHOLE_FLEET = Reach(fleet=True)


@dataclass
class Holders:
    """Keys by id, with whom each reaches, as trusted root and targets name them."""

    keys: dict[str, Key] = field(default_factory=dict)
    reach: dict[str, Reach] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Root, targets: Targets) -> Holders:
        holders = cls()
        for role in ("root", "targets"):
            for keyid in root.roles[role].keyids:
                holders._add(keyid, root.keys.get(keyid), WHOLE_FLEET)
        delegations = targets.delegations
        for name, delegated in ((delegations.roles if delegations is not None else None) or {}).items():
            kind = kind_of(name)
            if kind is None or kind[0] == "halt" or delegations is None:
                continue
            names = frozenset({kind[1]})
            reach = Reach(sites=names) if kind[0] == "site" else Reach(teams=names)
            for keyid in delegated.keyids:
                holders._add(keyid, delegations.keys.get(keyid), reach)
        return holders

    def _add(self, keyid: str, key: Key | None, reach: Reach) -> None:
        if key is None:
            return
        self.keys[keyid] = key
        have = self.reach.get(keyid, Reach())
        self.reach[keyid] = Reach(have.fleet or reach.fleet, have.sites | reach.sites, have.teams | reach.teams)

    def reach_of(self, halt: Halt) -> Reach:
        """Whom ``halt`` reaches by the key that signed it; nobody if that key did not, or is not named."""
        key = self.keys.get(halt.keyid)
        if key is None:
            return Reach()
        try:
            key.verify_signature(Signature(halt.keyid, halt.signature), halt.statement)
        except (UnverifiedSignatureError, VerificationError, ValueError):
            return Reach()
        return self.reach[halt.keyid]


@dataclass(frozen=True)
class InForce:
    """A halt that counts, and for whom. ``by``: the person whom root or targets name for its key; empty where that key went."""

    halt: Halt
    reach: Reach
    by: str = ""

    def sentence(self) -> str:
        """For status, reports and ``why``."""
        reason = f": {self.halt.reason}" if self.halt.reason else ""
        return f"Halted by {self.by or self.halt.by} since {self.halt.since:%Y-%m-%d %H:%M} UTC{reason}"


def in_force(halts: Iterable[Halt], holders: Holders, lifted: Lifted, fleet: str) -> tuple[InForce, ...]:
    """The halts that count, oldest first: not lifted, of this fleet, and signed by a key that reaches somebody."""
    gone, confirmed = set(lifted.lifted), set(lifted.confirmed)
    found = []
    for halt in halts:
        if halt.id in gone or halt.fleet != fleet:
            continue
        reach = holders.reach_of(halt)
        # The name in the halt is its author's word; the one beside the key was signed by others.
        by = owner_of(holders.keys[halt.keyid]) if reach != Reach() else ""
        if halt.id in confirmed:
            reach = WHOLE_FLEET
        if reach != Reach():
            found.append(InForce(halt, reach, by))
    return tuple(sorted(found, key=lambda one: (one.halt.since, one.halt.id)))


def orphaned(halts: Iterable[Halt], before: Holders, after: Holders, lifted: Lifted) -> tuple[str, ...]:
    """Ids of the halts that stopped the whole fleet by a key that is named no longer: for a threshold to confirm."""
    settled = {*lifted.lifted, *lifted.confirmed}
    return tuple(
        halt.id
        for halt in halts
        if halt.id not in settled and before.reach_of(halt).fleet and not after.reach_of(halt).fleet
    )


def stopping(halts: Iterable[InForce], site: str, release: str, version: str, team: str) -> Iterator[InForce]:
    """Those that stop this release on a device of ``site``. Empty ``release``: those that stop every change there."""
    for one in halts:
        halt = one.halt
        named = (halt.release in ("", release) and halt.version in ("", version)) if release else not halt.release
        # Everything that a team's key stops is everything of that team.
        if named and one.reach.stops(site, team):
            yield one

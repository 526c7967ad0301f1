"""How a fleet begins: the keys of its people and of the publisher, and the first root, signed by all who hold a root key."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from tuf.api.metadata import Metadata, Role, Root  # type: ignore[attr-defined]

from pcm_p2p.authority import keyfile
from pcm_p2p.errors import InputError, TrustError, UntrustedBytes
from pcm_p2p.ids import check_name
from pcm_p2p.trust.lint import FLEET_FIELD, lint_root

ROOT_LIFETIME = timedelta(days=730)
TARGETS_LIFETIME = timedelta(days=365)
SNAPSHOT_LIFETIME = timedelta(days=30)
TIMESTAMP_LIFETIME = timedelta(days=7)
"""research/trust.md 4.2."""

Passphrase = str | Callable[[str], str]
"""One for all keys, or a function from the key file's stem (``root-alice``, ``snapshot``, ``ca``) to its passphrase."""


def check_people(owners: tuple[str, ...], root_threshold: int, targets_threshold: int) -> None:
    """Raises ``InputError`` unless the owners can be told apart, can be in file names, and meet both thresholds."""
    if len(set(owners)) != len(owners) or not owners:
        raise InputError("owners must be different people, at least one", remedy="Give each --owner once.")
    for owner in owners:
        try:
            check_name(owner, "owner")
        except UntrustedBytes as error:
            raise InputError(error.message, remedy="Use letters, digits and '-'; it becomes a file name.") from None
    for what, threshold in (("root", root_threshold), ("targets", targets_threshold)):
        if not 1 <= threshold <= len(owners):
            raise InputError(
                f"{what} threshold {threshold} needs that many owners; there are {len(owners)}",
                remedy="Name more people with --owner, or lower the threshold.",
            )


def first_root(
    keys: Path,
    fleet: str,
    owners: tuple[str, ...],
    root_threshold: int,
    targets_threshold: int,
    passphrase: Passphrase,
    *,
    preset: keyfile.Preset,
    now: datetime,
) -> Metadata[Root]:
    """Make all key files below ``keys`` and root version 1. Raises ``InputError`` as ``keyfile.create`` does."""

    def make(role: Literal["root", "targets"], owner: str) -> keyfile.KeyFile:
        stem = f"{role}-{owner}"
        return keyfile.create(keys / f"{stem}.key", ask(passphrase, stem), role, owner, preset=preset)

    def make_online(role: Literal["snapshot", "timestamp"]) -> keyfile.KeyFile:
        # The publisher is no person: its keys are opened at each start of an unattended service.
        words = ask(passphrase, role)
        return keyfile.create(keys / f"{role}.key", words, role, "publisher", preset=online_preset(preset))

    holders: dict[str, list[keyfile.KeyFile]] = {
        "root": [make("root", owner) for owner in owners],
        "targets": [make("targets", owner) for owner in owners],
        "snapshot": [make_online("snapshot")],
        "timestamp": [make_online("timestamp")],
    }
    thresholds = {"root": root_threshold, "targets": targets_threshold, "snapshot": 1, "timestamp": 1}
    root = Root(
        version=1,
        expires=whole_seconds(now + ROOT_LIFETIME),
        keys={key.keyid: key.key for role in holders.values() for key in role},
        roles={role: Role([key.keyid for key in members], thresholds[role]) for role, members in holders.items()},
        consistent_snapshot=True,
        unrecognized_fields={FLEET_FIELD: fleet},
    )
    complaints = lint_root(root, fleet)
    if complaints:
        raise TrustError(f"refused to sign the first root: {'; '.join(complaints)}")
    document = Metadata(root)
    for key in holders["root"]:
        document.sign(key.signer(), append=True)
    return document


def whole_seconds(moment: datetime) -> datetime:
    """TUF writes no fractions of a second."""
    return moment.astimezone(UTC).replace(microsecond=0)


def ask(passphrase: Passphrase, stem: str) -> str:
    return passphrase if isinstance(passphrase, str) else passphrase(stem)


def online_preset(preset: keyfile.Preset) -> keyfile.Preset:
    return "lab" if preset == "lab" else "interactive"

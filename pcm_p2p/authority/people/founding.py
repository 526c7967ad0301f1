"""How a fleet begins: the keys of its people and of the publisher, and the first root.

Root version 1 is signed by those whose root keys are made on this machine. Where that is fewer than the threshold it waits in
``proposal/root.json`` for the signatures of the others, as every later root does; nothing is published before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType

from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]  # exported without __all__
from tuf.api.metadata import Metadata, Role, Root  # type: ignore[attr-defined]

from pcm_p2p.authority.keys import keyfile
from pcm_p2p.authority.people.founders import Founders
from pcm_p2p.errors import TrustError
from pcm_p2p.trust.lint import FLEET_FIELD, lint_root

ROOT_LIFETIME = timedelta(days=730)
TARGETS_LIFETIME = timedelta(days=365)
DELEGATED_LIFETIME = timedelta(days=90)
HALT_LIFETIME = timedelta(days=730)
SNAPSHOT_LIFETIME = timedelta(days=30)
TIMESTAMP_LIFETIME = timedelta(days=7)
"""research/trust.md 4.2. A halt lives as long as root: it is kept fresh by the snapshot that names it, and must not run out."""

Passphrase = str | Callable[[str], str]
"""One for all keys, or a function from the key file's stem (``root-alice``, ``snapshot``, ``ca``) to its passphrase."""


def first_root(
    keys: Path,
    fleet: str,
    founders: Founders,
    passphrase: Passphrase,
    *,
    preset: keyfile.Preset,
    now: datetime,
    fields: Mapping[str, str] = MappingProxyType({}),
) -> Metadata[Root]:
    """Make key files below ``keys`` and root version 1, signed with the root keys that were made. ``fields`` are further things
    that it says.

    ``founders`` were checked. Raises ``InputError`` as ``keyfile.create`` does.
    """

    def make(role: str, owner: str) -> keyfile.KeyFile:
        stem = f"{role}-{owner}"
        return keyfile.create(keys / f"{stem}.key", ask(passphrase, stem), role, owner, preset=preset)

    def make_online(role: str) -> SSlibKey:
        # The publisher is no person: its keys are opened at each start of an unattended service.
        words = ask(passphrase, role)
        return keyfile.create(keys / f"{role}.key", words, role, "publisher", preset=online_preset(preset)).key

    signers = [make("root", owner) for owner in founders.owners]
    holders: dict[str, list[SSlibKey]] = {
        "root": [*(key.key for key in signers), *(key.key for key in founders.root_keys)],
        "targets": [
            *(make("targets", owner).key for owner in founders.owners),
            *(key.key for key in founders.targets_keys),
        ],
        "snapshot": [make_online("snapshot")],
        "timestamp": [make_online("timestamp")],
    }
    thresholds = {"root": founders.root_threshold, "targets": founders.targets_threshold, "snapshot": 1, "timestamp": 1}
    root = Root(
        version=1,
        expires=whole_seconds(now + ROOT_LIFETIME),
        keys={key.keyid: key for role in holders.values() for key in role},
        roles={role: Role([key.keyid for key in members], thresholds[role]) for role, members in holders.items()},
        consistent_snapshot=True,
        unrecognized_fields={FLEET_FIELD: fleet, **fields},
    )
    complaints = lint_root(root, fleet)
    if complaints:
        raise TrustError(f"refused to sign the first root: {'; '.join(complaints)}")
    document = Metadata(root)
    for key in signers:
        document.sign(key.signer(), append=True)
    return document


def is_signed(root: Metadata[Root]) -> bool:
    """Whether a first root meets its own threshold."""
    return bool(root.signed.get_verification_result("root", root.signed_bytes, root.signatures))


def whole_seconds(moment: datetime) -> datetime:
    """TUF writes no fractions of a second."""
    return moment.astimezone(UTC).replace(microsecond=0)


def ask(passphrase: Passphrase, stem: str) -> str:
    return passphrase if isinstance(passphrase, str) else passphrase(stem)


def online_preset(preset: keyfile.Preset) -> keyfile.Preset:
    return "lab" if preset == "lab" else "interactive"

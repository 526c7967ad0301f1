"""What a signer's machine remembers of each fleet: the newest root and documents that it saw, and what it signed. Pure.

A machine that is never on a network sees a fleet only through what is carried to it. The first time it can but show the digest of
the root, for its owner to compare; from then on a carrier can neither put another fleet in the place of the known one (each root
has to follow from the remembered one), nor go back to an older state of it (research/trust.md 6, 7). The same holds for the fleet
whose floor comes with a proposal of a site that acts alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from tuf.api.metadata import Metadata, Root  # type: ignore[attr-defined]

from pcm_p2p.authority.carry.bundle import Bundle
from pcm_p2p.authority.carry.signature_file import DetachedSignature
from pcm_p2p.authority.fleet_floor import FleetFloor
from pcm_p2p.errors import TrustError, UntrustedBytes
from pcm_p2p.trust.delegation import TARGETS

SCHEMA: Final = "pcm.pin/1"
SIZE_BYTES_MAX = 4 << 20

_Hex64 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Seen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A version of a document, and the SHA-256 of its signed bytes."""

    version: Annotated[int, msgspec.Meta(ge=1)]
    sha256: _Hex64


class FleetPin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One fleet. ``published`` and ``signed`` by role; ``root`` is ``None`` while its first root has not been seen published."""

    name: Annotated[str, msgspec.Meta(max_length=128)]
    root: Seen | None = None
    published: Mapping[str, Seen] = {}
    signed: Mapping[str, Seen] = {}


class Pin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file; ``fleets`` by fleet id."""

    schema: Literal["pcm.pin/1"] = "pcm.pin/1"
    fleets: Mapping[str, FleetPin] = {}

    def encoded(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


_decoder = msgspec.json.Decoder(Pin)


def decode_pin_untrusted(data: bytes) -> Pin:
    """Raises ``UntrustedBytes`` only."""
    if len(data) > SIZE_BYTES_MAX:
        raise UntrustedBytes(f"pin file: {len(data)} bytes; at most {SIZE_BYTES_MAX} are read")
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UntrustedBytes(f"pin file: {error}") from None


def check(pin: Pin, bundle: Bundle) -> tuple[str, ...]:
    """Remarks for the person; raises ``TrustError`` if the bundle does not follow from what was seen before."""
    of_floor = _check_floor(pin, bundle.floor) if bundle.floor is not None else ()
    return (*_check_bundle(pin, bundle), *of_floor)


def _check_bundle(pin: Pin, bundle: Bundle) -> tuple[str, ...]:
    known = pin.fleets.get(bundle.fleet)
    if known is None:
        same_name = [fleet for fleet, one in pin.fleets.items() if one.name == bundle.name]
        warning = (
            (f"ANOTHER FLEET called {bundle.name!r} is known here, with the id {same_name[0]}",) if same_name else ()
        )
        return (*warning, *_first_sight(bundle))
    if known.root is not None:
        _check_root(known.root, bundle.roots)
    for role, seen in known.published.items():
        found = bundle.published.get(role)
        if found is not None or role in bundle.proposed:
            _check_published(role, seen, found)
    return tuple(
        f"this machine signed {role} {seen.version} before, with other content: only one of the two can be published"
        for role, seen in sorted(known.signed.items())
        if (found := bundle.proposed.get(role)) is not None
        and found.signed.version == seen.version
        and _digest(found) != seen.sha256
    )


def remembering(pin: Pin, bundle: Bundle, signatures: Iterable[DetachedSignature]) -> Pin:
    """``pin`` after this bundle was seen (and checked), and these signatures were given."""
    before = pin.fleets.get(bundle.fleet, FleetPin(bundle.name))
    root = bundle.root
    after = FleetPin(
        bundle.name,
        _seen(root) if root is not None else before.root,
        {**before.published, **{role: _seen(document) for role, document in bundle.published.items()}},
        {**before.signed, **{one.role: Seen(one.version, one.sha256) for one in signatures}},
    )
    fleets = {**pin.fleets, bundle.fleet: after}
    if (floor := bundle.floor) is not None:
        seen = fleets.get(floor.fleet, FleetPin(f"the fleet of {bundle.name}"[:128]))
        published = {**seen.published, TARGETS: _seen(floor.targets)}
        fleets[floor.fleet] = msgspec.structs.replace(seen, root=_seen(floor.root), published=published)
    return Pin(SCHEMA, fleets)


def _check_floor(pin: Pin, floor: FleetFloor) -> tuple[str, ...]:
    """Remarks; raises ``TrustError`` if the floor in a site's proposal does not follow from what was seen of the fleet."""
    known, newest = pin.fleets.get(floor.fleet), floor.root
    seen = known.root if known is not None else None
    if known is None or seen is None:
        what = (
            f"compare the digest of its root {newest.signed.version} with another person: {_grouped(_digest(newest))}"
        )
        return (f"its policies are judged by fleet {floor.fleet[:8]}, which is new to this machine; {what}",)
    same = next((one for one in floor.roots if one.signed.version == seen.version), None)
    if same is None:
        place = "ends" if newest.signed.version < seen.version else "begins"
        version = newest.signed.version if place == "ends" else floor.roots[0].signed.version
        raise TrustError(
            f"refused: the fleet's floor in it {place} with root {version}, and this machine has seen root {seen.version}",
            remedy="Where it was made, run 'pcm-p2p site floor --from TREE --root' with the fleet's first root; export again.",
        )
    if _digest(same) != seen.sha256:
        raise TrustError(
            f"refused: root {seen.version} of the fleet's floor in it is not the one that this machine has seen",
            remedy="Do not sign. Compare the root's digest with people of the fleet: somebody may have replaced it.",
        )
    before, version = known.published.get(TARGETS), floor.targets.signed.version
    if before is not None and version < before.version:
        raise TrustError(
            f"refused: it is judged by targets {version} of the fleet, and this machine has seen targets {before.version}",
            remedy="Where it was made, run 'pcm-p2p site floor' with what is published now, and export again.",
        )
    if before is not None and version == before.version and _digest(floor.targets) != before.sha256:
        raise TrustError(
            f"refused: targets {version} of the fleet's floor in it is not the one that this machine has seen published",
            remedy="Do not sign. Two documents with one version were signed for the fleet: find out which is published.",
        )
    return ()


def _first_sight(bundle: Bundle) -> tuple[str, ...]:
    root = bundle.root
    if root is None:
        return (f"fleet {bundle.name!r} is new to this machine, and has no root yet",)
    digest = _digest(root)
    version = root.signed.version
    what = f"compare the digest of its root {version} with another person: {_grouped(digest)}"
    return (f"fleet {bundle.name!r} is new to this machine; {what}",)


def _check_root(seen: Seen, roots: tuple[Metadata[Root], ...]) -> None:
    if len(roots) < seen.version:
        raise TrustError(
            f"refused: the proposal builds on root {len(roots)}, and this machine has seen root {seen.version}",
            remedy="Ask for a proposal that was exported after the newest root was published.",
        )
    if _digest(roots[seen.version - 1]) != seen.sha256:
        raise TrustError(
            f"refused: root {seen.version} in the proposal is not the one that this machine has seen",
            remedy="Do not sign. Compare the root's digest with the other holders: somebody may have replaced the fleet.",
        )


def _check_published(role: str, seen: Seen, found: Metadata[Any] | None) -> None:
    version = found.signed.version if found is not None else 0
    if version < seen.version:
        raise TrustError(
            f"refused: the proposal is compared with {role} {version}, and this machine has seen {role} {seen.version}",
            remedy="Ask for a proposal that was exported from the newest state of the fleet folder.",
        )
    if found is not None and version == seen.version and _digest(found) != seen.sha256:
        raise TrustError(
            f"refused: {role} {version} in the proposal is not the one that this machine has seen published",
            remedy="Do not sign. Its holders signed two documents with one version: find out which is published.",
        )


def _seen(document: Metadata[Any]) -> Seen:
    return Seen(document.signed.version, _digest(document))


def _grouped(digest: str) -> str:
    return " ".join(digest[at : at + 4] for at in range(0, 32, 4))


def _digest(document: Metadata[Any]) -> str:
    return hashlib.sha256(document.signed_bytes).hexdigest()

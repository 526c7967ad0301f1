"""Halting from the fleet folder: one person's order, staged and signed at once; and lifting it, which is a change of targets."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
from tuf.api.metadata import Root, Targets  # type: ignore[attr-defined]

from pcm_p2p.authority.audit import record as audit_record
from pcm_p2p.authority.keys.signing_key import SigningKey, add_signature
from pcm_p2p.authority.people.founding import whole_seconds
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.authority.site_folder import site_of
from pcm_p2p.authority.staging import StagingArea, halts_of, keyids_of, lifted_of
from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import InputError, TrustError
from pcm_p2p.trust.delegation import HALT, TARGETS, index_of
from pcm_p2p.trust.halt import (
    HALTS_MAX,
    LIFTED_MAX,
    REASON_LENGTH_MAX,
    WHOLE_FLEET,
    Halt,
    Holders,
    Lifted,
    Reach,
    decode_halt_untrusted,
    dropped,
)
from pcm_p2p.trust.index import LIFTED, halt_path

HALTS_OF_KEY_MAX = 50
"""Choice: in force at a time by one key of a site or a team. Whoever steals one must not take the places of ``HALTS_MAX`` that
the next emergency of the fleet needs; keys of root and targets are not counted."""
ID_LENGTH_MIN = 6
"""Choice: as many digits of an id as a person types."""


@dataclass(frozen=True)
class Standing:
    """A halt in the folder. ``state``: ``staged`` (not published), ``in force``, ``lifting`` (to be signed) or ``lifted``."""

    halt: Halt
    reach: Reach
    state: str


def order(folder: FleetFolder, key: SigningKey, *, release: str = "", version: str = "", reason: str) -> Standing:
    """Stage a halt, signed by ``key`` as its order and as the list that holds it. Empty ``release``: everything.

    Raises ``InputError`` if the release is not known here, the reason cannot be shown, or the key is nobody's who may halt.
    """
    if not reason.strip() or len(reason) > REASON_LENGTH_MAX or not reason.isprintable():
        raise InputError(
            "the reason cannot be used",
            key="--reason",
            remedy=f"Say in at most {REASON_LENGTH_MAX} printable characters why: every device shows it.",
        )
    if release and not any(one.name == release and version in ("", one.version) for one in folder.releases()):
        raise InputError(
            f"there is no release {release} {version}".rstrip(),
            remedy="See 'pcm-p2p release show' for those that there are.",
        )
    with folder.locked():
        holders = _holders(folder)
        if key.keyid not in holders.keys:
            raise InputError(
                f"the key of {key.owner} is named by no role that may halt",
                remedy="Use the root or targets key of a person, or a key of a site or team.",
            )
        unsigned = Halt(
            "pcm.halt/1",
            secrets.token_hex(16),
            folder.fleet_id,
            reason.strip(),
            key.owner or key.keyid[:8],
            whole_seconds(folder.wall_clock()),
            key.keyid,
            release,
            version,
        )
        halt = msgspec.structs.replace(unsigned, signature=key.signer.sign(unsigned.statement).signature)
        path = halt_path(halt.id)
        decode_halt_untrusted(halt.encoded(), path)
        reach = holders.reach_of(halt)
        if reach == Reach():
            raise TrustError("the key did not sign the halt as it is named", remedy="Test it with 'pcm-p2p key test'.")
        targets = folder.targets()
        gone = lifted_of(folder, targets.signed).lifted if targets is not None else ()
        tidied = {halt_path(one): None for one in gone if halt_path(one) in folder.working(HALT).targets}
        if len(folder.working(HALT).targets) - len(tidied) > HALTS_MAX:
            raise InputError(f"{HALTS_MAX} halts are in force", remedy="Lift some of them with 'pcm-p2p halt lift'.")
        mine = [one for one in halts_of(folder, folder.working(HALT)) if one.keyid == key.keyid]
        if crowd := _crowd((*(one for one in mine if one.id not in gone), halt), holders):
            raise InputError(
                f"the key of {key.owner} {crowd}", remedy="Halt everything with '--all', or lift some of them."
            )
        folder.stage_locked(HALT, {**tidied, path: halt.encoded()})
        document = folder.proposed_of(HALT)
        assert document is not None, "it was staged"
        add_signature(document, key.signer)
        audit_record.record(folder, "halt", HALT, document, [key.keyid], folder.all_namers(HALT))
        write_atomic(folder.path / "proposal" / f"{HALT}.json", document.to_bytes())
    return Standing(halt, _seen_from(folder, reach), "staged")


def lift(folder: FleetFolder, ids: Iterable[str], *, same_key: bool = False) -> tuple[Halt, ...]:
    """Propose that these halts (ids, or their first digits) count no longer: for a threshold of targets to sign.

    ``same_key``: and with each of them all that were ordered with its key, as after a theft.

    Raises ``InputError`` if an id names no halt or several.
    """
    known = [one.halt for one in standings(folder)]
    chosen = []
    for text in ids:
        found = [halt for halt in known if len(text) >= ID_LENGTH_MIN and halt.id.startswith(text.lower())]
        if len(found) != 1:
            said = "names several halts" if found else "names no halt"
            raise InputError(f"{text!r} {said}", remedy="See 'pcm-p2p halt list'; six digits of an id are enough.")
        chosen.append(found[0])
    if same_key:
        keyids = {halt.keyid for halt in chosen}
        chosen = [halt for halt in known if halt.keyid in keyids]
    with folder.locked():
        before = lifted_of(folder, folder.working(TARGETS))
        gone = {halt.id for halt in chosen}
        after = Lifted(
            "pcm.lifted/1",
            tuple(sorted({*before.lifted, *gone})),
            tuple(one for one in before.confirmed if one not in gone),
        )
        if len(after.lifted) > LIFTED_MAX:
            raise InputError(f"{LIFTED_MAX} halts were lifted before, which is as many as devices read")
        folder.stage_locked(TARGETS, {LIFTED: after.encoded()})
    return tuple(chosen)


def standings(folder: FleetFolder) -> tuple[Standing, ...]:
    """All halts of the folder, oldest first, and how each stands."""
    holders, published, targets = _holders(folder), folder.document(HALT), folder.targets()
    there = set(published.signed.targets) if published is not None else set()
    lifted = lifted_of(folder, targets.signed) if targets is not None else Lifted("pcm.lifted/1")
    lifting = lifted_of(folder, folder.working(TARGETS))
    halts = {
        halt.id: halt
        for one in (published, folder.proposed_of(HALT))
        if one is not None
        for halt in halts_of(folder, one.signed)
    }
    found = []
    for halt in halts.values():
        if halt.id in lifted.lifted:
            state = "lifted"
        elif halt.id in lifting.lifted:
            state = "lifting"
        else:
            state = "in force" if halt_path(halt.id) in there else "staged"
        reach = WHOLE_FLEET if halt.id in lifted.confirmed else holders.reach_of(halt)
        found.append(Standing(halt, _seen_from(folder, reach), state))
    return tuple(sorted(found, key=lambda one: (one.halt.since, one.halt.id)))


def refuse_halts(folder: StagingArea, offered: Targets, root: Root, targets: Targets) -> None:
    """Raises ``TrustError`` if a list of halts drops one that is published and that ``targets`` do not lift, or adds one that
    counts for nobody: any key of the fleet can sign the list, and what is in it stays in it."""
    published = folder.delegated(HALT)
    before, after = _by_id(published.signed) if published is not None else {}, _by_id(offered)
    holders, readable = Holders.of(root, targets), {halt.id: halt for halt in halts_of(folder, offered)}
    for one in sorted(after.keys() - before.keys()):
        if one not in readable or readable[one].fleet != folder.fleet_id or holders.reach_of(readable[one]) == Reach():
            raise TrustError(
                f"refused to publish: the halt {one[:8]} is signed by nobody who may halt",
                remedy="Discard the proposal, and order the halt with 'pcm-p2p halt'.",
            )
    lifted = lifted_of(folder, targets)
    keyids = {readable[one].keyid for one in after.keys() - before.keys()}
    theirs = (one for one in readable.values() if one.keyid in keyids and one.id not in lifted.lifted)
    if crowd := _crowd(theirs, holders):
        raise TrustError(
            f"refused to publish: one key {crowd}",
            remedy="Discard the proposal. If the key is stolen: 'pcm-p2p fleet recover stolen-site-key'.",
        )
    if len(after) > HALTS_MAX:
        raise TrustError(
            f"refused to publish {len(after)} halts: devices read {HALTS_MAX}", remedy="Lift some of them."
        )
    gone = dropped(before, after, lifted)
    if gone:
        raise TrustError(
            f"refused to publish: the list of halts drops {gone[0][:8]}, which nobody lifted",
            remedy="Lift it with 'pcm-p2p halt lift', which takes the threshold of targets, or discard the proposal.",
        )


def _crowd(halts: Iterable[Halt], holders: Holders) -> str:
    """What is wrong where one key of a site or team has more halts than it may; empty if none has."""
    counts = Counter(halt.keyid for halt in halts if not holders.reach_of(halt).fleet)
    most = max(counts.values(), default=0)
    return f"has {most} halts in force; {HALTS_OF_KEY_MAX} are as many as it may" if most > HALTS_OF_KEY_MAX else ""


def _seen_from(folder: StagingArea, reach: Reach) -> Reach:
    """What the whole of the folder's devices is: those of the site, where the folder is that of a site that acts alone."""
    facts = site_of(folder.path)
    return Reach(sites=frozenset({facts.site})) if facts is not None and reach.fleet else reach


def _by_id(targets: Targets) -> dict[str, str]:
    return {path[6:-5]: info.hashes["sha256"] for path, info in targets.targets.items() if path != index_of(HALT)}


def _holders(folder: StagingArea) -> Holders:
    """Who may halt, as published; before the first publishing as proposed."""
    root, targets = folder.root().signed, folder.targets() or folder.proposed_targets()
    if targets is None or not keyids_of(targets.signed, HALT):
        raise InputError(
            "nobody is named who may halt",
            path=folder.path,
            remedy="Run 'pcm-p2p fleet renew', sign and publish: from then on one key is enough.",
        )
    return Holders.of(root, targets.signed)

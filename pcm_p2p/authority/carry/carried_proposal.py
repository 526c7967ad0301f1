"""What a bundle proposes, as a person reads it and as a key may sign it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from securesystemslib.signer import Key, Signer  # type: ignore[attr-defined]  # exported without __all__
from tuf.api.metadata import Root, Targets  # type: ignore[attr-defined]

from pcm_p2p.authority.carry.bundle import Bundle, halts_in_words
from pcm_p2p.authority.carry.signature_file import DetachedSignature, Signable
from pcm_p2p.authority.delegating import Delegator, delegated_roles, holders
from pcm_p2p.authority.halt_difference import NO_HALTS, HaltsAtHand, halts_at_hand
from pcm_p2p.authority.proposal import Proposal, propose_root, propose_targets
from pcm_p2p.trust.delegation import TARGETS
from pcm_p2p.trust.halt import Holders


def keys_of(delegators: Iterable[Delegator], role: str) -> dict[str, Key]:
    """Keys by id that any of ``delegators`` names for ``role``."""
    found: dict[str, Key] = {}
    for delegator in delegators:
        if isinstance(delegator, Root):
            found.update(
                (keyid, delegator.keys[keyid]) for keyid in delegator.roles[role].keyids if keyid in delegator.keys
            )
        elif (named := holders(delegator, role)) is not None:
            found.update((key.keyid, key) for key in named[0])
    return found


def delegators_in(bundle: Bundle, role: str) -> tuple[Delegator, ...]:
    """Whose keys have a part in the proposed document of ``role``: those in force, and those that are proposed with it."""
    root = (bundle.root, bundle.proposed.get("root"))
    if role in ("root", "targets"):
        return tuple(one.signed for one in root if one is not None)
    targets = (bundle.published.get("targets"), bundle.proposed.get("targets"))
    return tuple(one.signed for one in targets if one is not None)


def proposals_in(bundle: Bundle) -> tuple[Proposal, ...]:
    """Every proposed document, root before targets before delegated roles."""
    return tuple(_proposals(bundle))


def _proposals(bundle: Bundle) -> Iterator[Proposal]:
    for role in sorted(bundle.proposed, key=lambda name: (name != "root", name != "targets", name)):
        document = bundle.proposed[role]
        if role == "root":
            yield propose_root(bundle.root.signed if bundle.root is not None else None, document)
            continue
        before = bundle.published.get(role)
        # As proposed where that names the role: whatever a key could sign is shown.
        naming = [one for one in delegators_in(bundle, role) if _names(one, role)]
        if naming:
            halts = _halts_in(bundle) if role == TARGETS else NO_HALTS
            yield propose_targets(naming[-1], before, document, role, halts)


def _halts_in(bundle: Bundle) -> HaltsAtHand:
    """Those that the proposed targets lift or confirm, said to be of whom published root and targets name."""
    root, targets = bundle.root or bundle.proposed["root"], bundle.published.get(TARGETS, bundle.proposed[TARGETS])
    named = halts_in_words(bundle.published, bundle.proposed, bundle.content)
    holders = Holders.of(root.signed, targets.signed)
    return halts_at_hand(named, bundle.content, holders, bundle.fleet, "which this file does not carry")


def _names(delegator: Delegator, role: str) -> bool:
    return isinstance(delegator, Root) or (isinstance(delegator, Targets) and role in delegated_roles(delegator))


def signables_in(bundle: Bundle) -> tuple[Signable, ...]:
    return tuple(
        Signable(role, document, keys_of(delegators_in(bundle, role), role), document.signed.version - 1)
        for role, document in sorted(bundle.proposed.items())
    )


def sign_each(signables: Iterable[Signable], signer: Signer, keyid: str) -> tuple[DetachedSignature, ...]:
    """The signature of ``signer`` on each document in which its key has a part. Raises what the signer raises."""
    return tuple(one.detached(signer.sign(one.document.signed_bytes)) for one in signables if keyid in one.keys)

"""Revoking devices and certificate authorities: changes of the proposed deny list (``trust.deny``), signed like everything else.

The list that is changed is the proposed one, else the published one. Its epoch grows with every change, so that a proposal that
is discarded leaves a gap and nothing worse.
"""

from __future__ import annotations

from collections.abc import Callable

from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.trust.delegation import TARGETS
from pcm_p2p.trust.deny import DenyList, decode_deny_untrusted
from pcm_p2p.trust.index import DENY


def proposed_deny_list(folder: FleetFolder) -> DenyList:
    """What would be in force if everything proposed were published. Raises ``UntrustedBytes`` if it cannot be read."""
    if DENY not in folder.working(TARGETS).targets:
        return DenyList.empty(folder.fleet_id)
    return decode_deny_untrusted(folder.read_target(DENY), folder.fleet_id)


def published_deny_list(folder: FleetFolder) -> DenyList:
    """What devices are told at present. Raises ``UntrustedBytes`` if it cannot be read."""
    published = folder.targets()
    info = published.signed.targets.get(DENY) if published is not None else None
    if info is None:
        return DenyList.empty(folder.fleet_id)
    return decode_deny_untrusted(folder.files.read(DENY, info), folder.fleet_id)


def change_deny_list(folder: FleetFolder, change: Callable[[DenyList], DenyList]) -> DenyList:
    """Propose the list that ``change`` makes of the present one; nothing if it is the same. Raises what ``change`` raises."""
    before = proposed_deny_list(folder)
    after = change(before)
    if after == before:
        return before
    published = published_deny_list(folder)
    if after.epoch <= published.epoch:
        raise UntrustedBytes(f"the deny list of epoch {published.epoch} is published already")
    folder.stage_file(DENY, after.encoded())
    return after

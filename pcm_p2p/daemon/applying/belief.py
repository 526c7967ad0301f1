"""What the apply service trusts by itself: the fleet's metadata, and those of its site where that acts alone.

Two ``TrustClient`` folders of its own. The fleet's begins with the pinned root; the site's with the root that the fleet's
metadata list for the site of the service's own settings, and goes when they list none or another. What is to be made of the
documents is decided by the same functions as in the daemon (``documents``), with the service's own clock and floor.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Self

import trio

from pcm_p2p.content.manifest import Manifest
from pcm_p2p.daemon.documents import (
    SiteWord,
    decode_manifest_untrusted,
    manifest_place,
    manifests_to_keep,
    read_documents,
)
from pcm_p2p.daemon.site.folder import trusted_folder
from pcm_p2p.errors import PcmError, StorageError, TrustError, UntrustedBytes
from pcm_p2p.policy.desired import Desired
from pcm_p2p.policy.document import Policy
from pcm_p2p.policy.selector import DeviceFacts
from pcm_p2p.trust.client import Attempt, MetadataSource, TrustClient
from pcm_p2p.trust.delegation import HALT, roles_of_device
from pcm_p2p.trust.floor import NOTHING, Versions
from pcm_p2p.trust.index import LIFTED, STANDING, site_root_path
from pcm_p2p.trust.site_root import decode_site_root_untrusted, repository_id
from pcm_p2p.trust.view import Freshness

log = logging.getLogger(__name__)


class NothingTrusted(TrustError):
    """There is no signed metadata here yet, or none of a site."""


class ApplyTrust:
    """Owns ``state``/trust and ``state``/site-trust. Everything but ``attempt`` may block for the disk."""

    def __init__(
        self, state: Path, root_json: bytes, fleet: str, facts: DeviceFacts, wall_clock: Callable[[], datetime]
    ) -> None:
        self._fleet_id, self._facts = fleet, facts
        self._site_folder = state / "site-trust"
        self._site_path = site_root_path(facts.site)
        self._site: TrustClient | None = None
        self._site_root: bytes | None = None
        self.fleet = TrustClient(
            state / "trust",
            root_json,
            fleet,
            wall_clock=wall_clock,
            wanted=manifests_to_keep(facts, wall_clock, lambda: self._policies_of("site repository")),
            standing=(*STANDING, self._site_path),
            roles=roles_of_device(facts.site),
        )

    def __enter__(self) -> Self:
        self.fleet.open()
        self._follow_site()
        return self

    def __exit__(self, *_: object) -> None:
        self._drop_site()
        self.fleet.close()

    @property
    def freshness(self) -> Freshness:
        """Of the fleet's metadata."""
        return self.fleet.freshness()

    @property
    def versions(self) -> Versions:
        """Of the fleet's metadata; zeros before there are any."""
        return self.fleet.view.versions if self.fleet.view is not None else NOTHING

    async def attempt(self, source: MetadataSource, *, site: bool) -> Attempt:
        """Learn from ``source`` what it has of the fleet, or of the site that acts alone. Raises ``NothingTrusted`` where the
        fleet lists no repository of the site."""
        if not site:
            attempt = await self.fleet.attempt(source)
            await trio.to_thread.run_sync(self._follow_site)
            return attempt
        if self._site is None:
            raise NothingTrusted(f"the fleet lists no repository of site {self._facts.site}")
        return await self._site.attempt(source)

    def desired(self) -> Desired:
        """What this device should be now. Raises ``NothingTrusted``, ``StorageError``."""
        view, freshness = self.fleet.view, self.freshness
        if view is None:
            raise NothingTrusted(
                "the apply service has no signed metadata yet", remedy="The daemon offers it as soon as it has some."
            )
        documents = read_documents(view, self._word(), self.fleet.now())
        weighed = documents.weighed(self._facts, freshness)
        return documents.desired(weighed, self._facts, self.fleet.now(), freshness)

    def manifest(self, release: str, version: str) -> Manifest | None:
        """The signed manifest; None if none here reads (the remedy of a check has none). Raises ``StorageError``."""
        view = self.fleet.view
        try:
            place = manifest_place(view, self._word(), release, version) if view is not None else None
            return decode_manifest_untrusted(place[0].read(place[1]), place[1]) if place is not None else None
        except UntrustedBytes:
            return None

    def _word(self) -> SiteWord | None:
        if self._site is None or self._site.view is None:
            return None
        return SiteWord(self._facts.site, self._site.view, self._site.freshness() == "frozen")

    def _policies_of(self, speaker: str) -> tuple[Policy, ...]:
        """The policies of one side, for the other to know early which manifests it has to keep."""
        view = self.fleet.view
        if view is None:
            return ()
        try:
            spoken = read_documents(view, self._word()).spoken
        except PcmError:
            return ()  # reported when the documents are acted on
        return tuple(
            one.policy for one in spoken if (one.speaker == "site repository") is (speaker == "site repository")
        )

    def _follow_site(self) -> None:
        """Begin with, or let go of, the repository of the site as the fleet's metadata say."""
        try:
            root = self._listed_root()
            if root == self._site_root:
                return
            self._drop_site()
            if root is None:
                return  # what was trusted stays on the disk, unheard: listed again, the site goes back to nothing older
            client = TrustClient(
                trusted_folder(self._site_folder, root),
                root,
                repository_id(self._fleet_id, self._facts.site),
                wall_clock=self.fleet.now,
                wanted=manifests_to_keep(self._facts, self.fleet.now, lambda: self._policies_of("fleet")),
                standing=(LIFTED,),
                roles=lambda role: role == HALT,
            )
            client.open()
        except (OSError, StorageError, TrustError) as error:
            log.error("the repository of site %s cannot be followed: %s", self._facts.site, error)
            return
        self._site, self._site_root = client, root

    def _drop_site(self) -> None:
        if self._site is not None:
            self._site.close()
        self._site, self._site_root = None, None

    def _listed_root(self) -> bytes | None:
        view = self.fleet.view
        if view is None or self._site_path not in view.kept:
            return None
        data = view.read(self._site_path)
        try:
            decode_site_root_untrusted(data, self._fleet_id, self._facts.site)
        except UntrustedBytes as error:
            log.error("the repository of site %s does not count: %s", self._facts.site, error)
            return None
        return data

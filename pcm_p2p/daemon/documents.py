"""The documents that a device acts on, decoded: of the fleet's trusted view, and of the repository of the device's own site.

A document can be signed and still not be usable by this version: it is passed over by name, and the others count. Whoever
decides what a device should be (the steward; a process that applies on its own account) reads them here, and has them weighed
(``policy.precedence``) for one device at one moment.

A site's own repository is heard for policies, for releases of its own names, and for halts on the site's devices. Whatever else
it signs (a fleet document, an activation, authorities, roots of sites) is not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from pcm_p2p.content.manifest import Manifest, decode_untrusted
from pcm_p2p.daemon.halted import Halted
from pcm_p2p.errors import InputError, PcmError, UntrustedBytes
from pcm_p2p.policy.activation import Activation, decode_activation
from pcm_p2p.policy.allowance import Allowances, decode_allowances
from pcm_p2p.policy.desired import Desired, Freshness, decide
from pcm_p2p.policy.document import Policy, decode_policy
from pcm_p2p.policy.precedence import Speaker, Spoken, Weighed, weigh
from pcm_p2p.policy.selector import DeviceFacts
from pcm_p2p.trust.delegation import TARGETS, kind_of, role_of_path
from pcm_p2p.trust.halt import InForce, Reach
from pcm_p2p.trust.index import ACTIVATION, ALLOWANCES, Index, release_path, release_places
from pcm_p2p.trust.site_root import is_own_release
from pcm_p2p.trust.view import Listing, TrustedView


@dataclass(frozen=True)
class SiteWord:
    """What the repository of the device's own site says at present. ``frozen``: it was not refreshed for too long."""

    site: str
    view: TrustedView
    frozen: bool = False


@dataclass(frozen=True)
class Documents:
    """What was signed, as objects. ``problems`` are sentences about what was passed over."""

    spoken: tuple[Spoken, ...] = ()
    activation: Activation | None = None
    allowances: Allowances | None = None
    problems: tuple[str, ...] = ()
    halts: tuple[InForce, ...] = ()
    halts_known: bool = True
    teams: Mapping[tuple[str, str], str] = field(default_factory=dict)

    @property
    def policies(self) -> tuple[Policy, ...]:
        """Those of the fleet alone."""
        return tuple(one.policy for one in self.spoken if one.speaker == "fleet")

    def weighed(self, facts: DeviceFacts, freshness: Freshness) -> Weighed:
        """The policies that count on this device. ``freshness`` is the fleet's. A relay keeps those of other sites, too."""
        heard = [one for one in self.spoken if one.site in ("", facts.site)]
        return weigh(heard, self.allowances, facts, freshness)

    def desired(self, weighed: Weighed, facts: DeviceFacts, now: datetime, freshness: Freshness) -> Desired:
        """What this device should be now, by what counts on it."""
        return decide(
            weighed.policies, self.activation, facts, now, freshness, weighed.standing, self.halted(facts.site)
        )

    def halted(self, site: str) -> Halted:
        """What must not be applied on devices of ``site``."""
        return Halted(site, self.halts, self.halts_known, self.teams)


def read_documents(view: TrustedView, own: SiteWord | None = None, now: datetime | None = None) -> Documents:
    """Read and decode. Raises ``StorageError`` where the disk has lost a document that is kept.

    ``now`` tells which delegated roles have been out of date for so long that nothing new is done on their word.
    """
    problems: list[str] = []
    listing = view.listing()
    of_fleet = [one.path for one in listing.policies if one.role == TARGETS]
    spoken = _policies({path: view.read(path) for path in of_fleet}, "fleet", problems)
    for role in dict.fromkeys(one.role for one in listing.policies if one.role != TARGETS):
        of_site = [one.path for one in listing.policies if one.role == role]
        kind = kind_of(role)
        site = kind[1] if kind is not None else ""
        frozen = now is not None and view.is_frozen(role, now)
        spoken += _policies(
            {path: view.read(path) for path in of_site}, "site role", problems, frozen=frozen, site=site
        )
    problems += _told_apart(listing)
    activation, allowances = None, None
    if ACTIVATION in view.kept:
        try:
            activation = decode_activation(view.read(ACTIVATION))
        except InputError as error:
            problems.append(f"activation not usable: {error.message}")
    if ALLOWANCES in view.kept:
        try:
            allowances = decode_allowances(view.read(ALLOWANCES))
        except InputError as error:
            problems.append(f"allowances of sites not usable: {error.message}")
    if own is not None:
        spoken += _of_site(own, problems)
    halts, known = view.halts(), view.halts_known
    if own is not None:
        # Who signs for the site's own repository may halt on its devices, and on those only.
        halts += tuple(
            InForce(one.halt, Reach(sites=frozenset({own.site})), one.by) for one in _halts_of(own, problems)
        )
        known = known and own.view.halts_known
    return Documents(tuple(spoken), activation, allowances, tuple(problems), halts, known, _teams(listing))


def manifests_to_keep(
    facts: DeviceFacts, now: Callable[[], datetime], others: Callable[[], Iterable[Policy]] = tuple
) -> Callable[[Index, Mapping[str, bytes]], list[str]]:
    """Which manifests of a new index this device needs: those of the releases that policy assigns to it. ``others`` are policies
    that stand elsewhere. Each signer's policies count by themselves here: they are weighed when all of them are trusted, and
    until then nobody's word takes away what another's needs."""

    def wanted(index: Index, documents: Mapping[str, bytes]) -> list[str]:
        policies: dict[str, list[Policy]] = {TARGETS: [], f"site-{facts.site}": [], "": list(others())}
        for path in index.policies:
            try:
                policies[role_of_path(path)].append(decode_policy(documents[path], path))
            except (InputError, KeyError):
                continue  # reported once the documents are trusted, or of another site
        desired = [decide(of_one, None, facts, now(), "fresh") for of_one in policies.values()]
        releases = dict.fromkeys((release.name, release.version) for one in desired for release in one.releases)
        places = release_places(index.releases)
        found = (places.get(release, ()) for release in releases)
        return [paths[0] for paths in found if len(paths) == 1]

    return wanted


def manifest_place(view: TrustedView, own: SiteWord | None, name: str, version: str) -> tuple[TrustedView, str] | None:
    """The view that holds the manifest of a release, and its path there; None if it is not (yet) here. The fleet's comes first;
    a site brings releases of its own names only."""
    places = release_places(view.kept).get((name, version), ())
    if places:
        return (view, places[0]) if len(places) == 1 else None
    path = release_path(name, version)
    if own is not None and is_own_release(own.site, name) and path in own.view.kept:
        return own.view, path
    return None


def decode_manifest_untrusted(data: bytes, path: str) -> Manifest:
    """The manifest that stands at ``path``, if it is of the release that the path names. Raises ``UntrustedBytes``.

    Who may sign which path is a matter of roles. A team or a site that put another name into its manifest would speak for that
    release, and with its counter keep it from this device for ever.
    """
    manifest = decode_untrusted(data)
    named = path.rpartition("/")[2].removesuffix(".manifest")
    if named != f"{manifest.release}@{manifest.version}":
        raise UntrustedBytes(f"{path} holds the manifest of {manifest.release} {manifest.version}")
    return manifest


def own_releases(site: str, index: Index) -> tuple[str, ...]:
    """The manifests that a site's own repository lists under its own names, by path."""
    return tuple(path for path in index.releases if is_own_release(site, path.rpartition("/")[2].partition("@")[0]))


def sha256_by_artifact(manifest: Manifest) -> dict[str, str]:
    """Stored SHA-256 in hexadecimal, by artifact name."""
    return {artifact.name: artifact.stored_sha256.hex() for artifact in manifest.artifacts}


def _teams(listing: Listing) -> dict[tuple[str, str], str]:
    """Whose a release is, by name and version, where it is a team's."""
    places = release_places(one.path for one in listing.releases)
    kinds = {named: kind_of(role_of_path(found[0])) for named, found in places.items() if len(found) == 1}
    return {named: kind[1] for named, kind in kinds.items() if kind is not None}


def _told_apart(listing: Listing) -> list[str]:
    """A sentence for each release that two teams signed and the fleet did not."""
    return [
        f"release {release} {version} is signed by the teams {' and '.join(path.split('/')[1] for path in found)}: none is chosen"
        for (release, version), found in release_places(one.path for one in listing.releases).items()
        if len(found) > 1
    ]


def _halts_of(own: SiteWord, problems: list[str]) -> tuple[InForce, ...]:
    try:
        return own.view.halts()
    except PcmError as error:
        problems.append(f"the halts of site {own.site} cannot be read: {error.message}")
        return ()


def _policies(
    documents: Mapping[str, bytes], speaker: Speaker, problems: list[str], *, frozen: bool = False, site: str = ""
) -> list[Spoken]:
    spoken = []
    for path, data in documents.items():
        try:
            spoken.append(Spoken(decode_policy(data, path), speaker, frozen, site))
        except InputError as error:
            problems.append(f"policy not usable: {error.message}")
    return spoken


def _of_site(own: SiteWord, problems: list[str]) -> list[Spoken]:
    """What the site's own repository says. Nothing that is wrong with it is in the fleet's way."""
    try:
        index = own.view.index()
        documents = {path: own.view.read(path) for path in index.policies}
    except PcmError as error:
        problems.append(f"the repository of site {own.site} cannot be read: {error.message}")
        return []
    problems += [
        f"{path} of site {own.site} is ignored: releases of its own begin with '{own.site}-'"
        for path in sorted(set(index.releases) - set(own_releases(own.site, index)))
    ]
    return _policies(documents, "site repository", problems, frozen=own.frozen)

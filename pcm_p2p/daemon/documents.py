"""The documents of a trusted view, decoded: policies and activation, and what of them does not read.

A document can be signed and still not be usable by this version: it is passed over by name, and the others count. Whoever
decides what a device should be (the steward; a process that applies on its own account) reads them here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from pcm_p2p.content.manifest import Manifest
from pcm_p2p.errors import InputError
from pcm_p2p.policy.activation import Activation, decode_activation
from pcm_p2p.policy.desired import decide
from pcm_p2p.policy.document import Policy, decode_policy
from pcm_p2p.policy.selector import DeviceFacts
from pcm_p2p.trust.index import ACTIVATION, Index, release_path
from pcm_p2p.trust.view import TrustedView


@dataclass(frozen=True)
class Documents:
    """What a view says, as objects. ``problems`` are sentences about what was passed over."""

    policies: tuple[Policy, ...] = ()
    activation: Activation | None = None
    problems: tuple[str, ...] = ()


def read_documents(view: TrustedView) -> Documents:
    """Read and decode. Raises ``StorageError`` where the disk has lost a document that is kept."""
    policies, problems = [], []
    activation = None
    for path in view.index().policies:
        try:
            policies.append(decode_policy(view.read(path), path))
        except InputError as error:
            problems.append(f"policy not usable: {error.message}")
    if ACTIVATION in view.kept:
        try:
            activation = decode_activation(view.read(ACTIVATION))
        except InputError as error:
            problems.append(f"activation not usable: {error.message}")
    return Documents(tuple(policies), activation, tuple(problems))


def manifests_to_keep(
    facts: DeviceFacts, now: Callable[[], datetime]
) -> Callable[[Index, Mapping[str, bytes]], list[str]]:
    """Which manifests of a new index this device needs: those of the releases that policy assigns to it."""

    def wanted(index: Index, documents: Mapping[str, bytes]) -> list[str]:
        policies = []
        for path in index.policies:
            try:
                policies.append(decode_policy(documents[path], path))
            except (InputError, KeyError):
                continue  # reported once the documents are trusted
        desired = decide(policies, None, facts, now(), "fresh")
        published = set(index.releases)
        paths = (release_path(release.name, release.version) for release in desired.releases)
        return [path for path in paths if path in published]

    return wanted


def sha256_by_artifact(manifest: Manifest) -> dict[str, str]:
    """Stored SHA-256 in hexadecimal, by artifact name."""
    return {artifact.name: artifact.stored_sha256.hex() for artifact in manifest.artifacts}

"""Judgement: whether what the network's daemon asks for is due on this device now, by what the apply service itself trusts. Pure.

The daemon only names a change. What the change is, whether policy assigns it to this device, whether it may be made now, and
which bytes it takes, all follow from the documents that the service verified; that the daemon means the same is a check
against misunderstandings, not a source. The rules, in this order; each refusal is one sentence for people::

    assigned    the policies assign a change with this subject and version to this device
    the same    the daemon means the same resources
    signed      the manifest of that release is here, and its artifacts fit the resources
    allowed     activation, mode, halts, freshness: ``policy.desired`` has nothing against it
    not older   the release counter is not below that of what was applied before
    not parked  it did not fail too often or too recently
    permitted   the authorisation names the change
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec

from pcm_p2p.apply.receipt import Receipt, digest_of
from pcm_p2p.policy.desired import AssignedRelease, Change, Desired
from pcm_p2p.policy.document import AnyCheck
from pcm_p2p.policy.fitness import why_unfit
from pcm_p2p.policy.resource import artifact_of


class PublishedArtifact(msgspec.Struct, frozen=True):
    """What the signed manifest says of one artifact: SHA-256 (hexadecimal) and size of the stored form, and which form."""

    name: str
    sha256: str
    size_bytes: int
    form: str


class Published(msgspec.Struct, frozen=True):
    """What the signed manifest says of a release, as far as applying it goes."""

    counter: int
    artifacts: tuple[PublishedArtifact, ...]

    @property
    def sha256_of(self) -> dict[str, str]:
        return {artifact.name: artifact.sha256 for artifact in self.artifacts}


class Due(msgspec.Struct, frozen=True):
    """A change that is to be made, and the artifacts that it takes, sorted by name."""

    change: Change
    artifacts: tuple[PublishedArtifact, ...]

    @property
    def size_bytes(self) -> int:
        return sum(artifact.size_bytes for artifact in self.artifacts)


class NotDue(msgspec.Struct, frozen=True):
    """Why not."""

    reason: str


def find(desired: Desired, subject: str, version: str, digest: str) -> tuple[Change, AssignedRelease | None] | NotDue:
    """The change that is meant, and the release that it comes from (None: the remedy of a check)."""
    release = desired.release(subject)
    change = release.change if release is not None else None
    for check in desired.checks:
        if release is None and check.remedy is not None and check.remedy.subject == subject:
            change = check.remedy
    if change is None or change.version != version:
        known = f", but version {change.version}" if change is not None else ""
        return NotDue(f"The signed policies do not assign {subject} {version} to this device{known}.")
    if digest_of(change) != digest:
        return NotDue(f"The signed policies here say otherwise what {change.title} is.")
    return change, release


def judge(
    desired: Desired,
    subject: str,
    version: str,
    digest: str,
    *,
    published: Published | None,
    counter_min: int,
    receipt: Receipt | None,
    now_ms: int,
) -> Due | NotDue:
    """Whether the change is due. ``published`` is the manifest's content, None where there is no manifest; ``counter_min`` the
    highest counter of the release that was applied; ``receipt`` that of the subject."""
    found = find(desired, subject, version, digest)
    if isinstance(found, NotDue):
        return found
    change, release = found
    names = sorted({name for name in map(artifact_of, change.resources) if name})
    artifacts: Mapping[str, PublishedArtifact] = {}
    if release is not None:
        if published is None:
            return NotDue(f"The signed manifest of {change.title} is not here.")
        artifacts = {artifact.name: artifact for artifact in published.artifacts}
        if unfit := why_unfit(change.resources, {name: artifact.form for name, artifact in artifacts.items()}):
            return NotDue(f"{change.title}: {unfit}.")
        if release.why_not:
            return NotDue(release.why_not)
        if published.counter < counter_min:
            return NotDue(
                f"Counter {published.counter} of {change.title} is below {counter_min}, which was applied before."
            )
    elif names:
        return NotDue(f"The remedy {subject} brings no artifact, and asks for {names[0]}.")
    if receipt is not None and (wait := receipt.why_wait(change, now_ms)):
        return NotDue(wait)
    if not desired.authorisation.permits(change):
        return NotDue(desired.why_not or f"{change.title} is not permitted on this device now.")
    return Due(change, tuple(artifacts[name] for name in names))


def digest_of_check(check: AnyCheck) -> str:
    """SHA-256 of a check as it stands in a policy, in hexadecimal."""
    return hashlib.sha256(msgspec.json.encode(check)).hexdigest()

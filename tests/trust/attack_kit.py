"""What the tests of attacks share: a device that trusts something, a verdict that left everything as it was, and forged roots."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from repository_simulator import RepositorySimulator, Tree, TreeSource, attempt
from tuf.api.metadata import Metadata, Root  # type: ignore[attr-defined]

from pcm_p2p.trust.client import Attempt, TrustClient

TIMESTAMP = "metadata/timestamp.json"


@contextmanager
def device_of(fleet: RepositorySimulator, **options: Any) -> Iterator[TrustClient]:
    """A device that trusts what the fleet has published by now."""
    with fleet.client(**options) as device:
        assert attempt(device, fleet.source()).kind in {"good", "unchanged"}
        yield device


def refused(device: TrustClient, source: TreeSource | Tree, *kinds: str, reason: str = "") -> Attempt:
    """``source`` ends in one of ``kinds``, and what was trusted is trusted and can be read as before."""
    before = device.view
    assert before is not None
    read = {path: before.read(path) for path in before.paths()}
    result = attempt(device, source if isinstance(source, TreeSource) else TreeSource(source))
    assert (result.kind in kinds, result.view) == (True, before), f"{result.kind}: {result.reason}"
    assert reason in result.reason, result.reason
    assert {path: before.read(path) for path in before.paths()} == read
    return result


def accepted(device: TrustClient, source: TreeSource | Tree) -> Attempt:
    """``source`` brings something newer."""
    result = attempt(device, source if isinstance(source, TreeSource) else TreeSource(source))
    assert result.kind == "good", result.reason
    return result


def next_root(
    fleet: RepositorySimulator, signers: list[Any], edit: Callable[[Root], None] | None = None, version: int = 2
) -> bytes:
    """A root of this version, after ``edit``, signed by exactly ``signers`` with no rule of ours in the way."""
    root = fleet.fleet.root().signed
    root.version = version
    root.expires = fleet.clock.now + timedelta(days=700)
    if edit is not None:
        edit(root)
    document = Metadata(root)
    for signer in signers:
        document.sign(signer, append=True)
    return document.to_bytes()

"""A carried proposal that no honest tool made: refused with the one error, so that who opens it sees a sentence."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from repository_simulator import RepositorySimulator

from pcm_p2p.authority.carry.bundle import BundledDocument, BundleDocument, decode_bundle_untrusted
from pcm_p2p.errors import UntrustedBytes


@pytest.mark.parametrize("number", [1.5, {"deep": [0.1]}], ids=["beside the key", "deeper"])
@pytest.mark.parametrize("place", ["key", "root"])
def test_a_root_with_a_number_that_cannot_be_signed_is_refused(
    fleet: RepositorySimulator, number: Any, place: str
) -> None:
    root = json.loads(fleet.fleet.root_bytes(1))
    root["signed"]["version"] = 2
    key = next(iter(root["signed"]["keys"].values()))
    (key["keyval"] if place == "key" else root["signed"])["x-more"] = number
    document = BundleDocument(
        fleet.fleet.fleet_id,
        "Simulated",
        (fleet.fleet.root_bytes(1),),
        (BundledDocument("targets", fleet.newest_targets().to_bytes()),),
        (BundledDocument("root", json.dumps(root).encode()),),
        (),
    )
    with pytest.raises(UntrustedBytes, match="root cannot be read"):
        decode_bundle_untrusted(msgspec.msgpack.encode(document))


def bundle_of(fleet: RepositorySimulator, targets: dict[str, Any]) -> bytes:
    document = BundleDocument(
        fleet.fleet.fleet_id,
        "Simulated",
        (fleet.fleet.root_bytes(1),),
        (BundledDocument("targets", fleet.newest_targets().to_bytes()),),
        (BundledDocument("targets", json.dumps(targets).encode()),),
        (),
    )
    return msgspec.msgpack.encode(document)


@pytest.mark.parametrize("place", ["key of a role", "path of a role", "name of a role", "hash of a target"])
def test_what_should_be_text_and_is_a_number_is_refused(fleet: RepositorySimulator, place: str) -> None:
    """The library takes it; what is shown to the person who is asked to sign, and the lint behind it, would not."""
    fleet.delegate("site-berlin", "bob")
    targets = fleet.newest_targets().to_dict()
    targets["signed"]["version"] += 1
    site = next(role for role in targets["signed"]["delegations"]["roles"] if role["name"] == "site-berlin")
    match place:
        case "key of a role":
            site["keyids"] = [2**63 - 1]
        case "path of a role":
            site["paths"] = [7]
        case "name of a role":
            site["name"] = 7
        case _:
            targets["signed"]["targets"]["policies/first.toml"]["hashes"]["sha256"] = 7
    with pytest.raises(UntrustedBytes, match=r"no text|cannot be read"):
        decode_bundle_untrusted(bundle_of(fleet, targets))

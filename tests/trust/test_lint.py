"""Each rule by itself: what python-tuf accepts and we do not."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP521R1, generate_private_key
from repository_simulator import RepositorySimulator
from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]
from tuf.api.metadata import (  # type: ignore[attr-defined]
    DelegatedRole,
    Delegations,
    Key,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from pcm_p2p.trust.index import VERSION_MAX
from pcm_p2p.trust.lint import lint_root, lint_snapshot, lint_targets, lint_timestamp, lint_version, owner_of

EXPIRES = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def root(fleet: RepositorySimulator) -> Root:
    return fleet.fleet.root().signed


def add(root: Root, key: Key) -> None:
    root.keys[key.keyid] = key
    root.roles["targets"].keyids.append(key.keyid)


def twin(root: Root, keyid: str, public: Callable[[str], str]) -> None:
    """The targets key once more, under another id and in another spelling."""
    key = root.keys[root.roles["targets"].keyids[0]]
    add(root, SSlibKey(keyid, key.keytype, key.scheme, {"public": public(key.keyval["public"])}))


def elliptic(curve: Any) -> Key:
    return SSlibKey.from_crypto(generate_private_key(curve).public_key())


ROOTS: dict[str, tuple[Callable[[Root], Any], str]] = {
    "no fleet": (lambda root: root.unrecognized_fields.clear(), "root is of no fleet"),
    "other fleet": (lambda root: root.unrecognized_fields.update({"x-pcm-fleet": "e" * 32}), "root is of eeeeeeee"),
    "fleet of another type": (lambda root: root.unrecognized_fields.update({"x-pcm-fleet": 7}), "root is of no fleet"),
    "no consistent snapshots": (lambda root: setattr(root, "consistent_snapshot", False), "consistent snapshots"),
    "threshold above keys": (
        lambda root: setattr(root.roles["root"], "threshold", 2),
        "threshold of root is 2, with 1",
    ),
    "threshold zero": (lambda root: setattr(root.roles["root"], "threshold", 0), "threshold of root is 0"),
    "role without key": (lambda root: root.roles["snapshot"].keyids.append("c" * 64), "snapshot refers to a key"),
    "no role": (lambda root: root.roles.pop("snapshot"), "nobody for snapshot"),
    "twin": (lambda root: twin(root, "d" * 64, str), "one key stands under two ids"),
    "twin in capitals": (lambda root: twin(root, "d" * 64, str.upper), "one key stands under two ids"),
    "twin with spaces": (lambda root: twin(root, "d" * 64, lambda text: text[:2] + " " + text[2:]), "two ids"),
    "foreign id": (lambda root: twin(root, "d" * 64, lambda _: "ab" * 32), "does not belong to it"),
    "short key": (lambda root: twin(root, "d" * 64, lambda _: "ab"), "cannot be read"),
    "key that is no key": (lambda root: twin(root, "d" * 64, lambda _: "xyz"), "cannot be read"),
    "unknown curve": (lambda root: add(root, elliptic(SECP521R1())), "unknown type"),
    "unknown scheme": (
        lambda root: add(root, SSlibKey("d" * 64, "rsa", "rsassa-pss-sha256", {"public": "x"})),
        "unknown type rsa",
    ),
    "damaged PEM": (
        lambda root: add(root, SSlibKey("d" * 64, "ecdsa", "ecdsa-sha2-nistp256", {"public": "-----BEGIN"})),
        "cannot be read",
    ),
}


def test_a_real_root_is_clean(root: Root, fleet: RepositorySimulator) -> None:
    assert lint_root(root, fleet.fleet.fleet_id) == ()
    add(root, elliptic(SECP256R1()))
    assert lint_root(root, fleet.fleet.fleet_id) == (), "a token's key"


@pytest.mark.parametrize("name", ROOTS)
def test_a_root_against_a_rule(root: Root, fleet: RepositorySimulator, name: str) -> None:
    edit, complaint = ROOTS[name]
    edit(root)
    complaints = lint_root(root, fleet.fleet.fleet_id)
    assert any(complaint in one for one in complaints), complaints


def test_owners_are_named_by_root(root: Root) -> None:
    key = root.keys[root.roles["targets"].keyids[0]]
    assert owner_of(key) == "alice"
    for unusable in ("", 7):
        key.unrecognized_fields["x-pcm-owner"] = unusable
        assert owner_of(key) == key.keyid[:8]


def targets_with(path: str = "policies/a.toml", **changes: Any) -> Targets:
    info = TargetFile.from_data("x", b"x", ["sha256"])
    info.unrecognized_fields.update(changes.pop("custom", {}))
    for name, value in changes.items():
        setattr(info, name, value)
    return Targets(expires=EXPIRES, targets={path: info})


DELEGATIONS = Delegations({}, {"team": DelegatedRole("team", [], 1, False, paths=["*"])})


@pytest.mark.parametrize(
    ("targets", "complaint"),
    [
        (targets_with("../x"), "not a target path"),
        (targets_with("a/b/c/d/e/f"), "not a target path"),
        (targets_with(hashes={"md5": "0"}), "by SHA-256 alone, not by md5"),
        (targets_with(hashes={"sha256": "0", "sha512": "0"}), "by SHA-256 alone"),
        (targets_with(length=(1 << 20) + 1), "at most 1048576"),
        (targets_with(custom={"custom": {"deep": [1, {"x": 1.5}]}}), "fraction"),
        (Targets(expires=EXPIRES, delegations=DELEGATIONS), "delegations"),
    ],
)
def test_targets_against_a_rule(targets: Targets, complaint: str) -> None:
    (found,) = lint_targets(targets)
    assert complaint in found


def test_clean_targets() -> None:
    assert lint_targets(targets_with(custom={"custom": {"counter": 3}})) == ()
    assert lint_targets(targets_with("releases/main/a@1.manifest", length=8 << 20)) == ()


@pytest.mark.parametrize(
    ("meta", "clean"),
    [
        (MetaFile.from_data(1, b"x", ["sha256"]), True),
        (MetaFile.from_data(1, b"x", ["sha512"]), False),
        (MetaFile(1, 5, None), False),
        (MetaFile(1, None, {"sha256": "0" * 64}), False),
        (MetaFile(1), False),
    ],
)
def test_online_documents_bind_what_they_name(meta: MetaFile, clean: bool) -> None:
    assert (lint_snapshot(Snapshot(expires=EXPIRES, meta={"targets.json": meta})) == ()) == clean
    assert (lint_timestamp(Timestamp(expires=EXPIRES, snapshot_meta=meta)) == ()) == clean


def test_versions_have_an_end() -> None:
    assert lint_version(Timestamp(version=VERSION_MAX, expires=EXPIRES)) == ()
    assert lint_version(Timestamp(version=VERSION_MAX + 1, expires=EXPIRES)) != ()

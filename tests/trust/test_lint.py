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
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)

from pcm_p2p.trust.delegation import DELEGATIONS_MAX
from pcm_p2p.trust.index import VERSION_MAX
from pcm_p2p.trust.lint import (
    foreign_paths,
    lint_delegated,
    lint_root,
    lint_snapshot,
    lint_targets,
    lint_timestamp,
    lint_version,
    owner_of,
)
from pcm_p2p.wire.framing import ControlFrame, FrameDecoder, decode_message_untrusted, encode_control
from pcm_p2p.wire.messages import Digest, SiteDigest

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
    "key that nobody can hold": (lambda root: twin(root, "d" * 64, lambda _: "01" + "00" * 31), "cannot be read"),
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


@pytest.mark.parametrize(
    ("targets", "complaint"),
    [
        (targets_with("../x"), "not a target path"),
        (targets_with("a/b/c/d/e/f"), "not a target path"),
        (targets_with(hashes={"md5": "0"}), "by SHA-256 alone, not by md5"),
        (targets_with(hashes={"sha256": "0", "sha512": "0"}), "by SHA-256 alone"),
        (targets_with(length=(1 << 20) + 1), "at most 1048576"),
        (targets_with(custom={"custom": {"deep": [1, {"x": 1.5}]}}), "fraction"),
    ],
)
def test_targets_against_a_rule(targets: Targets, complaint: str) -> None:
    (found,) = lint_targets(targets)
    assert complaint in found


def test_clean_targets() -> None:
    assert lint_targets(targets_with(custom={"custom": {"counter": 3}})) == ()
    assert lint_targets(targets_with("releases/main/a@1.manifest", length=8 << 20)) == ()


KEYS = {key.keyid: key for key in (elliptic(SECP256R1()), elliptic(SECP256R1()))}


def delegating(edit: Callable[[Delegations], Any] = lambda _: None) -> Targets:
    """A team, a site and the halt, each as it must be, after ``edit``."""
    roles = {
        name: DelegatedRole(name, list(KEYS), 2, terminating=True, paths=[path])
        for name, path in (
            ("halt", "halts/*"),
            ("site-berlin", "policies/berlin/*"),
            ("team-web", "releases/web/*"),
        )
    }
    delegations = Delegations(dict(KEYS), roles)
    edit(delegations)
    return Targets(expires=EXPIRES, delegations=delegations)


def renamed(delegations: Delegations, name: str) -> None:
    assert delegations.roles is not None
    role = delegations.roles.pop("site-berlin")
    role.name = name
    delegations.roles[name] = role


def site(delegations: Delegations, **changes: Any) -> None:
    assert delegations.roles is not None
    for name, value in changes.items():
        setattr(delegations.roles["site-berlin"], name, value)


def doubled(delegations: Delegations) -> None:
    """One person's key under a second id, so that alone it would meet the threshold of two."""
    key = next(iter(KEYS.values()))
    delegations.keys["d" * 64] = SSlibKey("d" * 64, key.keytype, key.scheme, dict(key.keyval))
    site(delegations, keyids=[key.keyid, "d" * 64])


def crowd(delegations: Delegations) -> None:
    assert delegations.roles is not None
    for number in range(DELEGATIONS_MAX):
        name = f"site-{number}"
        delegations.roles[name] = DelegatedRole(name, list(KEYS), 1, terminating=True, paths=[f"policies/{number}/*"])


FOREIGN = SSlibKey("d" * 64, "rsa", "rsassa-pss-sha256", {"public": "x"})
DELEGATIONS: dict[str, tuple[Callable[[Delegations], Any], str]] = {
    "unknown kind": (lambda it: renamed(it, "office-berlin"), "'office-berlin' is not a role that is delegated"),
    "name that is no text": (lambda it: renamed(it, 7), "'7' is not a role"),  # type: ignore[arg-type]
    "name with a pattern": (lambda it: renamed(it, "site-*"), "not a role"),
    "name that climbs": (lambda it: renamed(it, "site-a..b"), "not a role"),
    "the fleet's own folder": (lambda it: renamed(it, "team-main"), "not a role"),
    "path of another": (lambda it: site(it, paths=["policies/paris/*"]), "must be delegated policies/berlin/*"),
    "every path": (lambda it: site(it, paths=["*"]), "must be delegated policies/berlin/*"),
    "one path more": (lambda it: site(it, paths=["policies/berlin/*", "policies/*"]), "must be delegated"),
    "path by hash": (lambda it: site(it, paths=None, path_hash_prefixes=["00"]), "must be delegated"),
    "not terminating": (lambda it: site(it, terminating=False), "does not end the search"),
    "threshold above keys": (lambda it: site(it, threshold=3), "threshold of site-berlin is 3, with 2 keys"),
    "threshold zero": (lambda it: site(it, threshold=0), "threshold of site-berlin is 0"),
    "key that is nowhere": (lambda it: site(it, keyids=[*KEYS, "c" * 64]), "a key that targets does not hold"),
    "key of an unknown type": (lambda it: it.keys.update({"d" * 64: FOREIGN}), "unknown type rsa"),
    "one key under two ids": (doubled, "one key stands under two ids"),
    "key without a role": (
        lambda it: it.keys.update({(key := elliptic(SECP256R1())).keyid: key}),
        "has no role",
    ),
    "hash bins": (
        lambda it: it.__init__(dict(KEYS), None, SuccinctRoles(list(KEYS), 1, 4, "bin")),  # type: ignore[misc]
        "hash bins",
    ),
    "more than are read": (crowd, f"at most {DELEGATIONS_MAX}"),
}


def test_delegations_as_they_must_be_are_clean() -> None:
    assert lint_targets(delegating()) == ()


@pytest.mark.parametrize("name", DELEGATIONS)
def test_a_delegation_against_a_rule(name: str) -> None:
    edit, complaint = DELEGATIONS[name]
    complaints = lint_targets(delegating(edit))
    assert any(complaint in one for one in complaints), complaints


def test_what_is_delegated_is_for_the_delegate_to_sign() -> None:
    targets = delegating()
    targets.targets["policies/berlin/a.toml"] = TargetFile.from_data("x", b"x", ["sha256"])
    assert lint_targets(targets) == ("policies/berlin/a.toml is for site-berlin to sign, not for targets",)


def test_a_delegate_delegates_no_further_and_speaks_for_its_folder_only() -> None:
    assert lint_delegated(targets_with("policies/berlin/a.toml"), "site-berlin") == ()
    assert lint_delegated(delegating(), "site-berlin") == ("site-berlin delegates, which only targets may",)
    (climbing,) = lint_delegated(targets_with("policies/berlin/.."), "site-berlin")
    assert "is not a target path" in climbing
    for path in (
        "policies/paris/a.toml",
        "policies/a.toml",
        "index.json",
        "releases/main/a@1.manifest",
        "halts/a.toml",
    ):
        assert foreign_paths(targets_with(path), "site-berlin") == (path,)
    assert foreign_paths(targets_with("policies/berlin/a.toml"), "site-berlin") == ()


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


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_every_version_that_is_accepted_can_be_told_to_peers(role: str) -> None:
    """Else who steals the online keys could have all sessions of the fleet end as errors of the protocol, one version later."""
    versions = dict.fromkeys(("root", "timestamp", "snapshot", "targets"), 1) | {role: VERSION_MAX}
    for digest in (
        Digest(**versions, timestamp_sha256=bytes(32)),
        SiteDigest("berlin", **versions, timestamp_sha256=bytes(32)),
    ):
        (frame,) = FrameDecoder().feed_untrusted(encode_control(digest))
        assert isinstance(frame, ControlFrame)
        assert decode_message_untrusted(frame.body) == digest

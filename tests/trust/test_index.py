"""Names of the tree: what may be a path, what files carry it, and the signed list of what is published."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import os
import re
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.trust.delegation import ROLE_PATTERN, index_of, kind_of, pattern_of, role_of_path, site_role, team_role
from pcm_p2p.trust.index import (
    DELEGATED_SIZE_BYTES_MAX,
    METADATA_SIZE_BYTES_MAX,
    SIZE_BYTES_MAX,
    TARGET_PATH_LENGTH_MAX,
    Index,
    check_target_path,
    check_tree_path,
    decode_index_untrusted,
    metadata_version,
    policy_path,
    release_path,
    size_bytes_max_of,
    target_file,
    target_size_bytes_max,
)

FLEET = "0123456789abcdef" * 2


def test_an_index_reads_back() -> None:
    index = Index("pcm.index/1", FLEET, ("policies/a.toml",), ("releases/main/tool@1.0.manifest",))
    assert decode_index_untrusted(index.encoded()) == index
    assert decode_index_untrusted(Index("pcm.index/1", FLEET).encoded()) == Index("pcm.index/1", FLEET)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "schema"),
        (b"[" * 100_000, "schema"),
        (b"\xff", "schema"),
        (b'{"schema":"pcm.index/2","fleet":"%s"}' % FLEET.encode(), "pcm.index/2"),
        (b'{"schema":"pcm.index/1","fleet":"short"}', "schema"),
        (b'{"schema":"pcm.index/1","fleet":"%s\\n"}' % FLEET.encode(), "schema"),
        (b'{"schema":"pcm.index/1","fleet":"%s","more":1}' % FLEET.encode(), "more"),
        (b" " * (SIZE_BYTES_MAX + 1), "at most"),
    ],
)
def test_what_is_no_index(data: bytes, message: str) -> None:
    with pytest.raises(UntrustedBytes, match=message):
        decode_index_untrusted(data)


@pytest.mark.parametrize(
    ("policies", "releases"),
    [
        (("policies/../x.toml",), ()),
        (("releases/main/a@1.manifest",), ()),
        (("policies/a.json",), ()),
        (("policies/a.toml", "policies/a.toml"), ()),
        ((), ("policies/a.toml",)),
        ((), ("releases/main/a@1.toml",)),
        ((), ("/releases/main/a@1.manifest",)),
        (("policies/berlin/a.toml",), ()),
        ((), ("releases/web/a@1.manifest",)),
    ],
)
def test_an_index_lists_only_what_belongs_there(policies: tuple[str, ...], releases: tuple[str, ...]) -> None:
    with pytest.raises(UntrustedBytes):
        decode_index_untrusted(Index("pcm.index/1", FLEET, policies, releases).encoded())


@settings(max_examples=200)
@given(st.binary(max_size=300))
@example(Index("pcm.index/1", FLEET).encoded())
def test_noise_is_refused_and_nothing_else_is_raised(data: bytes) -> None:
    with contextlib.suppress(UntrustedBytes):
        decode_index_untrusted(data)


@settings(max_examples=200)
@given(st.integers(0, 120), st.binary(max_size=4))
def test_a_damaged_index_is_refused_or_another_index(at: int, damage: bytes) -> None:
    data = Index("pcm.index/1", FLEET, ("policies/a.toml",), ("releases/main/tool@1.0.manifest",)).encoded()
    try:
        index = decode_index_untrusted(data[:at] + damage + data[at + len(damage) :])
    except UntrustedBytes:
        return
    for path in (*index.policies, *index.releases):
        check_target_path(path)


@pytest.mark.parametrize(
    "path", ["index.json", "fleet/fleet.toml", "a/b/c/d/e", "releases/main/tool@1.0~rc1+b:2=x.manifest", "9"]
)
def test_safe_target_paths(path: str) -> None:
    assert check_target_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "/a", "a/", "a//b", ".", "..", ".a", "a/.b", "a/../b", "a..b", "-a", "a/b/c/d/e/f", "a b", "a\\b", "a\n",
        "ä", "a\x00", "a%2e", "a?b", "a#b", "x" * (TARGET_PATH_LENGTH_MAX + 1),
    ],
)  # fmt: skip
def test_unsafe_target_paths(path: str) -> None:
    with pytest.raises(UntrustedBytes):
        check_target_path(path)


@settings(max_examples=200)
@given(st.text(alphabet="ab./@-_~ \n\\é", max_size=12))
def test_a_safe_path_stays_in_its_folder_and_survives_the_tree(path: str) -> None:
    try:
        check_target_path(path)
    except UntrustedBytes:
        return
    assert os.path.normpath(f"/top/{path}") == f"/top/{path}"
    assert re.fullmatch(r"[\x21-\x7e]+", path)
    name = target_file(path, hashlib.sha256(b"").hexdigest())
    assert check_tree_path(name) == name
    assert metadata_version(name) is None
    assert len(name) < 256


@pytest.mark.parametrize(
    ("path", "version"),
    [
        ("metadata/timestamp.json", ("timestamp", 0)),
        ("metadata/1.root.json", ("root", 1)),
        ("metadata/9999999999.snapshot.json", ("snapshot", 9_999_999_999)),
        ("metadata/20.targets.json", ("targets", 20)),
        ("metadata/3.site-berlin.json", ("site-berlin", 3)),
        ("metadata/3.team-web_2.0.json", ("team-web_2.0", 3)),
        ("metadata/1.halt.json", ("halt", 1)),
    ],
)
def test_metadata_of_the_tree(path: str, version: tuple[str, int]) -> None:
    assert check_tree_path(path) == path
    assert metadata_version(path) == version
    assert size_bytes_max_of(path) == METADATA_SIZE_BYTES_MAX.get(version[0], DELEGATED_SIZE_BYTES_MAX)


@pytest.mark.parametrize(
    "path",
    [
        "", "timestamp.json", "metadata/", "metadata/root.json", "metadata/0.root.json", "metadata/01.root.json",
        "metadata/1.timestamp.json", "metadata/1.mirrors.json", "metadata/site-berlin.json", "metadata/1.site-.json",
        "metadata/1.site-a..b.json", "metadata/1.site-a%2fb.json", "metadata/1.office-a.json", "metadata/0.halt.json",
        "metadata/12345678901.root.json", "metadata/1.root.json\n",
        "metadata/../timestamp.json", "/metadata/timestamp.json", "METADATA/timestamp.json",
        "targets/index.json", f"targets/{'a' * 63}.index.json", f"targets/{'A' * 64}.index.json",
        f"targets/{'a' * 64}.", f"targets/../{'a' * 64}.x", f"targets/a/{'a' * 64}..x", f"targets//{'a' * 64}.x",
        f"targets/a/b/c/d/e/{'a' * 64}.x", f"targets/{'a' * 64}.x/y", f"segments/ab/{'a' * 64}",
    ],
)  # fmt: skip
def test_what_is_no_file_of_the_tree(path: str) -> None:
    with pytest.raises(UntrustedBytes):
        check_tree_path(path)


def test_the_index_of_a_role_lists_its_own_folder_only() -> None:
    berlin = Index("pcm.index/1", FLEET, ("policies/berlin/a.toml",)).encoded()
    assert decode_index_untrusted(berlin, "site-berlin").policies == ("policies/berlin/a.toml",)
    for role in ("targets", "site-paris", "team-berlin", "halt"):
        with pytest.raises(UntrustedBytes, match="for which site-berlin speaks"):
            decode_index_untrusted(berlin, role)
    halts = Index("pcm.index/1", FLEET, halts=("halts/a.toml",)).encoded()
    assert decode_index_untrusted(halts, "halt").halts == ("halts/a.toml",)
    with pytest.raises(UntrustedBytes, match="for which halt speaks"):
        decode_index_untrusted(halts)


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("index.json", "targets"),
        ("policies/a.toml", "targets"),
        ("policies/berlin/a.toml", "site-berlin"),
        ("policies/berlin/deep/a.toml", "targets"),
        ("policies/be@rlin/a.toml", "targets"),
        ("releases/main/a@1.manifest", "targets"),
        ("releases/web/a@1.manifest", "team-web"),
        ("halts/a.toml", "halt"),
        ("halts/deep/a.toml", "targets"),
        ("sites/berlin/root.json", "targets"),
    ],
)
def test_a_path_belongs_to_one_role(path: str, role: str) -> None:
    assert role_of_path(path) == role


@settings(max_examples=300)
@given(st.from_regex(ROLE_PATTERN, fullmatch=True), st.from_regex(ROLE_PATTERN, fullmatch=True))
def test_no_two_roles_share_a_path(one: str, other: str) -> None:
    for role in (one, other):
        if kind_of(role) is None:
            assert role == "team-main"
            return
        assert role_of_path(index_of(role)) == role
        assert fnmatch.fnmatchcase(index_of(role), pattern_of(role))
        assert metadata_version(f"metadata/1.{role}.json") == (role, 1)
        assert quote(role, "") == role
    if one != other:
        assert role_of_path(index_of(one)) != other


@pytest.mark.parametrize("name", ["", "a..b", "a/b", "-a", ".a", "a*", "a@b", "a.", "x" * 65, "ä", "a\n"])
def test_names_that_cannot_be_delegated_to(name: str) -> None:
    for role in (site_role, team_role):
        with pytest.raises(UntrustedBytes):
            role(name)


def test_names_of_policies_and_releases() -> None:
    assert policy_path("base", "berlin") == "policies/berlin/base.toml"
    assert release_path("tool", "1", "web") == "releases/web/tool@1.manifest"
    for team in ("main", "a/b"):
        with pytest.raises(UntrustedBytes, match="team"):
            release_path("tool", "1", team)
    assert policy_path("base") == "policies/base.toml"
    assert release_path("tool", "1.0~rc1") == "releases/main/tool@1.0~rc1.manifest"
    for release, version in (("a@b", "1"), ("a", "1@2"), ("..", "1"), ("a/b", "1"), ("", "1"), ("a", "")):
        with pytest.raises(UntrustedBytes):
            release_path(release, version)
    for policy in ("", "../x", "a/b"):
        with pytest.raises(UntrustedBytes):
            policy_path(policy)


def test_bounds_of_targets() -> None:
    assert target_size_bytes_max("releases/main/tool@1.manifest") == 8 << 20
    assert target_size_bytes_max("policies/a.toml") == 1 << 20
    assert size_bytes_max_of(target_file("policies/a.toml", "0" * 64)) == 1 << 20
    assert size_bytes_max_of(target_file("releases/main/tool@1.manifest", "0" * 64)) == 8 << 20

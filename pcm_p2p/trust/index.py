"""Names inside the tree: which target paths exist, which files carry them, and the index that lists them.

TUF has no directory listing, and going over ``targets.targets`` of a role shows entries that the role may not speak for. So
what is published is what the signed target ``index.json`` lists, and for each delegated role the one in its own folder::

    {"schema": "pcm.index/1", "fleet": "<32 hex>", "policies": ["policies/x.toml"], "releases": ["releases/main/n@v.manifest"]}
    {"schema": "pcm.index/1", "fleet": "<32 hex>", "halts": ["halts/x.toml"]}

Path names come from strangers and end up in file systems and URLs: every one passes ``check_target_path`` or
``check_tree_path`` first. The bound of 180 characters keeps ``targets/<folder>/<sha256>.<name>`` below the 256 that a
request between peers can carry.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec

from pcm_p2p.content.manifest import SIZE_BYTES_MAX as MANIFEST_SIZE_BYTES_MAX
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import check_name
from pcm_p2p.trust.delegation import FLEET_TEAM, ROLE_PATTERN, TARGETS, folder_of, role_of_path, site_role, team_role
from pcm_p2p.trust.deny import SIZE_BYTES_MAX as DENY_SIZE_BYTES_MAX

INDEX = "index.json"
FLEET_DOCUMENT = "fleet/fleet.toml"
ACTIVATION = "fleet/activation.toml"
AUTHORITIES = "identity/ca.pem"
DENY = "identity/deny.json"
LIFTED = "fleet/lifted.toml"
ALLOWANCES = "fleet/allowances.toml"
STANDING = (FLEET_DOCUMENT, ACTIVATION, AUTHORITIES, DENY, LIFTED, ALLOWANCES)
"""Targets outside the index that every device reads when they are there."""

SIZE_BYTES_MAX = 1 << 20
"""Choice: an index of 10,000 entries."""
DOCUMENT_SIZE_BYTES_MAX = 1 << 20
"""Choice: as ``toml_document.SIZE_BYTES_MAX``."""
TARGET_PATH_LENGTH_MAX = 180
METADATA_SIZE_BYTES_MAX = {"root": 512_000, "timestamp": 16_384, "snapshot": 2_000_000, "targets": 5_000_000}
"""python-tuf's own defaults, which its conformance suite was run with."""
DELEGATED_SIZE_BYTES_MAX = 1_000_000
"""Choice: some 4,000 policies or releases of one site or team."""

VERSION_MAX = (1 << 32) - 1
"""The largest version of a document: what a digest between peers can carry. A file name of the tree has room for more."""

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~:=@-]*")
_METADATA = re.compile(rf"metadata/(?:timestamp|([1-9][0-9]{{0,9}})\.(root|snapshot|targets|{ROLE_PATTERN}))\.json")
_TARGET_FILE = re.compile(
    r"targets/((?:[A-Za-z0-9][A-Za-z0-9._+~:=@-]*/){0,4})([0-9a-f]{64})\.([A-Za-z0-9][A-Za-z0-9._+~:=@-]*)"
)

_Path = Annotated[str, msgspec.Meta(min_length=1, max_length=TARGET_PATH_LENGTH_MAX)]


class Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one role publishes: target paths of policies, release manifests and halts, each sorted and distinct."""

    schema: Literal["pcm.index/1"]
    fleet: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    policies: Annotated[tuple[_Path, ...], msgspec.Meta(max_length=10_000)] = ()
    releases: Annotated[tuple[_Path, ...], msgspec.Meta(max_length=10_000)] = ()
    halts: Annotated[tuple[_Path, ...], msgspec.Meta(max_length=1_000)] = ()

    def encoded(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


_decoder = msgspec.json.Decoder(Index)


def decode_index_untrusted(data: bytes, role: str = TARGETS) -> Index:
    """Bytes to the index of ``role``, whose paths are all safe, of their kind and its own; raises ``UntrustedBytes`` only."""
    if len(data) > SIZE_BYTES_MAX:
        raise UntrustedBytes(f"index has {len(data)} bytes; at most {SIZE_BYTES_MAX} are read")
    try:
        index = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UntrustedBytes(f"index does not fit its schema: {error}") from None
    for paths, folder, ending in (
        (index.policies, "policies/", ".toml"),
        (index.releases, "releases/", ".manifest"),
        (index.halts, "halts/", ".toml"),
    ):
        for path in paths:
            check_target_path(path)
            if not (path.startswith(folder) and path.endswith(ending)):
                raise UntrustedBytes(f"index lists {path!r} where {folder}…{ending} is expected")
            if role_of_path(path) != role:
                raise UntrustedBytes(f"index of {role} lists {path!r}, for which {role_of_path(path)} speaks")
        if len(set(paths)) != len(paths):
            raise UntrustedBytes(f"index lists a path below {folder} twice")
    return index


def policy_path(policy: str, site: str | None = None) -> str:
    """The target path of a policy, of the fleet's or of a site's own. Raises ``UntrustedBytes``."""
    folder = "policies/" if site is None else folder_of(site_role(site))
    return check_target_path(f"{folder}{check_name(policy, 'policy')}.toml")


def halt_path(halt: str) -> str:
    return check_target_path(f"halts/{check_name(halt, 'halt')}.toml")


def release_path(release: str, version: str, team: str | None = None) -> str:
    """The target path of a release's manifest; ``@`` separates, so neither name may hold one. Raises ``UntrustedBytes``."""
    for what, text in (("release", release), ("version", version)):
        check_name(text, what)
        if "@" in text:
            raise UntrustedBytes(f"{what} {text!r} may not hold '@'")
    folder = f"releases/{FLEET_TEAM}/" if team is None else folder_of(team_role(team))
    return check_target_path(f"{folder}{release}@{version}.manifest")


def release_places(releases: Iterable[str]) -> dict[tuple[str, str], tuple[str, ...]]:
    """Where each release is listed, by name and version: at the fleet's own place, else at those of the teams.

    More than one place: nobody can choose.
    """
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for path in sorted(releases):
        folder, _, name = path.rpartition("/")
        release, at, version = name.removesuffix(".manifest").partition("@")
        if not at or not name.endswith(".manifest"):
            continue
        own = f"releases/{FLEET_TEAM}"
        before = found.get((release, version), ())
        if folder == own:
            found[release, version] = (path,)
        elif not any(one.startswith(f"{own}/") for one in before):
            found[release, version] = (*before, path)
    return found


def site_root_path(site: str) -> str:
    """Where the fleet lists the root of the repository with which ``site`` acts alone."""
    return check_target_path(f"sites/{check_name(site, 'site')}/root.json")


def check_target_path(path: str) -> str:
    """Return ``path`` if it is a safe TUF target path, else raise ``UntrustedBytes``.

    One to five parts of letters, digits and ``. _ + ~ : = @ -`` that start with a letter or digit, no ``..`` anywhere.
    """
    parts = path.split("/")
    if (
        len(path) > TARGET_PATH_LENGTH_MAX
        or len(parts) > 5
        or ".." in path
        or not all(_PART.fullmatch(part) for part in parts)
    ):
        raise UntrustedBytes(f"{path[:80]!r} is not a target path of this product")
    return path


def target_size_bytes_max(path: str) -> int:
    """The largest target that is read at ``path``."""
    if path == DENY:
        return DENY_SIZE_BYTES_MAX
    return MANIFEST_SIZE_BYTES_MAX if path.endswith(".manifest") else DOCUMENT_SIZE_BYTES_MAX


def target_file(path: str, sha256: str) -> str:
    """Where the tree keeps the target ``path`` with this hash: ``targets/<folder>/<sha256>.<name>``."""
    folder, slash, name = path.rpartition("/")
    return f"targets/{folder}{slash}{sha256}.{name}"


def check_tree_path(path: str) -> str:
    """Return ``path`` if it names a metadata or target file of the tree, else raise ``UntrustedBytes``."""
    if _METADATA.fullmatch(path):
        return path
    match = _TARGET_FILE.fullmatch(path)
    if match is None:
        raise UntrustedBytes(f"{path[:80]!r} is not a file of the tree")
    check_target_path(match[1] + match[3])
    return path


def metadata_version(path: str) -> tuple[str, int] | None:
    """``(role, version)`` of a metadata file's name, version 0 for the timestamp; None for target files.

    The role is a top-level one or a delegated one (``delegation``).
    """
    match = _METADATA.fullmatch(path)
    if match is None:
        return None
    return match[2] or "timestamp", int(match[1] or 0)


def size_bytes_max_of(path: str) -> int:
    """The largest file that is read at a path of the tree (metadata or target)."""
    wanted = metadata_version(path)
    if wanted is None:
        return target_size_bytes_max(path)
    return METADATA_SIZE_BYTES_MAX.get(wanted[0], DELEGATED_SIZE_BYTES_MAX)

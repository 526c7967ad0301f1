"""The root with which a site's own repository begins: made for this site of this fleet, or not believed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]
from tuf.api.metadata import Metadata, Role, Root, TargetFile, Targets  # type: ignore[attr-defined]

from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.trust.index import METADATA_SIZE_BYTES_MAX
from pcm_p2p.trust.lint import DOCUMENTS_BYTES_MAX, FLEET_FIELD, lint_delegated, lint_targets
from pcm_p2p.trust.site_root import SITE_FIELD, decode_site_root_untrusted, is_own_release, repository_id

FLEET = "0" * 32
KEYS = [CryptoSigner.generate_ed25519() for _ in range(2)]
EXPIRES = datetime(2030, 1, 1, tzinfo=UTC)


def root(*, fleet: str = FLEET, site: str = "berlin", said: str = "berlin", threshold: int = 1) -> Metadata[Root]:
    keyids = [key.public_key.keyid for key in KEYS]
    document = Metadata(
        Root(
            version=1,
            expires=EXPIRES,
            keys={key.public_key.keyid: key.public_key for key in KEYS},
            roles={role: Role(keyids, threshold) for role in ("root", "targets", "snapshot", "timestamp")},
            consistent_snapshot=True,
            unrecognized_fields={FLEET_FIELD: repository_id(fleet, site), SITE_FIELD: said},
        )
    )
    document.sign(KEYS[0])
    return document


def test_a_root_of_this_site_of_this_fleet_is_believed_also_when_it_has_expired() -> None:
    """A device that was away for years begins with it all the same: its metadata say how fresh they are."""
    document = root()
    document.signed.expires -= timedelta(days=10_000)
    document.signatures.clear()
    document.sign(KEYS[0])
    assert decode_site_root_untrusted(document.to_bytes(), FLEET, "berlin").signed.version == 1


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (root(site="paris", said="paris"), "not of fleet"),
        (root(site="paris"), "not of fleet"),
        (root(said="paris"), "does not name the site"),
        (root(fleet="1" * 32), "not of fleet"),
        (root(threshold=2), "signed by 1/2 keys"),
        (Metadata(Targets(version=1, expires=EXPIRES)), "is a targets document"),
    ],
    ids=[
        "another site",
        "another site by another name",
        "another name",
        "another fleet",
        "too few signatures",
        "targets",
    ],
)
def test_any_other_root_is_refused_with_the_reason(document: Metadata[Root], reason: str) -> None:
    with pytest.raises(UntrustedBytes, match="root of site berlin") as caught:
        decode_site_root_untrusted(document.to_bytes(), FLEET, "berlin")
    assert reason in caught.value.message


def test_a_root_of_a_fleet_is_no_root_of_a_site_though_its_keys_are_the_same() -> None:
    document = root()
    document.signed.unrecognized_fields[FLEET_FIELD] = FLEET
    document.signatures.clear()
    document.sign(KEYS[0])
    with pytest.raises(UntrustedBytes, match="root is of 00000000, not of fleet"):
        decode_site_root_untrusted(document.to_bytes(), FLEET, "berlin")


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[" * 9_000, b"\xff", b"null", b" " * (METADATA_SIZE_BYTES_MAX["root"] + 1)]
)
def test_junk_is_refused(data: bytes) -> None:
    with pytest.raises(UntrustedBytes):
        decode_site_root_untrusted(data, FLEET, "berlin")


@given(at=st.integers(0, 3_000), byte=st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_a_root_with_any_byte_changed_is_refused_or_says_the_same(at: int, byte: int) -> None:
    data = bytearray(root().to_bytes())
    data[at % len(data)] = byte
    try:
        read = decode_site_root_untrusted(bytes(data), FLEET, "berlin")
    except UntrustedBytes:
        return
    assert read.signed_bytes == root().signed_bytes


def test_names_of_repositories_differ_by_fleet_and_by_site_and_not_by_where_one_ends() -> None:
    names = [repository_id(fleet, site) for fleet in (FLEET, "1" * 32) for site in ("a", "ab", "b")]
    assert len(set(names)) == len(names)
    assert all(len(name) == 32 and set(name) <= set("0123456789abcdef") for name in names)


@pytest.mark.parametrize(
    ("release", "own"), [("berlin-x", True), ("berlin", False), ("berlinx", False), ("x-berlin-", False)]
)
def test_a_sites_own_releases_begin_with_its_name(release: str, own: bool) -> None:
    assert is_own_release("berlin", release) is own


@pytest.mark.parametrize("role", ["targets", "site-berlin"])
def test_documents_of_one_signer_have_a_bound_all_together(role: str) -> None:
    folder = "policies/" if role == "targets" else "policies/berlin/"
    many = {
        f"{folder}p{number}.toml": TargetFile(1 << 20, {"sha256": "0" * 64}, f"{folder}p{number}.toml")
        for number in range(1 + (DOCUMENTS_BYTES_MAX >> 20))
    }
    targets = Targets(version=1, expires=EXPIRES, targets=many)

    def complaints() -> tuple[str, ...]:
        return lint_targets(targets) if role == "targets" else lint_delegated(targets, role)

    assert any("together" in complaint for complaint in complaints())
    many.popitem()
    assert not complaints()

"""Identity: who passes for a member, over real TLS, and who does not."""

from __future__ import annotations

import ssl
import stat
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.bindings import crypto_core_ed25519_is_valid_point

from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.compliance.record import covered
from pcm_p2p.errors import InputError, TrustError, UntrustedBytes
from pcm_p2p.ids import DeviceId
from pcm_p2p.trust.certificate import CERTIFICATE_SIZE_BYTES_MAX, authority_certificate, is_held_by_nobody
from pcm_p2p.trust.identity import (
    DeviceIdentity,
    authorities_untrusted,
    client_context,
    load_or_create_key,
    peer_identity_untrusted,
    separated,
    server_context,
    verified_identity_untrusted,
    verify,
)

FLEET = "ab" * 16
NOW = datetime.now(UTC).replace(microsecond=0)
"""TLS reads the machine's clock, therefore these tests do; they look at days."""


@pytest.fixture
def authority() -> FleetCA:
    return FleetCA.in_memory(FLEET, now=NOW)


@pytest.fixture
def server(authority: FleetCA, tmp_path: Path) -> DeviceIdentity:
    return DeviceIdentity.create(tmp_path / "server", authority, now=NOW)


@dataclass
class Handshake:
    """``said`` is what the client read after it; "" if the server did not take it. ``error`` is the server's reason."""

    said: bytes = b""
    error: str = ""
    peer: bytes | None = None


async def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> Handshake:
    """One connection over loopback; a server that is content says "welcome"."""
    result = Handshake()

    async def serve(tcp: trio.SocketStream) -> None:
        stream = trio.SSLStream(tcp, server, server_side=True, https_compatible=True)
        try:
            await stream.do_handshake()
            result.peer = stream.getpeercert(binary_form=True)
            await stream.send_all(b"welcome")
        except trio.BrokenResourceError as error:
            result.error = str(error.__cause__)
        await trio.aclose_forcefully(stream)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            listeners: list[trio.SocketListener] = await nursery.start(trio.serve_tcp, serve, 0)
            port = listeners[0].socket.getsockname()[1]
            stream = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", port), client, https_compatible=True)
            try:
                result.said = bytes(await stream.receive_some(100))
            except trio.BrokenResourceError as error:
                result.error = result.error or str(error.__cause__)
            await trio.aclose_forcefully(stream)
            nursery.cancel_scope.cancel()
    return result


async def test_two_members_recognise_each_other(server: DeviceIdentity, authority: FleetCA, tmp_path: Path) -> None:
    client = DeviceIdentity.create(tmp_path / "client", authority, "relay", now=NOW)
    met = await shake_hands(server_context(server), client_context(client))
    assert met.said == b"welcome", met.error
    assert met.peer is not None
    peer = peer_identity_untrusted(met.peer)
    assert (peer.device_id, peer.role, peer.fleet) == (client.device_id, "relay", FLEET)
    assert peer.device_id == DeviceId.of_public_key(client.public_key)


async def test_a_client_of_a_foreign_authority_with_the_same_name_is_refused(
    server: DeviceIdentity, tmp_path: Path
) -> None:
    stranger = DeviceIdentity.create(tmp_path / "stranger", FleetCA.in_memory(FLEET, now=NOW), now=NOW)
    context = client_context(stranger)
    context.verify_mode = ssl.CERT_NONE  # the stranger does not care who answers
    met = await shake_hands(server_context(server), context)
    assert met.said == b""
    assert "verify failed" in met.error


async def test_a_server_of_a_foreign_authority_with_the_same_name_is_refused(
    server: DeviceIdentity, tmp_path: Path
) -> None:
    stranger = DeviceIdentity.create(tmp_path / "stranger", FleetCA.in_memory(FLEET, now=NOW), now=NOW)
    context = server_context(stranger)
    context.verify_mode = ssl.CERT_NONE
    assert (await shake_hands(context, client_context(server))).said == b""


async def test_a_client_without_a_certificate_is_refused(server: DeviceIdentity) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    met = await shake_hands(server_context(server), context)
    assert met.said == b""
    assert "CERTIFICATE" in met.error.upper()


async def test_a_client_whose_certificate_expired_is_refused(
    server: DeviceIdentity, authority: FleetCA, tmp_path: Path
) -> None:
    late = DeviceIdentity.create(tmp_path / "late", authority, now=NOW - timedelta(days=366), days=365)
    met = await shake_hands(server_context(server), client_context(late))
    assert met.said == b""
    assert "expired" in met.error


async def test_a_client_that_offers_tls_1_2_at_most_is_refused(
    server: DeviceIdentity, authority: FleetCA, tmp_path: Path
) -> None:
    old = client_context(DeviceIdentity.create(tmp_path / "old", authority, now=NOW))
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    met = await shake_hands(server_context(server), old)
    assert met.said == b""
    assert "protocol" in met.error.lower() or "version" in met.error.lower()


async def test_a_member_that_signs_certificates_itself_brings_nobody_in(
    server: DeviceIdentity, authority: FleetCA, tmp_path: Path
) -> None:
    member = DeviceIdentity.create(tmp_path / "member", authority, now=NOW)
    friend = Ed25519PrivateKey.generate()
    own = x509.load_der_x509_certificate(member.certificate_der)
    forged = FleetCA(load_or_create_key(member.folder), authority_certificate(friend, FLEET, NOW, 10))
    forged._certificate = own
    made = forged.issue(friend.public_key().public_bytes_raw(), "device", now=NOW)
    with pytest.raises(UntrustedBytes, match="not issued"):
        verified_identity_untrusted(made, authority.pem, fleet=FLEET)
    with pytest.raises(UntrustedBytes, match="not issued"):
        verified_identity_untrusted(made, server.authorities_pem, fleet=FLEET)


def test_an_expired_certificate_still_says_who_signed_and_is_refused_where_time_counts(authority: FleetCA) -> None:
    key = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    der = authority.issue(key, "device", now=NOW - timedelta(days=400))
    assert verified_identity_untrusted(der, authority.pem, fleet=FLEET).public_key == key
    with pytest.raises(UntrustedBytes, match="valid from"):
        verified_identity_untrusted(der, authority.pem, fleet=FLEET, at=NOW)
    assert verified_identity_untrusted(der, authority.pem, fleet=FLEET, at=NOW - timedelta(days=100))


def test_a_certificate_of_another_fleet_is_refused_even_from_a_known_authority(authority: FleetCA) -> None:
    der = authority.issue(Ed25519PrivateKey.generate().public_key().public_bytes_raw(), "device", now=NOW)
    with pytest.raises(UntrustedBytes, match="another fleet"):
        verified_identity_untrusted(der, authority.pem, fleet="cd" * 16)


def test_any_of_several_authorities_counts(authority: FleetCA) -> None:
    der = authority.issue(Ed25519PrivateKey.generate().public_key().public_bytes_raw(), "device", now=NOW)
    both = FleetCA.in_memory(FLEET, now=NOW).pem + authority.pem
    assert verified_identity_untrusted(der, both, fleet=FLEET).fleet == FLEET


def test_a_certificate_never_outlives_its_authority() -> None:
    short = FleetCA.in_memory(FLEET, now=NOW, days=30)
    der = short.issue(Ed25519PrivateKey.generate().public_key().public_bytes_raw(), "device", now=NOW)
    assert peer_identity_untrusted(der).not_after == NOW + timedelta(days=30)


@pytest.mark.parametrize("site", ["", "berlin", "Berlin.2~x=y", "a" * 128])
def test_a_certificate_says_the_site_of_its_holder_where_it_has_one(authority: FleetCA, site: str) -> None:
    der = authority.issue(Ed25519PrivateKey.generate().public_key().public_bytes_raw(), "device", now=NOW, site=site)
    assert verified_identity_untrusted(der, authority.pem, fleet=FLEET).site == site


@pytest.mark.parametrize("site", ["a/b", "..", "b\n", " ", "ü", "a" * 129])
def test_a_site_that_there_cannot_be_is_not_certified(authority: FleetCA, site: str) -> None:
    key = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    with pytest.raises(InputError, match="cannot be certified"):
        authority.issue(key, "device", now=NOW, site=site)


@pytest.mark.parametrize("role", ["", "root", "device/x", "Device", "ca"])
def test_a_role_that_there_is_not_cannot_be_certified(authority: FleetCA, role: str) -> None:
    with pytest.raises(InputError):
        authority.issue(bytes(32), role, now=NOW)


def certificate_with(authority: FleetCA, names: list[x509.GeneralName] | None, key: object | None = None) -> bytes:
    public_key = key or Ed25519PrivateKey.generate().public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority._certificate.subject)
        .public_key(public_key)  # type: ignore[arg-type]
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(authority._private_key, None).public_bytes(Encoding.DER)


def uri(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(text)


GOOD_NAME = f"spiffe://{FLEET}/device/{'00' * 16}"


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (None, "certificate"),
        ([], "exactly one name"),
        ([uri(GOOD_NAME)], "another key"),
        ([uri(GOOD_NAME), uri(GOOD_NAME)], "exactly one name"),
        ([x509.DNSName("device.example")], "a URI"),
        ([uri(f"spiffe://{FLEET}/root/{'00' * 16}")], "not the name of a member"),
        ([uri(GOOD_NAME + "/x/y")], "not the name of a member"),
        ([uri("spiffe://fleet/device/1")], "not the name of a member"),
    ],
    ids=["none", "empty", "of-another-key", "two", "dns", "role", "longer", "other"],
)
def test_a_name_that_is_not_the_keys_own_is_refused(
    authority: FleetCA, names: list[x509.GeneralName] | None, reason: str
) -> None:
    with pytest.raises(UntrustedBytes, match=reason):
        peer_identity_untrusted(certificate_with(authority, names))


def test_a_key_of_another_kind_is_refused(authority: FleetCA) -> None:
    key = generate_private_key(SECP256R1()).public_key()
    assert key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(UntrustedBytes, match="not Ed25519"):
        peer_identity_untrusted(certificate_with(authority, [uri(GOOD_NAME)], key))


def test_an_authority_is_not_a_member_and_a_member_not_an_authority(authority: FleetCA) -> None:
    with pytest.raises(UntrustedBytes):
        peer_identity_untrusted(authority.der)
    der = authority.issue(Ed25519PrivateKey.generate().public_key().public_bytes_raw(), "device", now=NOW)
    pem = x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
    with pytest.raises(UntrustedBytes):
        authorities_untrusted(pem)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_noise_for_a_certificate_is_refused_as_untrusted(data: bytes) -> None:
    with pytest.raises(UntrustedBytes):
        peer_identity_untrusted(data)
    with pytest.raises(UntrustedBytes):
        authorities_untrusted(data)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_a_certificate_with_a_bit_turned_anywhere_is_never_taken(authority: FleetCA) -> None:
    der = authority.issue(Ed25519PrivateKey.generate().public_key().public_bytes_raw(), "device", now=NOW)
    rng = Random(3)
    for position in range(len(der)):
        turned = bytearray(der)
        turned[position] ^= 1 << rng.randrange(8)
        with pytest.raises(UntrustedBytes):
            verified_identity_untrusted(bytes(turned), authority.pem, fleet=FLEET)


def test_a_certificate_that_is_too_large_is_not_parsed() -> None:
    with pytest.raises(UntrustedBytes, match="at most"):
        peer_identity_untrusted(bytes(CERTIFICATE_SIZE_BYTES_MAX + 1))


def test_an_identity_that_was_stored_is_the_same_after_a_restart(server: DeviceIdentity) -> None:
    again = DeviceIdentity.load(server.folder)
    assert again.device_id == server.device_id
    assert again.sign(b"d", b"x") == server.sign(b"d", b"x")
    assert stat.S_IMODE((server.folder / "device.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("absent", ["device.key", "device.crt", "ca.crt", "fleet.json"])
def test_an_identity_with_a_part_missing_is_no_identity(server: DeviceIdentity, absent: str) -> None:
    (server.folder / absent).unlink()
    with pytest.raises(TrustError, match="not enrolled") as refused:
        DeviceIdentity.load(server.folder)
    assert "enroll join" in refused.value.remedy


@pytest.mark.parametrize("damaged", ["device.key", "device.crt", "ca.crt", "fleet.json"])
def test_an_identity_with_a_damaged_part_says_which_folder(server: DeviceIdentity, damaged: str) -> None:
    (server.folder / damaged).write_bytes(b"\xff\x00 not this")
    with pytest.raises(TrustError, match=str(server.folder)):
        DeviceIdentity.load(server.folder)


def test_parts_of_two_identities_do_not_make_one(server: DeviceIdentity, authority: FleetCA, tmp_path: Path) -> None:
    other = DeviceIdentity.create(tmp_path / "other", authority, now=NOW)
    (server.folder / "device.crt").write_bytes((other.folder / "device.crt").read_bytes())
    with pytest.raises(TrustError, match="do not belong together"):
        DeviceIdentity.load(server.folder)


def test_the_key_made_first_is_kept(tmp_path: Path) -> None:
    first = load_or_create_key(tmp_path / "identity").private_bytes_raw()
    assert load_or_create_key(tmp_path / "identity").private_bytes_raw() == first


def test_an_identity_prints_no_key(server: DeviceIdentity) -> None:
    assert server._key.private_bytes_raw().hex() not in repr(server)
    assert "Ed25519PrivateKey" not in repr(server)


def test_a_signature_counts_in_its_domain_only(server: DeviceIdentity) -> None:
    signature = server.sign(b"pcm.record/1", b"data")
    assert verify(server.public_key, b"pcm.record/1", b"data", signature)
    for domain, data in [
        (b"pcm.record/", b"1data"),
        (b"pcm.ack/1", b"data"),
        (b"pcm.record/1", b"datb"),
        (b"", b"data"),
    ]:
        assert not verify(server.public_key, domain, data, signature)
    assert not verify(b"short", b"pcm.record/1", b"data", signature)
    assert not verify(server.public_key, b"pcm.record/1", b"data", b"short")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=255), st.binary(max_size=64))
def test_reports_and_identities_agree_on_what_a_signature_covers(domain: bytes, data: bytes) -> None:
    assert separated(domain, data) == covered(domain, data)


def test_an_authority_on_disk_opens_with_its_passphrase_only(tmp_path: Path) -> None:
    made = FleetCA.create(tmp_path / "ca", FLEET, "words", now=NOW, preset="lab")
    opened = FleetCA.load(tmp_path / "ca", "words")
    assert (opened.fleet, opened.der) == (FLEET, made.der)
    with pytest.raises(TrustError, match="passphrase"):
        FleetCA.load(tmp_path / "ca", "other words")
    (tmp_path / "ca" / "ca.pem").write_bytes(FleetCA.in_memory(FLEET, now=NOW).pem)
    with pytest.raises(TrustError, match="do not belong together"):
        FleetCA.load(tmp_path / "ca", "words")


def test_the_keys_that_nobody_can_hold_are_those_of_the_library_of_record() -> None:
    """libsodium refuses the same points, and no others among those that are made."""
    numbers = [0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18]
    known = [number.to_bytes(32, "little") for number in numbers]
    known += [(number | 1 << 255).to_bytes(32, "little") for number in numbers]
    known += [
        bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
        bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    ]
    assert all(is_held_by_nobody(key) and not crypto_core_ed25519_is_valid_point(key) for key in known)
    made = [Ed25519PrivateKey.generate().public_key().public_bytes_raw() for _ in range(50)]
    assert not any(is_held_by_nobody(key) for key in made)
    assert all(crypto_core_ed25519_is_valid_point(key) for key in made)

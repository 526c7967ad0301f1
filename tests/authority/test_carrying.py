"""Propose, carry, sign, merge: over files, between machines that have nothing else in common (research 10.32, 10.33)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from repository_simulator import PASSPHRASE, RepositorySimulator, attempt, put_segment, site_policy, small_manifest
from securesystemslib.signer import CryptoSigner, Signature  # type: ignore[attr-defined]  # exported without __all__
from tuf.api.metadata import Metadata, Root, TargetFile, Targets  # type: ignore[attr-defined]

from pcm_p2p.authority import halting
from pcm_p2p.authority.audit.verification import verify_folder
from pcm_p2p.authority.carry import pin_file
from pcm_p2p.authority.carry.bundle import (
    MAGIC,
    Bundle,
    BundledDocument,
    BundleDocument,
    BundledSegment,
    BundledTarget,
    body_length_untrusted,
    decode_bundle_untrusted,
    encode_bundle,
)
from pcm_p2p.authority.carry.carried_proposal import proposals_in, sign_each, signables_in
from pcm_p2p.authority.carry.carrying import (
    contents_of,
    export_proposal,
    import_proposal,
    merge,
    read_bundle,
    refuse_what_breaks_rules,
    write_signature_file,
)
from pcm_p2p.authority.carry.signature_file import SCHEMA, SignatureFile
from pcm_p2p.authority.document_difference import Contents
from pcm_p2p.authority.keys import keyfile
from pcm_p2p.authority.keys.fingerprint import grouped, owned
from pcm_p2p.authority.keys.public_key import PublicKey
from pcm_p2p.authority.keys.signing_key import open_signing_key
from pcm_p2p.authority.people.changes import change_holders
from pcm_p2p.authority.proposal import Proposal
from pcm_p2p.authority.publish import OnlineKeys, publish
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.errors import InputError, StorageError, TrustError, UntrustedBytes
from pcm_p2p.trust.delegation import HALT
from pcm_p2p.trust.index import ALLOWANCES

OWNERS = ("alice", "bob", "carol")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> RepositorySimulator:
    """Three people of whom two must sign, with one policy published."""
    folder = tmp_path_factory.mktemp("three")
    return RepositorySimulator(folder, owners=OWNERS, root_threshold=2, targets_threshold=2)


@pytest.fixture
def three(first: RepositorySimulator, tmp_path: Path) -> RepositorySimulator:
    return first.copied_to(tmp_path / "three")


@pytest.fixture
def carried(three: RepositorySimulator, tmp_path: Path) -> Path:
    """A proposed policy, in a file."""
    three.fleet.stage_policy("second", b"version = 1\n")
    export_proposal(three.fleet, tmp_path / "friday.proposal")
    return tmp_path / "friday.proposal"


def signed_elsewhere(fleet: RepositorySimulator, file: Path, owner: str, role: str = "targets") -> Path:
    """What a person does on a machine that has the file and the key, and no fleet folder."""
    return signed_with(fleet.key_path(role, owner), file, f"{role}-{owner}")


def signed_with(key_path: Path, file: Path, name: str, *, heedless: bool = False) -> Path:
    """``heedless``: by a tool that judges nothing."""
    bundle = read_bundle(file)
    if not heedless:
        refuse_what_breaks_rules(bundle)
    key = keyfile.load(key_path, PASSPHRASE)
    signatures = sign_each(signables_in(bundle), key.signer(), key.keyid)
    out = file.with_name(f"{name}.sig")
    write_signature_file(out, SignatureFile(SCHEMA, bundle.fleet, signatures))
    return out


def refusals(folder: FleetFolder, *files: Path) -> list[str]:
    return [one.refused for one in merge(folder, files) if one.refused]


# Out, signed, back


@pytest.mark.parametrize("order", [("alice", "bob"), ("bob", "alice")])
def test_signatures_made_elsewhere_are_merged_in_any_order_and_published(
    three: RepositorySimulator, carried: Path, order: tuple[str, str]
) -> None:
    files = [signed_elsewhere(three, carried, owner) for owner in order]
    with pytest.raises(TrustError, match="2 more of alice, bob, carol must sign; signed by nobody yet"):
        three.publish()
    assert refusals(three.fleet, files[0]) == []
    with pytest.raises(TrustError, match=f"1 more of .* must sign; signed by {order[0]}"):
        three.publish()
    assert refusals(three.fleet, files[1]) == []
    three.publish()
    with three.client() as device:
        assert attempt(device, three.source()).kind == "good"
        assert device.view is not None
        assert device.view.read("policies/second.toml") == b"version = 1\n"
    assert verify_folder(three.fleet).verdict.complaints == ()


def test_what_is_shown_elsewhere_is_what_is_shown_here(three: RepositorySimulator, carried: Path) -> None:
    here = [list(one.lines(contents_of(three.fleet), full=True)) for one in three.fleet.proposals()]
    bundle = read_bundle(carried)
    assert [list(one.lines(bundle.content, full=True)) for one in proposals_in(bundle)] == here
    assert "    +version = 1" in here[0]


def test_each_signature_that_cannot_be_merged_is_refused_by_name_and_the_others_are_merged(
    three: RepositorySimulator, carried: Path, tmp_path: Path
) -> None:
    good = signed_elsewhere(three, carried, "alice")
    stranger = keyfile.create(tmp_path / "mallory.key", PASSPHRASE, "targets", "mallory", preset="lab")
    (signable,) = signables_in(read_bundle(carried))
    signature = stranger.signer().sign(signable.document.signed_bytes)
    known = msgspec.json.decode(good.read_bytes(), type=SignatureFile)
    forged = msgspec.structs.replace(
        known.signatures[0], keyid=stranger.keyid, owner="alice", signature=signature.signature
    )
    unknown = tmp_path / "mallory.sig"
    write_signature_file(unknown, SignatureFile(SCHEMA, known.fleet, (forged,)))
    foreign = tmp_path / "foreign.sig"
    write_signature_file(foreign, SignatureFile(SCHEMA, "0" * 32, known.signatures))
    said = refusals(three.fleet, unknown, foreign, good, good)
    assert [why.split(":")[0] for why in said] == [
        f"alice's signature on targets 2 is by the key {grouped(stranger.keyid[:16])} …, which has no part in targets",
        f"alice's signature is for fleet 00000000, and this is fleet {three.fleet.fleet_id[:8]}",
    ]
    assert three.fleet.proposals()[0].signatures[0].have == ("alice",)


def test_a_signature_over_what_was_proposed_before_is_refused(three: RepositorySimulator, carried: Path) -> None:
    file = signed_elsewhere(three, carried, "alice")
    three.fleet.stage_policy("third", b"version = 1\n")
    (why,) = refusals(three.fleet, file)
    assert why.startswith("alice's signature is over other bytes of targets 2: digest ")
    now = three.folder / "now.proposal"
    export_proposal(three.fleet, now)
    (once,) = merge(three.fleet, [(taken := signed_elsewhere(three, now, "alice"))])
    assert not once.there
    three.sign()
    three.publish()
    (again,) = merge(three.fleet, [taken])
    assert (again.there, again.refused) == (True, ""), "merged and published since"
    (why,) = refusals(three.fleet, file)
    assert why == "alice's signature is for targets 2, and no targets is proposed; targets 2 is published"
    three.fleet.stage_policy("fourth", b"version = 1\n")
    (why,) = refusals(three.fleet, file)
    assert why == "alice's signature is for targets 2 and outdated: what is proposed is targets 3"


def test_a_file_that_is_no_signature_file_merges_nothing(three: RepositorySimulator, carried: Path) -> None:
    good = signed_elsewhere(three, carried, "alice")
    with pytest.raises(InputError, match=r"friday.proposal: signature file"):
        merge(three.fleet, [good, carried])
    assert three.fleet.proposals()[0].signatures[0].have == ()


def test_a_new_root_signed_only_by_new_or_only_by_old_keys_says_how_many_are_missing(
    three: RepositorySimulator, tmp_path: Path
) -> None:
    new = {
        name: keyfile.create(tmp_path / f"{name}.key", PASSPHRASE, "root", name, preset="lab") for name in OWNERS[:2]
    }
    change_holders(three.fleet, [("root", lambda holders: holders.replaced("alice", new["alice"].key))])
    change_holders(three.fleet, [("root", lambda holders: holders.replaced("bob", new["bob"].key))])
    file = tmp_path / "root.proposal"
    export_proposal(three.fleet, file)
    by_new = [signed_with(new[name].path, file, f"new-{name}") for name in new]
    by_old = [signed_elsewhere(three, file, name, "root") for name in new]
    assert refusals(three.fleet, *by_new) == []
    with pytest.raises(TrustError, match="root, old keys: 2 more of alice, bob, carol must sign; signed by nobody yet"):
        three.publish()
    shutil.copytree(three.folder, tmp_path / "again")
    assert refusals(three.fleet, *by_old) == []
    three.sign()
    assert three.publish().versions.root == 2
    (tmp_path / "again" / "fleet" / "proposal" / "root.json").write_bytes(
        Metadata(read_bundle(file).proposed["root"].signed).to_bytes()
    )
    other = three.opened(tmp_path / "again", three.clock)
    assert refusals(other.fleet, *by_old) == []
    with pytest.raises(TrustError, match="root, new keys: 2 more of alice, bob, carol must sign; signed by nobody yet"):
        other.publish()


def test_what_is_changed_while_a_person_reads_is_not_signed(three: RepositorySimulator) -> None:
    three.fleet.stage_policy("second", b"version = 1\n")
    shown = [one.sha256 for one in three.fleet.proposals()]
    three.fleet.stage_policy("third", b"version = 1\n")
    with pytest.raises(TrustError, match="what is proposed was changed while you read it"):
        three.fleet.sign(three.key_path("targets", "alice"), PASSPHRASE, shown=shown)
    assert three.fleet.proposals()[0].signatures[0].have == ()
    three.fleet.sign(three.key_path("targets", "alice"), PASSPHRASE, shown=[three.fleet.proposals()[0].sha256])


def test_a_site_policy_that_devices_would_set_aside_is_not_published_though_it_was_signed_elsewhere(
    three: RepositorySimulator, tmp_path: Path
) -> None:
    key = keyfile.create(tmp_path / "dave.key", PASSPHRASE, "site-hq", "dave", preset="lab")
    three.fleet.delegate("site-hq", [key.key], 1)
    three.sign("alice", "bob")
    three.publish()
    three.fleet.stage_policy(
        "local", b'schema = "pcm.policy/1"\nid = "local"\nversion = 1\nmode = "observe"\n', "site-hq"
    )
    export_proposal(three.fleet, tmp_path / "site.proposal")
    with pytest.raises(
        TrustError, match="refused to go on: policy local of site hq: the fleet has signed no allowances"
    ):
        signed_with(key.path, tmp_path / "site.proposal", "dave")
    assert refusals(three.fleet, signed_with(key.path, tmp_path / "site.proposal", "dave", heedless=True)) == []
    with pytest.raises(
        TrustError, match="refused to publish: policy local of site hq: the fleet has signed no allowances"
    ):
        three.publish()


ALLOWED = b'schema = "pcm.allowances/1"\n[default]\nmodes = ["observe"]\n'
STRICT = b'schema = "pcm.policy/1"\nid = "strict"\nversion = 1\n[transfer]\nwan_in_bytes_per_s = 1000\n'


def test_whoever_signs_for_a_site_elsewhere_has_it_judged_by_what_the_fleet_signed(
    three: RepositorySimulator, tmp_path: Path
) -> None:
    key = keyfile.create(tmp_path / "dave.key", PASSPHRASE, "site-hq", "dave", preset="lab")
    three.fleet.delegate("site-hq", [key.key], 1)
    three.fleet.stage_file(ALLOWANCES, ALLOWED)
    three.fleet.stage_policy("strict", STRICT)
    three.sign("alice", "bob")
    three.publish()
    three.fleet.stage_policy("local", site_policy("hq", "local"), "site-hq")
    file = tmp_path / "site.proposal"
    export_proposal(three.fleet, file)
    assert refusals(three.fleet, signed_with(key.path, file, "dave")) == []
    three.publish()
    enforcing = site_policy("hq", "more") + b'mode = "enforce"\n'
    three.fleet.stage_policy("more", enforcing, "site-hq")
    export_proposal(three.fleet, file)
    with pytest.raises(TrustError, match=r"policy hq-more of site hq: .*enforce"):
        signed_with(key.path, file, "dave")
    document = document_in(file)
    for path in (ALLOWANCES, "policies/strict.toml", "policies/hq/local.toml"):
        left = tuple(target for target in document.targets if target.path != path)
        assert len(left) == len(document.targets) - 1
        with pytest.raises(UntrustedBytes, match=f"the content of {path} is missing"):
            decoded(msgspec.structs.replace(document, targets=left))
    wide = tuple(
        BundledTarget(one.path, b"[default]\n" if one.path == ALLOWANCES else one.data) for one in document.targets
    )
    with pytest.raises(UntrustedBytes, match=f"the content of {ALLOWANCES} is not what is signed"):
        decoded(msgspec.structs.replace(document, targets=wide))


def said_in(proposals: Iterable[Proposal], contents: Contents) -> list[str]:
    return [line.strip() for one in proposals for line in one.lines(contents) if "halt " in line]


def test_whoever_lifts_a_halt_elsewhere_reads_what_is_lifted_and_not_its_id(
    three: RepositorySimulator, tmp_path: Path
) -> None:
    file, key = tmp_path / "lift.proposal", open_signing_key(three.key_path("root", "carol"), PASSPHRASE)
    first = halting.order(three.fleet, key, reason="breaks VPN").halt
    publish(three.fleet, three.origin, three.keys, only=[HALT])
    halting.lift(three.fleet, [first.id])
    sentence = (
        f"+ lifts halt {first.id[:8]} of everything, ordered by carol, {first.since:%Y-%m-%d %H:%M} UTC: breaks VPN"
    )
    assert said_in(three.fleet.proposals(), contents_of(three.fleet)) == [sentence]
    export_proposal(three.fleet, file, only=["targets"])
    bundle, document = read_bundle(file), document_in(file)
    assert said_in(proposals_in(bundle), bundle.content) == [sentence]
    assert refusals(three.fleet, *(signed_elsewhere(three, file, one) for one in ("alice", "bob"))) == []

    # What a carrier takes away, exchanges or invents is not believed.
    path = f"halts/{first.id}.toml"
    without_halt = tuple(one for one in document.targets if one.path != path)
    with pytest.raises(UntrustedBytes, match=f"the content of {path} is missing"):
        decoded(msgspec.structs.replace(document, targets=without_halt))
    milder = BundledTarget(path, msgspec.structs.replace(first, reason="by mistake").encoded())
    with pytest.raises(UntrustedBytes, match=f"the content of {path} is not what is signed"):
        decoded(msgspec.structs.replace(document, targets=(*without_halt, milder)))
    without_list = tuple(one for one in document.published if one.role != HALT)
    assert len(without_list) == len(document.published) - 1
    with pytest.raises(UntrustedBytes, match=f"the content of {path} is not what is signed"):
        decoded(msgspec.structs.replace(document, published=without_list))
    bare = decoded(msgspec.structs.replace(document, published=without_list, targets=without_halt))
    assert said_in(proposals_in(bare), bare.content) == [f"+ lifts halt {first.id}, which this file does not carry"]
    three.publish()
    assert halting.standings(three.fleet)[0].state == "lifted"


def test_a_halt_that_its_authors_key_outlives_is_confirmed_in_words(three: RepositorySimulator, tmp_path: Path) -> None:
    halt = halting.order(three.fleet, open_signing_key(three.key_path("root", "carol"), PASSPHRASE), reason="wait").halt
    publish(three.fleet, three.origin, three.keys, only=[HALT])
    change_holders(three.fleet, [(role, lambda one: one.without("carol")) for role in ("root", "targets")])
    export_proposal(three.fleet, tmp_path / "leaves.proposal")
    bundle = read_bundle(tmp_path / "leaves.proposal")
    here = said_in(three.fleet.proposals(), contents_of(three.fleet))
    assert here == said_in(proposals_in(bundle), bundle.content)
    assert f"+ confirms for the whole fleet halt {halt.id[:8]} of everything, ordered by carol, " in " ".join(here)


def test_two_targets_with_the_same_content_both_arrive(
    three: RepositorySimulator, copy: RepositorySimulator, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        three.fleet.stage_policy(name, b"version = 1\n")
    three.sign("alice", "bob")
    export_proposal(three.fleet, tmp_path / "file")
    import_proposal(copy.fleet, tmp_path / "file")
    copy.publish()
    assert {
        path for path in copy.tree() if path.startswith("targets/policies/") and path.endswith(("one.toml", "two.toml"))
    }


# What a carrier could do to the file


def document_in(file: Path) -> BundleDocument:
    body = file.read_bytes()[len(MAGIC) + 8 :]
    return msgspec.msgpack.decode(body, type=BundleDocument)


def decoded(document: BundleDocument) -> Bundle:
    return decode_bundle_untrusted(encode_bundle(document)[len(MAGIC) + 8 :])


def without_signatures(data: bytes) -> bytes:
    document = Metadata[Any].from_bytes(data)
    document.signatures.clear()
    return document.to_bytes()


def with_version(data: bytes, version: int) -> bytes:
    document = Metadata[Any].from_bytes(data)
    document.signed.version = version
    return document.to_bytes()


Attack = Callable[[BundleDocument], BundleDocument]


@pytest.mark.parametrize(
    ("attack", "why"),
    [
        (
            lambda one: {"targets": (BundledTarget(one.targets[0].path, b"other"), *one.targets[1:])},
            "is not what is signed",
        ),
        (lambda one: {"targets": one.targets[1:]}, "is missing, so that it cannot be shown"),
        (
            lambda one: {"targets": (*one.targets, BundledTarget("policies/x.toml", b""))},
            "x.toml is not what is signed",
        ),
        (lambda one: {"targets": (BundledTarget("../x", b""),)}, "is not a target path"),
        (lambda one: {"fleet": "0" * 32}, "not of fleet 00000000"),
        (lambda one: {"roots": ()}, "cannot be judged"),
        (lambda one: {"roots": (one.roots[0], one.roots[0])}, "root 1 stands where root 2 belongs"),
        (lambda one: {"roots": (without_signatures(one.roots[0]),)}, "root 1 is not signed by who may"),
        (
            lambda one: {"published": (BundledDocument("targets", without_signatures(one.published[0].data)),)},
            "targets 1 is not signed by who may",
        ),
        (lambda one: {"published": (one.published[0], one.published[0])}, "two published documents for targets"),
        (lambda one: {"published": (BundledDocument("root", one.roots[0]),)}, "belongs into the chain of roots"),
        (
            lambda one: {"proposed": (BundledDocument("targets", with_version(one.proposed[0].data, 9)),)},
            "targets 9 does not follow the published version 1",
        ),
        (
            lambda one: {"proposed": (BundledDocument("root", one.proposed[0].data),)},
            "what is called root is a targets",
        ),
        (lambda one: {"proposed": (BundledDocument("targets", b"{}"),)}, "targets cannot be read"),
        (lambda one: {"segments": (BundledSegment(b"x" * 32, 1),)}, "a blob belongs to no release in it"),
    ],
)
def test_what_a_carrier_alters_is_refused(carried: Path, attack: Callable[[BundleDocument], Any], why: str) -> None:
    document = document_in(carried)
    with pytest.raises(UntrustedBytes, match=why):
        decoded(msgspec.structs.replace(document, **attack(document)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_altered_byte_gives_the_one_error_or_a_proposal_whose_contents_are_what_is_signed(
    carried: Path, data: st.DataObject
) -> None:
    body = bytearray(carried.read_bytes()[len(MAGIC) + 8 :])
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        bundle = decode_bundle_untrusted(bytes(body))
    except UntrustedBytes:
        return
    for proposal in proposals_in(bundle):
        assert not any("not at hand" in line for line in proposal.lines(bundle.content, full=True))


@pytest.mark.parametrize("head", [b"", MAGIC, b"PK\x03\x04" + bytes(30), MAGIC + b"\xff" * 8])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, head: bytes) -> None:
    with pytest.raises(UntrustedBytes):
        body_length_untrusted(head)
    (tmp_path / "x").write_bytes(head)
    with pytest.raises(TrustError, match="export"):
        raise_with_remedy(lambda: read_bundle(tmp_path / "x"))


def raise_with_remedy(work: Callable[[], object]) -> None:
    try:
        work()
    except TrustError as error:
        raise TrustError(f"{error.message} {error.remedy}") from None


def test_a_file_that_was_cut_off_is_refused(carried: Path) -> None:
    carried.write_bytes(carried.read_bytes()[:-1])
    with pytest.raises(TrustError, match="proposal"):
        read_bundle(carried)


def test_a_proposal_that_breaks_a_rule_is_not_signed_elsewhere(carried: Path) -> None:
    document = document_in(carried)
    proposed = Metadata[Targets].from_bytes(document.proposed[0].data)
    info = proposed.signed.targets["policies/second.toml"]
    info.hashes["md5"] = "0" * 32
    bundle = decoded(msgspec.structs.replace(document, proposed=(BundledDocument("targets", proposed.to_bytes()),)))
    with pytest.raises(TrustError, match="must be named by SHA-256 alone"):
        refuse_what_breaks_rules(bundle)


def test_the_first_root_of_people_on_machines_of_their_own_is_carried_signed_and_merged(tmp_path: Path) -> None:
    keys = {
        (role, owner): keyfile.create(tmp_path / f"{role}-{owner}.key", PASSPHRASE, role, owner, preset="lab")
        for role in ("root", "targets")
        for owner in ("ann", "ben")
    }
    public = {place: PublicKey(key.role, key.owner, key.key) for place, key in keys.items()}
    folder = FleetFolder.init(
        tmp_path / "fleet",
        name="new",
        passphrase=PASSPHRASE,
        owners=(),
        root_keys=tuple(key for (role, _), key in public.items() if role == "root"),
        targets_keys=tuple(key for (role, _), key in public.items() if role == "targets"),
        root_threshold=2,
        preset="lab",
    )
    file = tmp_path / "first.proposal"
    bundle = export_proposal(folder, file)
    assert (bundle.root, sorted(bundle.proposed)) == (None, ["root", "targets"])
    assert pin_file.check(tmp_path / "pin", bundle) == ("fleet 'new' is new to this machine, and has no root yet",)
    files = [signed_with(key.path, file, f"{role}-{owner}") for (role, owner), key in keys.items()]
    assert refusals(folder, *files) == []
    assert all(one.complete for one in folder.proposals())
    publish(folder, tmp_path / "origin", OnlineKeys.open(folder, PASSPHRASE))
    assert verify_folder(folder).verdict.complaints == ()


def test_nothing_is_signed_elsewhere_that_was_not_shown(three: RepositorySimulator, tmp_path: Path) -> None:
    """A document of a role whose delegation is to go in the same file: its old key could sign it, so it is shown."""
    key = keyfile.create(tmp_path / "dave.key", PASSPHRASE, "site-hq", "dave", preset="lab")
    three.fleet.delegate("site-hq", [key.key], 1)
    three.sign("alice", "bob")
    three.publish()
    three.fleet.stage_policy("local", b"version = 1\n", "site-hq")
    with_site = export_proposal(three.fleet, tmp_path / "site")
    three.fleet.discard()
    three.fleet.revoke("site-hq")
    without = export_proposal(three.fleet, tmp_path / "revoked")
    both = msgspec.structs.replace(
        document_in(tmp_path / "site"),
        proposed=(*document_in(tmp_path / "site").proposed, *document_in(tmp_path / "revoked").proposed),
        targets=tuple(
            BundledTarget(path, data)
            for bundle in (with_site, without)
            for digest, data in bundle.contents.items()
            for path in bundle.paths[digest]
            if path != "policies/first.toml"  # nothing of a site is judged by it where the delegation goes
        ),
    )
    bundle = decoded(both)
    signed = {one.role for one in sign_each(signables_in(bundle), key.signer(), key.keyid)}
    assert signed == {"site-hq"}
    assert signed <= {one.role for one in proposals_in(bundle)}


# What the signer's machine remembers


@pytest.fixture
def remembered(tmp_path: Path, carried: Path) -> Path:
    bundle = read_bundle(carried)
    (remark,) = pin_file.check(tmp_path / "key.pin", bundle)
    assert "is new to this machine; compare the digest of its root 1" in remark
    pin_file.remember(tmp_path / "key.pin", bundle, ())
    assert pin_file.check(tmp_path / "key.pin", bundle) == ()
    return tmp_path / "key.pin"


def test_a_known_fleet_is_followed_over_new_roots(three: RepositorySimulator, remembered: Path, tmp_path: Path) -> None:
    def edit(root: Root) -> None:
        root.roles["root"].threshold = 3

    three.fleet.discard()
    three.publish_root(edit)
    three.fleet.stage_policy("third", b"version = 1\n")
    newer = export_proposal(three.fleet, tmp_path / "newer")
    assert pin_file.check(remembered, newer) == ()
    pin_file.remember(remembered, newer, ())


def test_an_older_root_is_refused_once_a_newer_one_was_seen(
    three: RepositorySimulator, remembered: Path, carried: Path, tmp_path: Path
) -> None:
    older = read_bundle(carried)
    three.fleet.discard()
    three.publish_root(lambda root: None)
    three.fleet.stage_policy("third", b"version = 1\n")
    pin_file.remember(remembered, export_proposal(three.fleet, tmp_path / "newer"), ())
    with pytest.raises(TrustError, match="builds on root 1, and this machine has seen root 2"):
        pin_file.check(remembered, older)


def test_another_fleet_under_the_known_id_or_name_is_noticed(
    three: RepositorySimulator, remembered: Path, tmp_path: Path
) -> None:
    other = RepositorySimulator(tmp_path / "other")
    other.fleet.stage_policy("evil", b"version = 1\n")
    bundle = export_proposal(other.fleet, tmp_path / "evil")
    remarks = pin_file.check(remembered, bundle)
    assert remarks[0] == f"ANOTHER FLEET called 'Simulated' is known here, with the id {three.fleet.fleet_id}"
    # With the id of the known one, but keys of its own: a root that does not follow.
    facts = (
        (other.fleet.path / "fleet.json")
        .read_bytes()
        .replace(other.fleet.fleet_id.encode(), three.fleet.fleet_id.encode())
    )
    assert three.fleet.fleet_id.encode() in facts
    root = other.fleet.root()
    root.signed.unrecognized_fields["x-pcm-fleet"] = three.fleet.fleet_id
    root.sign(other.signer("root"))
    targets = bundle.published["targets"]
    document = BundleDocument(
        three.fleet.fleet_id,
        "Simulated",
        (root.to_bytes(),),
        (BundledDocument("targets", targets.to_bytes()),),
        (BundledDocument("targets", bundle.proposed["targets"].to_bytes()),),
        tuple(BundledTarget(path, data) for digest, data in bundle.contents.items() for path in bundle.paths[digest]),
    )
    with pytest.raises(TrustError, match="root 1 in the proposal is not the one that this machine has seen"):
        pin_file.check(remembered, decoded(document))


def test_an_older_state_of_the_fleet_is_refused(
    three: RepositorySimulator, remembered: Path, carried: Path, tmp_path: Path
) -> None:
    older = read_bundle(carried)
    three.sign()
    three.publish()
    three.fleet.stage_policy("third", b"version = 1\n")
    pin_file.remember(remembered, export_proposal(three.fleet, tmp_path / "newer"), ())
    with pytest.raises(TrustError, match="compared with targets 1, and this machine has seen targets 2"):
        pin_file.check(remembered, older)
    with pytest.raises(UntrustedBytes, match="targets 2 does not follow the published version 0"):
        decoded(msgspec.structs.replace(document_in(carried), published=()))


def test_signing_two_documents_with_one_version_is_remarked(
    three: RepositorySimulator, remembered: Path, carried: Path, tmp_path: Path
) -> None:
    bundle = read_bundle(carried)
    key = keyfile.load(three.key_path("targets", "alice"), PASSPHRASE)
    pin_file.remember(remembered, bundle, sign_each(signables_in(bundle), key.signer(), key.keyid))
    assert pin_file.check(remembered, bundle) == ()
    three.fleet.stage_policy("third", b"version = 1\n")
    (remark,) = pin_file.check(remembered, export_proposal(three.fleet, tmp_path / "other"))
    assert remark == "this machine signed targets 2 before, with other content: only one of the two can be published"


def test_a_damaged_memory_is_not_taken_for_an_empty_one(remembered: Path, carried: Path) -> None:
    remembered.write_bytes(remembered.read_bytes()[:-20])
    with pytest.raises(TrustError, match="is damaged"):
        pin_file.check(remembered, read_bundle(carried))


# Into another copy of the folder


@pytest.fixture
def copy(first: RepositorySimulator, tmp_path: Path) -> RepositorySimulator:
    return first.copied_to(tmp_path / "copy")


def test_a_proposal_goes_into_another_copy_with_its_documents_blobs_and_signatures(
    three: RepositorySimulator, copy: RepositorySimulator, tmp_path: Path
) -> None:
    manifest, blob = small_manifest()
    three.fleet.stage_release(manifest, put_segment(tmp_path / "segments", manifest, blob))
    three.sign("alice")
    export_proposal(three.fleet, tmp_path / "file", with_segments=True)
    assert import_proposal(copy.fleet, tmp_path / "file") == ("targets",)
    assert copy.fleet.proposals()[0].signatures[0].have == ("alice",)
    assert import_proposal(copy.fleet, tmp_path / "file") == ("targets",), "once more changes nothing"
    copy.sign("carol")
    assert copy.publish().segments_added == 1
    assert verify_folder(copy.fleet).verdict.complaints == ()


def test_an_import_puts_a_blob_right_that_is_here_with_other_bytes(
    three: RepositorySimulator, copy: RepositorySimulator, tmp_path: Path
) -> None:
    manifest, blob = small_manifest()
    three.fleet.stage_release(manifest, put_segment(tmp_path / "segments", manifest, blob))
    three.sign("alice", "carol")
    export_proposal(three.fleet, tmp_path / "file", with_segments=True)
    put_segment(copy.fleet.segments, manifest, b"B" + blob[1:])
    import_proposal(copy.fleet, tmp_path / "file")
    assert copy.publish().segments_added == 1
    name = manifest.segments[0].id.hex()
    assert copy.tree()[f"segments/{name[:2]}/{name}"] == blob


def test_a_proposal_is_not_exported_with_a_blob_that_has_other_bytes(
    three: RepositorySimulator, tmp_path: Path
) -> None:
    manifest, blob = small_manifest()
    three.fleet.stage_release(manifest, put_segment(tmp_path / "segments", manifest, blob))
    put_segment(three.fleet.segments, manifest, b"B" + blob[1:])
    with pytest.raises(StorageError, match="is damaged"):
        export_proposal(three.fleet, tmp_path / "file", with_segments=True)
    assert not (tmp_path / "file").exists()


def test_a_blob_that_was_altered_on_the_way_is_refused(
    three: RepositorySimulator, copy: RepositorySimulator, tmp_path: Path
) -> None:
    manifest, blob = small_manifest()
    three.fleet.stage_release(manifest, put_segment(tmp_path / "segments", manifest, blob))
    export_proposal(three.fleet, tmp_path / "file", with_segments=True)
    data = (tmp_path / "file").read_bytes()
    for altered in (data[:-1], data[:-1] + b"!"):
        (tmp_path / "file").write_bytes(altered)
        with pytest.raises(TrustError, match="a blob is cut off or damaged"):
            import_proposal(copy.fleet, tmp_path / "file")
    assert copy.fleet.proposals() == ()


def test_a_signature_that_does_not_verify_is_left_behind(
    copy: RepositorySimulator, carried: Path, tmp_path: Path
) -> None:
    document = document_in(carried)
    proposed = Metadata[Targets].from_bytes(document.proposed[0].data)
    other = Metadata(Targets(1, expires=proposed.signed.expires))
    signature = other.sign(copy.signer("targets", "alice"))
    proposed.signatures[signature.keyid] = signature
    altered = msgspec.structs.replace(document, proposed=(BundledDocument("targets", proposed.to_bytes()),))
    carried.write_bytes(encode_bundle(altered))
    import_proposal(copy.fleet, carried)
    assert copy.fleet.proposals()[0].signatures[0].have == ()
    assert copy.fleet.proposed("targets").signatures == {}


def test_a_document_that_nobody_may_sign_does_not_come_along_unseen(copy: RepositorySimulator, carried: Path) -> None:
    """It would be what 'site delegate' and the site's first change build on."""
    path, data = "policies/berlin/evil.toml", b"version = 1\n"
    planted = Targets(1, expires=copy.clock().replace(year=2027))
    planted.targets[path] = TargetFile.from_data(path, data, ["sha256"])
    document = document_in(carried)
    altered = msgspec.structs.replace(
        document,
        proposed=(*document.proposed, BundledDocument("site-berlin", Metadata(planted).to_bytes())),
        targets=(*document.targets, BundledTarget(path, data)),
    )
    carried.write_bytes(encode_bundle(altered))
    with pytest.raises(TrustError, match="proposes what nobody is delegated to sign: site-berlin"):
        import_proposal(copy.fleet, carried)
    assert list((copy.fleet.path / "proposal").iterdir()) == []


def respelled(data: bytes) -> bytes:
    document = Metadata[Any].from_bytes(data)
    for keyid, one in document.signatures.items():
        document.signatures[keyid] = Signature(keyid, one.signature.upper())
    return document.to_bytes()


def test_a_signature_that_a_carrier_spelled_anew_is_left_behind_and_the_log_goes_on(
    three: RepositorySimulator, copy: RepositorySimulator, tmp_path: Path
) -> None:
    three.fleet.stage_policy("second", b"version = 1\n")
    three.sign("alice")
    export_proposal(three.fleet, tmp_path / "file")
    document = document_in(tmp_path / "file")
    altered = tuple(BundledDocument(one.role, respelled(one.data)) for one in document.proposed)
    (tmp_path / "file").write_bytes(encode_bundle(msgspec.structs.replace(document, proposed=altered)))
    import_proposal(copy.fleet, tmp_path / "file")
    assert copy.fleet.proposals()[0].signatures[0].have == ()
    copy.sign("bob", "carol")
    copy.publish()
    assert verify_folder(copy.fleet).verdict.complaints == ()


def test_a_key_whose_owner_is_no_name_is_neither_imported_nor_logged(
    three: RepositorySimulator, copy: RepositorySimulator, tmp_path: Path
) -> None:
    mallory = CryptoSigner.generate_ed25519()
    key = owned(mallory.public_key, "m" * 65)
    three.fleet.propose_root(lambda root: None)
    export_proposal(three.fleet, tmp_path / "file")
    document = document_in(tmp_path / "file")
    root = Metadata[Root].from_bytes(next(one.data for one in document.proposed if one.role == "root"))
    root.signed.add_key(key, "root")
    root.sign(mallory)
    altered = msgspec.structs.replace(document, proposed=(BundledDocument("root", root.to_bytes()),), targets=())
    (tmp_path / "file").write_bytes(encode_bundle(altered))
    before = (copy.fleet.path / "audit" / "log.jsonl").read_bytes()
    with pytest.raises(TrustError, match=r"the owner 'm+ … 1 characters more' of the key \w+ cannot be used as a name"):
        import_proposal(copy.fleet, tmp_path / "file")
    assert (copy.fleet.path / "audit" / "log.jsonl").read_bytes() == before


@pytest.mark.parametrize("signature", [7, None, "zz", ["ab"]], ids=repr)
def test_a_signature_that_is_none_is_left_behind(copy: RepositorySimulator, carried: Path, signature: object) -> None:
    document = document_in(carried)
    proposed = json.loads(document.proposed[0].data)
    proposed["signatures"] = [{"keyid": copy.signer("targets", "alice").public_key.keyid, "sig": signature}]
    altered = (BundledDocument("targets", json.dumps(proposed).encode()),)
    carried.write_bytes(encode_bundle(msgspec.structs.replace(document, proposed=altered)))
    import_proposal(copy.fleet, carried)
    assert copy.fleet.proposed("targets").signatures == {}


def test_a_proposal_on_another_base_is_refused(
    three: RepositorySimulator, copy: RepositorySimulator, carried: Path, tmp_path: Path
) -> None:
    copy.publish_policy("elsewhere")
    with pytest.raises(TrustError, match="is outdated: it builds on targets 1, and targets 2 is published here"):
        import_proposal(copy.fleet, carried)
    three.sign()
    three.publish()
    three.publish_policy("third")
    three.fleet.stage_policy("fourth", b"version = 1\n")
    export_proposal(three.fleet, tmp_path / "newer")
    with pytest.raises(TrustError, match="builds on targets 3, and this folder has targets 2"):
        import_proposal(copy.fleet, tmp_path / "newer")
    copy.publish_policy("fifth")
    with pytest.raises(TrustError, match="builds on another targets 3 than this folder published"):
        import_proposal(copy.fleet, tmp_path / "newer")
    other = RepositorySimulator(tmp_path / "other")
    with pytest.raises(TrustError, match=f"is of fleet {three.fleet.fleet_id[:8]}, and this is fleet"):
        import_proposal(other.fleet, carried)


def test_what_is_proposed_in_the_other_copy_is_not_replaced(copy: RepositorySimulator, carried: Path) -> None:
    copy.fleet.stage_policy("own", b"version = 1\n")
    with pytest.raises(InputError, match="another change of targets is proposed here") as caught:
        import_proposal(copy.fleet, carried)
    assert "proposal discard --role targets" in caught.value.remedy
    copy.fleet.discard("targets")
    assert import_proposal(copy.fleet, carried) == ("targets",)


# Staging touches nothing else


def published_state(fleet: RepositorySimulator) -> dict[str, bytes]:
    return {**fleet.tree(), **{f"fleet/{file.name}": file.read_bytes() for file in fleet.fleet.metadata.iterdir()}}


def changes(fleet: RepositorySimulator, tmp_path: Path) -> Iterator[Callable[[], object]]:
    manifest, blob = small_manifest()
    key = keyfile.create(tmp_path / "new.key", PASSPHRASE, "root", "alice", preset="lab").key
    yield lambda: fleet.fleet.stage_release(manifest, put_segment(tmp_path / "segments", manifest, blob))
    yield lambda: fleet.fleet.stage_policy("second", b"version = 1\n")
    yield lambda: change_holders(fleet.fleet, [("root", lambda holders: holders.replaced("alice", key))])
    yield lambda: fleet.fleet.delegate("site-hq", [key], 1)
    yield lambda: fleet.fleet.stage_file("identity/deny.json", b"{}")
    yield lambda: export_proposal(fleet.fleet, tmp_path / "file")
    yield lambda: merge(fleet.fleet, [signed_elsewhere(fleet, tmp_path / "file", "bob", "root")])
    yield fleet.fleet.discard


def test_nothing_that_only_proposes_changes_what_is_published(three: RepositorySimulator, tmp_path: Path) -> None:
    before = published_state(three)
    for number, change in enumerate(changes(three, tmp_path)):
        change()
        assert published_state(three) == before, number
    assert three.fleet.proposals() == ()

"""Halts: any one key stops what it may stop, no key alone lets it go on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from repository_simulator import PASSPHRASE, RepositorySimulator, TreeSource, attempt, put_segment, small_manifest
from tuf.api.metadata import Metadata, Root, TargetFile, Targets  # type: ignore[attr-defined]

from pcm_p2p.authority import halting
from pcm_p2p.authority.halting import Standing
from pcm_p2p.authority.keys.keyfile import read_public
from pcm_p2p.authority.keys.signing_key import SigningKey, open_signing_key
from pcm_p2p.authority.publish import publish
from pcm_p2p.daemon.documents import read_documents
from pcm_p2p.daemon.halted import UNKNOWN, Halted
from pcm_p2p.errors import InputError, TrustError, UntrustedBytes
from pcm_p2p.ids import DeviceId
from pcm_p2p.policy.selector import DeviceFacts
from pcm_p2p.trust.client import TrustClient
from pcm_p2p.trust.delegation import HALT, roles_of_device
from pcm_p2p.trust.halt import (
    NOTHING_LIFTED,
    WHOLE_FLEET,
    Halt,
    Holders,
    InForce,
    Lifted,
    Reach,
    decode_halt_untrusted,
    decode_lifted_untrusted,
    dropped,
    in_force,
    stopping,
)
from pcm_p2p.trust.index import LIFTED, Index, halt_path
from pcm_p2p.trust.view import TrustedView

ID, FLEET, KEYID = "a" * 32, "0123456789abcdef" * 2, "c" * 64
SINCE = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def fleet_once(tmp_path_factory: pytest.TempPathFactory) -> RepositorySimulator:
    """Targets take two of three; a site of bob's, a team of wanda's with a release of its own, and one of the fleet's."""
    folder = tmp_path_factory.mktemp("halts")
    fleet = RepositorySimulator(folder, owners=("alice", "adam", "ada"), targets_threshold=2)
    fleet.delegate("site-berlin", "bob")
    fleet.delegate("team-web", "wanda")
    for name, role in (("tool", "targets"), ("shop", "team-web")):
        manifest, blob = small_manifest(name)
        fleet.fleet.stage_release(manifest, put_segment(folder / "segments", manifest, blob), role)
    fleet.sign()
    fleet.sign("wanda", role="team-web")
    fleet.publish()
    return fleet


@pytest.fixture
def fleet(fleet_once: RepositorySimulator, tmp_path: Path) -> RepositorySimulator:
    return fleet_once.copied_to(tmp_path)


def key_of(fleet: RepositorySimulator, role: str, owner: str) -> SigningKey:
    return open_signing_key(fleet.key_path(role, owner), PASSPHRASE)


def halt(fleet: RepositorySimulator, role: str, owner: str, release: str = "", version: str = "") -> Standing:
    """Ordered and published in one go, whatever else is proposed."""
    ordered = halting.order(
        fleet.fleet, key_of(fleet, role, owner), release=release, version=version, reason="it breaks"
    )
    publish_only(fleet, HALT)
    return ordered


def publish_only(fleet: RepositorySimulator, *roles: str) -> None:
    publish(fleet.fleet, fleet.origin, fleet.keys, only=roles)


def seen(device: TrustClient) -> TrustedView:
    assert device.view is not None
    return device.view


def why(device: TrustClient, site: str, release: str = "", version: str = "1.0") -> str:
    """The sentence by which a device of ``site`` holds a release; of no release: everything."""
    teams = {("shop", "1.0"): "web"}
    view = seen(device)
    return Halted(site, view.halts(), view.halts_known, teams)(release, version if release else "")


# Who may stop what


@pytest.mark.parametrize(
    ("role", "owner", "release", "stopped"),
    [
        # Stopped at berlin: tool, shop, everything; elsewhere: tool, shop, everything.
        ("root", "alice", "tool", "t.. t.."),
        ("targets", "adam", "tool", "t.. t.."),
        ("targets", "ada", "shop", ".s. .s."),
        ("root", "ada", "", "tsa tsa"),
        ("site-berlin", "bob", "tool", "t.. ..."),
        ("site-berlin", "bob", "", "tsa ..."),
        ("team-web", "wanda", "shop", ".s. .s."),
        ("team-web", "wanda", "", ".s. .s."),
        ("team-web", "wanda", "tool", "... ..."),
    ],
)
def test_one_key_stops_what_its_holder_speaks_for(
    fleet: RepositorySimulator, role: str, owner: str, release: str, stopped: str
) -> None:
    fleet.fleet.stage_policy("pending", b"version = 1\n")
    ordered = halt(fleet, role, owner, release)
    assert fleet.fleet.proposals(), "what waits for others goes on waiting"
    with fleet.client() as device:
        attempt(device, fleet.source())
        marks = [
            "".join(
                mark if why(device, site, name) else "." for mark, name in (("t", "tool"), ("s", "shop"), ("a", ""))
            )
            for site in ("berlin", "paris")
        ]
        assert " ".join(marks) == stopped
        if stopped != "... ...":
            name = "tool" if "t" in stopped else "shop"
            assert why(device, "berlin", name) == f"Halted by {owner} since 2026-03-01 12:00 UTC: it breaks"
    assert [one.state for one in halting.standings(fleet.fleet)] == ["in force"]
    assert ordered.halt.by == owner


def test_a_halt_of_one_version_leaves_the_others(fleet: RepositorySimulator) -> None:
    halt(fleet, "targets", "alice", "tool", "1.0")
    with fleet.client() as device:
        attempt(device, fleet.source())
        assert why(device, "paris", "tool", "1.0")
        assert not why(device, "paris", "tool", "1.1")


def test_devices_of_all_sites_learn_of_halts(fleet: RepositorySimulator) -> None:
    halt(fleet, "root", "alice")
    with fleet.client(roles=roles_of_device("rome")) as device:
        attempt(device, fleet.source())
        assert why(device, "rome")
        assert device.serve("metadata/1.halt.json") == fleet.tree()["metadata/1.halt.json"]


def test_a_stranger_stops_nothing(fleet: RepositorySimulator) -> None:
    fleet.delegate_key("targets", "mallory")
    with pytest.raises(InputError, match="the key of mallory is named by no role that may halt"):
        halting.order(fleet.fleet, key_of(fleet, "targets", "mallory"), reason="x")
    for role in ("snapshot", "timestamp"):
        online = open_signing_key(fleet.fleet.path / "keys" / f"{role}.key", PASSPHRASE)
        with pytest.raises(InputError, match="named by no role"):
            halting.order(fleet.fleet, online, reason="x")
    assert fleet.fleet.proposals() == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reason": " "}, "reason"),
        ({"reason": "x" * 501}, "reason"),
        ({"reason": "\x1b[2J"}, "reason"),
        ({"reason": "x", "release": "tol"}, "no release tol"),
        ({"reason": "x", "release": "tool", "version": "9"}, "no release tool 9"),
    ],
)
def test_orders_that_are_not_taken(fleet: RepositorySimulator, options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        halting.order(fleet.fleet, key_of(fleet, "root", "alice"), **options)
    assert fleet.fleet.proposals() == ()


# Scope is bound to the key of the author, not to who signed the list


def forged_list(fleet: RepositorySimulator, signer: SigningKey, *halts: Halt, version: int = 1) -> Metadata[Targets]:
    """A list of halts as any holder of a key could sign it, without the tool."""
    files = {halt_path(one.id): one.encoded() for one in halts}
    files["halts/index.json"] = Index("pcm.index/1", fleet.fleet.fleet_id, halts=tuple(sorted(files))).encoded()
    document = Metadata(
        Targets(
            version=version,
            expires=fleet.clock.now + timedelta(days=90),
            targets={path: TargetFile.from_data(path, data, ["sha256"]) for path, data in files.items()},
        )
    )
    document.sign(signer.signer)
    for path, data in files.items():
        fleet.fleet.files.store(path, data)
    return document


def tree_with(fleet: RepositorySimulator, document: Metadata[Targets]) -> TreeSource:
    """What a thief of the online keys can serve."""
    tree = fleet.stolen(delegated={HALT: document})
    for path, info in document.signed.targets.items():
        file = fleet.fleet.files.file_of(path, info)
        tree[file.relative_to(fleet.fleet.path / "repository").as_posix()] = file.read_bytes()
    return TreeSource(tree)


def statement(of: RepositorySimulator, key: SigningKey, **changes: Any) -> Halt:
    plain = Halt("pcm.halt/1", "b" * 32, of.fleet.fleet_id, "x", key.owner, SINCE, key.keyid)
    plain = msgspec.structs.replace(plain, **changes)
    return msgspec.structs.replace(plain, signature=key.signer.sign(plain.statement).signature)


LIES: dict[str, Callable[[RepositorySimulator, SigningKey], Halt]] = {
    # What bob of site berlin can write into a list of halts, to stop the devices of paris.
    "in the name of alice, with her key id": lambda fleet, bob: statement(
        fleet, bob, by="alice", keyid=read_public(fleet.key_path("root", "alice")).keyid
    ),
    "in the name of alice, with his own key id": lambda fleet, bob: statement(fleet, bob, by="alice"),
    "with the name of alice in it": lambda fleet, bob: statement(fleet, bob, by="alice", release="tool"),
    "altered after signing": lambda fleet, bob: msgspec.structs.replace(
        statement(fleet, bob, release="tool"), release=""
    ),
    "without a signature": lambda fleet, bob: msgspec.structs.replace(
        statement(fleet, bob), signature="", keyid=read_public(fleet.key_path("root", "alice")).keyid
    ),
    "an order for another fleet": lambda fleet, bob: statement(fleet, key_of(fleet, "root", "alice"), fleet="f" * 32),
    "another statement of alice's key": lambda fleet, bob: msgspec.structs.replace(
        statement(fleet, key_of(fleet, "root", "alice")),
        signature=fleet.newest_targets().signatures[read_public(fleet.key_path("targets", "alice")).keyid].signature,
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_site_key_cannot_stop_another_site(fleet: RepositorySimulator, name: str) -> None:
    bob = key_of(fleet, "site-berlin", "bob")
    document = forged_list(fleet, bob, LIES[name](fleet, bob))
    holders = Holders.of(fleet.fleet.root().signed, fleet.newest_targets().signed)
    bare = not in_force([LIES[name](fleet, bob)], holders, NOTHING_LIFTED, fleet.fleet.fleet_id)
    (fleet.fleet.path / "proposal" / "halt.json").write_bytes(document.to_bytes())
    with pytest.raises(TrustError, match="is signed by nobody who may halt") if bare else contextlib.nullcontext():
        publish_only(fleet, HALT)
    with fleet.client() as device:
        if bare:
            attempt(device, fleet.source())
            assert attempt(device, tree_with(fleet, document)).kind == "good", "one key of them all signs the list"
        else:
            assert attempt(device, fleet.source()).kind == "good"
            assert {one.by for one in seen(device).halts()} == {"bob"}, "as targets name the holder of the key"
        assert seen(device).version_of(HALT) == 1
        assert why(device, "paris") == ""
        assert why(device, "paris", "tool") == ""


def test_a_halt_outlives_the_list_that_somebody_else_signs_anew(fleet: RepositorySimulator) -> None:
    halt(fleet, "root", "alice", "tool")
    halt(fleet, "site-berlin", "bob")
    with fleet.client() as device:
        attempt(device, fleet.source())
        assert why(device, "paris", "tool").startswith("Halted by alice")
        assert len(seen(device).halts()) == 2


# Halts stick


def test_the_publisher_refuses_a_list_that_drops_a_halt(fleet: RepositorySimulator) -> None:
    ordered = halt(fleet, "root", "alice", "tool")
    fleet.fleet.unstage(halt_path(ordered.halt.id))
    fleet.sign("bob", role="site-berlin")
    with pytest.raises(TrustError, match=f"drops {ordered.halt.id[:8]}, which nobody lifted"):
        publish_only(fleet, HALT)
    fleet.fleet.discard(HALT)
    assert "metadata/2.halt.json" not in fleet.tree()


@pytest.mark.parametrize("kept", [0, 1])
def test_a_device_refuses_a_list_that_drops_or_alters_a_halt(fleet: RepositorySimulator, kept: int) -> None:
    ordered = halt(fleet, "root", "alice", "tool")
    bob = key_of(fleet, "site-berlin", "bob")
    others = [statement(fleet, bob, id=ordered.halt.id)] * kept
    document = forged_list(fleet, bob, *others, version=2)
    with fleet.client() as device:
        attempt(device, fleet.source())
        assert f"drops the halt {ordered.halt.id[:8]}" in attempt(device, tree_with(fleet, document)).reason
        view = seen(device)
        assert (view.version_of(HALT), view.halts_known) == (1, False)
        assert [one.halt.id for one in view.halts()] == [ordered.halt.id]
        assert why(device, "paris", "tool") == UNKNOWN, "somebody plays with halts: nothing new until it is settled"
        fleet.rotate_online_keys()
        assert attempt(device, fleet.source()).kind == "good"
        assert why(device, "paris", "tool").startswith("Halted by alice")
        assert why(device, "paris", "other") == ""


def test_lifting_takes_the_threshold_of_targets(fleet: RepositorySimulator) -> None:
    ordered = halt(fleet, "root", "alice", "tool")
    (lifted,) = halting.lift(fleet.fleet, [ordered.halt.id[:6]])
    assert lifted == ordered.halt
    assert [one.state for one in halting.standings(fleet.fleet)] == ["lifting"]
    fleet.sign("alice")
    with pytest.raises(TrustError, match="targets: 1 more of ada, adam must sign"):
        fleet.publish()
    with fleet.client() as device:
        attempt(device, fleet.source())
        assert why(device, "paris", "tool")
        fleet.sign("adam")
        fleet.publish()
        assert attempt(device, fleet.source()).kind == "good"
        assert why(device, "paris", "tool") == ""
        assert [one.state for one in halting.standings(fleet.fleet)] == ["lifted"]
        # The next order tidies the list up, which devices and the publisher allow now.
        halt(fleet, "site-berlin", "bob")
        assert attempt(device, fleet.source()).kind == "good"
        assert len(seen(device).index(HALT).halts) == 1
        # The same release again is another halt.
        halt(fleet, "targets", "ada", "tool")
        attempt(device, fleet.source())
        assert why(device, "paris", "tool").startswith("Halted by ada")


def test_lifting_by_a_stolen_document_is_not_believed(fleet: RepositorySimulator) -> None:
    """One targets key of three, and the online keys."""
    ordered = halt(fleet, "root", "alice", "tool")
    halting.lift(fleet.fleet, [ordered.halt.id])
    fleet.sign("adam")
    proposed = fleet.fleet.proposed_targets()
    assert proposed is not None
    with fleet.client() as device:
        attempt(device, fleet.source())
        assert attempt(device, TreeSource(fleet.stolen(targets=proposed))).kind == "bad"
        assert why(device, "paris", "tool")


@pytest.mark.parametrize("text", ["", "abc", "x" * 6, "ffffffff"])
def test_lifting_names_one_halt(fleet: RepositorySimulator, text: str) -> None:
    halt(fleet, "root", "alice", "tool")
    with pytest.raises(InputError, match="names no halt"):
        halting.lift(fleet.fleet, [text])


def test_all_halts_of_a_stolen_key_are_lifted_in_one_signed_step(fleet: RepositorySimulator) -> None:
    by_bob = [halt(fleet, "site-berlin", "bob", *options).halt for options in (("tool",), ("shop",), ())]
    by_alice = halt(fleet, "targets", "alice", "shop").halt
    assert set(halting.lift(fleet.fleet, [by_bob[0].id], same_key=True)) == set(by_bob)
    fleet.sign("alice", "adam")
    fleet.publish()
    with fleet.client() as device:
        attempt(device, fleet.source())
        assert (why(device, "berlin"), why(device, "berlin", "tool")) == ("", "")
        assert why(device, "berlin", "shop") == InForce(by_alice, WHOLE_FLEET, "alice").sentence()


def test_a_key_of_a_site_cannot_take_the_places_that_the_fleets_halts_need(
    fleet: RepositorySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(halting, "HALTS_OF_KEY_MAX", 2)
    for _ in range(2):
        halt(fleet, "site-berlin", "bob", "tool")
        halt(fleet, "targets", "alice", "tool")
    with pytest.raises(InputError, match="the key of bob has 3 halts in force; 2 are as many as it may"):
        halt(fleet, "site-berlin", "bob", "tool")
    with monkeypatch.context() as thief:
        thief.setattr(halting, "HALTS_OF_KEY_MAX", 9)
        halting.order(fleet.fleet, key_of(fleet, "site-berlin", "bob"), release="tool", reason="x")
    with pytest.raises(TrustError, match="refused to publish: one key has 3 halts in force"):
        publish_only(fleet, HALT)
    fleet.fleet.discard(HALT)
    halt(fleet, "targets", "alice", "tool")
    bobs = next(one.halt for one in halting.standings(fleet.fleet) if one.halt.by == "bob")
    halting.lift(fleet.fleet, [bobs.id], same_key=True)
    fleet.sign("alice", "adam")
    fleet.publish()
    halt(fleet, "site-berlin", "bob", "tool")


def test_what_somebody_stopped_stays_stopped_when_the_key_goes(fleet: RepositorySimulator) -> None:
    halt(fleet, "root", "alice", "tool")
    halt(fleet, "site-berlin", "bob", "tool")
    alice = read_public(fleet.key_path("root", "alice")).keyid

    def without_alice(root: Root) -> None:
        root.revoke_key(alice, "root")

    with fleet.client() as device:
        attempt(device, fleet.source())
        fleet.publish_root(without_alice)
        assert attempt(device, fleet.source()).kind == "good"
        assert why(device, "paris", "tool").startswith("Halted by alice"), "confirmed with the change of root"
        with pytest.raises(InputError, match="the key of alice is named by no role"):
            halting.order(fleet.fleet, key_of(fleet, "root", "alice"), reason="x")
        # A site's halt is the site's: it ends with the key that gave it, which took the threshold to change.
        fleet.delegate("site-berlin", "bea")
        attempt(device, fleet.source())
        assert [one.halt.by for one in seen(device).halts()] == ["alice"]
        halting.lift(fleet.fleet, [one.halt.id for one in seen(device).halts()])
        fleet.sign()
        fleet.publish()
        attempt(device, fleet.source())
        assert why(device, "paris", "tool") == ""


def test_a_new_person_may_halt_as_soon_as_root_names_the_key(fleet: RepositorySimulator) -> None:
    eve = fleet.delegate_key("root", "eve")
    fleet.publish_root(lambda root: root.add_key(eve.key, "root"))
    assert halt(fleet, "root", "eve", "tool").reach == WHOLE_FLEET


def test_a_list_of_halts_that_is_withheld_stops_everything_new(fleet: RepositorySimulator) -> None:
    with fleet.client() as device:
        attempt(device, fleet.source())
        assert why(device, "paris", "tool") == ""
        halt(fleet, "root", "alice", "shop")
        assert attempt(device, fleet.source(missing={"metadata/1.halt.json"})).kind == "good"
        assert why(device, "paris", "tool") == UNKNOWN
        assert attempt(device, fleet.source()).kind == "good"
        assert why(device, "paris", "tool") == ""
        assert why(device, "paris", "shop").startswith("Halted by alice")


def why_nothing_new(device: TrustClient) -> str:
    """Why a device of berlin begins nothing new now; empty if it may."""
    documents = read_documents(seen(device), None, device.now())
    facts, freshness = DeviceFacts(DeviceId(bytes(16)), "berlin"), device.freshness()
    return documents.desired(documents.weighed(facts, freshness), facts, device.now(), freshness).why_not


@pytest.mark.parametrize("thief_has", ["the carrier", "both online keys"])
def test_whoever_holds_a_halt_back_freezes_the_device_in_the_end(fleet: RepositorySimulator, thief_has: str) -> None:
    """Online keys prolong what they sign themselves, and nothing that people signed: targets last a year."""
    fleet.fleet.stage_file("fleet/activation.toml", ACTIVE)
    fleet.sign()
    fleet.publish()
    before = fleet.tree()
    with fleet.client() as device:
        attempt(device, TreeSource(before))
        assert why_nothing_new(device) == ""
        ends = seen(device).expires
        if thief_has == "both online keys":
            tree = fleet.stolen(lifetime=timedelta(days=900))
            assert attempt(device, TreeSource(tree)).kind == "good"
            assert ends < seen(device).expires == fleet.newest_targets().signed.expires
            ends = seen(device).expires
        else:
            tree = before
        fleet.clock.now = ends + timedelta(days=21) - timedelta(seconds=1)
        assert attempt(device, TreeSource(tree)).kind in ("unchanged", "expired")
        assert (device.freshness(), why_nothing_new(device)) == ("stale", ""), "what was signed before goes on"
        fleet.clock.advance(seconds=1)
        assert attempt(device, TreeSource(tree)).kind in ("unchanged", "expired")
        assert device.freshness() == "frozen"
        assert "frozen" in why_nothing_new(device)


ACTIVE = b'schema = "pcm.activation/1"\nscope = "all"\nnot_before = 2020-01-01T00:00:00Z\n'


def test_a_fleet_of_before_there_were_halts_says_what_to_do(fleet: RepositorySimulator) -> None:
    def edit(targets: Targets) -> None:
        targets.delegations = None

    bare = fleet.signed_targets(edit, version_step=0)
    (fleet.fleet.metadata / f"{bare.signed.version}.targets.json").write_bytes(bare.to_bytes())
    with pytest.raises(InputError, match="nobody is named who may halt") as raised:
        halting.order(fleet.fleet, key_of(fleet, "root", "alice"), reason="x")
    assert "fleet renew" in raised.value.remedy
    fleet.fleet.renew_targets()
    assert len(fleet.fleet.halt_keys()) == 6


# The documents


def test_a_halt_reads_back() -> None:
    reason = 'says "no", \\ and ünïcode'
    one = Halt("pcm.halt/1", ID, FLEET, reason, "alice", SINCE, KEYID, "tool", "1.0", "ab" * 64)
    assert decode_halt_untrusted(one.encoded(), halt_path(ID)) == one
    everything = Halt("pcm.halt/1", ID, FLEET, "", "alice", SINCE, KEYID)
    assert decode_halt_untrusted(everything.encoded(), halt_path(ID)) == everything
    lifted = Lifted("pcm.lifted/1", (ID,), ("b" * 32,))
    assert decode_lifted_untrusted(lifted.encoded()) == lifted
    assert decode_lifted_untrusted(NOTHING_LIFTED.encoded()) == NOTHING_LIFTED


@settings(max_examples=100)
@given(
    st.builds(
        Halt,
        schema=st.just("pcm.halt/1"),
        id=st.just(ID),
        fleet=st.just(FLEET),
        reason=st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=40),
        by=st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=20),
        since=st.just(SINCE),
        keyid=st.just(KEYID),
        release=st.sampled_from(["", "tool"]),
    ),
    st.sampled_from(["id", "fleet", "reason", "by", "since", "keyid", "release", "version"]),
)
def test_every_field_is_signed(one: Halt, name: str) -> None:
    assert decode_halt_untrusted(one.encoded(), halt_path(ID)) == one
    other = SINCE + timedelta(seconds=1) if name == "since" else getattr(one, name) + "x"
    assert msgspec.structs.replace(one, **{name: other}).statement != one.statement


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "b" * 32},
        {"version": "1.0"},
        {"release": "../x"},
        {"release": "a/b"},
        {"reason": "\x1b[2J"},
        {"reason": "x" * 501},
        {"by": ""},
        {"keyid": "short"},
        {"signature": "xyz"},
        {"signature": "ab" * 300},
    ],
)
def test_what_is_no_halt(changes: dict[str, str]) -> None:
    one = msgspec.structs.replace(Halt("pcm.halt/1", ID, FLEET, "x", "alice", SINCE, KEYID), **changes)
    with pytest.raises(UntrustedBytes):
        decode_halt_untrusted(one.encoded(), halt_path(ID))


@settings(max_examples=200)
@given(st.binary(max_size=300))
@example(b" " * 8_193)
@example(NOTHING_LIFTED.encoded())
def test_noise_is_refused_and_nothing_else_is_raised(data: bytes) -> None:
    for decode in (lambda one: decode_halt_untrusted(one, halt_path(ID)), decode_lifted_untrusted):
        with contextlib.suppress(UntrustedBytes):
            decode(data)


@settings(max_examples=200)
@given(
    st.dictionaries(st.sampled_from("abcdef"), st.sampled_from("01")),
    st.dictionaries(st.sampled_from("abcdef"), st.sampled_from("01")),
    st.sets(st.sampled_from("abcdef")),
)
def test_what_is_known_stays_or_was_lifted(known: dict[str, str], offered: dict[str, str], gone: set[str]) -> None:
    lifted = Lifted("pcm.lifted/1", tuple(gone))
    left = {one: sha for one, sha in known.items() if one not in gone}
    assert (dropped(known, offered, lifted) == ()) == (left.items() <= offered.items())


def test_stopping_asks_for_release_and_site() -> None:
    def one(release: str, reach: Reach, version: str = "") -> InForce:
        return InForce(Halt("pcm.halt/1", ID, FLEET, "", "x", SINCE, KEYID, release, version), reach)

    halts = (one("", Reach(sites=frozenset({"berlin"}))), one("shop", Reach(teams=frozenset({"web"})), "1.0"))
    assert [list(stopping(halts, "berlin", "", "", "")), list(stopping(halts, "paris", "", "", ""))] == [[halts[0]], []]
    assert list(stopping(halts, "paris", "shop", "1.0", "web")) == [halts[1]]
    assert list(stopping(halts, "paris", "shop", "1.1", "web")) == []
    assert list(stopping(halts, "paris", "shop", "1.0", "")) == [], "another's release of that name"


def test_no_holder_no_halt() -> None:
    one = Halt("pcm.halt/1", ID, FLEET, "", "x", SINCE, KEYID)
    assert in_force([one], Holders(), NOTHING_LIFTED, FLEET) == ()
    confirmed = Lifted("pcm.lifted/1", (), (ID,))
    assert in_force([one], Holders(), confirmed, FLEET) == (InForce(one, WHOLE_FLEET),)
    assert InForce(one, WHOLE_FLEET).sentence() == "Halted by x since 2026-03-01 12:00 UTC"
    assert in_force([one], Holders(), Lifted("pcm.lifted/1", (ID,), (ID,)), FLEET) == ()
    assert in_force([one], Holders(), confirmed, "e" * 32) == ()
    assert LIFTED == "fleet/lifted.toml"

"""The fleet's floor in one file: what is read out of it, what of it can be altered unseen (nothing), and what goes forward."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import floors
import msgspec
import pytest
from floors import FLEET, NOW, Fleet, floor
from tuf.api.metadata import Metadata, MetaFile, Snapshot, Targets  # type: ignore[attr-defined]

from pcm_p2p.authority.fleet_floor import MAGIC, FloorDocument, FloorTarget, decode_floor_untrusted, why_not_after
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.trust.index import ALLOWANCES, INDEX, site_root_path

OBSERVE = b'schema = "pcm.allowances/1"\n[default]\nchecks = ["file"]\n'


def policy(name: str, text: str = "", mode: str = "observe") -> bytes:
    return f'schema = "pcm.policy/1"\nid = "{name}"\nversion = 1\nmode = "{mode}"\n{text}'.encode()


def check(path: str) -> str:
    return f'[[check]]\nid = "c"\nresource = "file"\npath = "{path}"\nmode = 0o600\n'


BASE = policy("base", check("/opt/a"))


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def refusal(document: FloorDocument) -> str:
    with pytest.raises(UntrustedBytes) as caught:
        decode_floor_untrusted(document.encoded())
    return caught.value.message


def replaced(document: FloorDocument, path: str, data: bytes | None) -> FloorDocument:
    files = [one for one in document.files if one.path != path]
    if data is not None:
        files.append(FloorTarget(path, data))
    return msgspec.structs.replace(document, files=tuple(files))


# What is in it


def test_what_the_fleet_lets_the_site_set_and_all_that_stands_above_it_is_read_out_of_signed_bytes(
    fleet: Fleet,
) -> None:
    own = policy("mine", check("/opt/b"))
    found = floor(fleet.says({"base": BASE, "torn": b"no policy"}, allowances=OBSERVE, of_role={"mine": own}))
    assert (found.fleet, found.site, found.versions) == (FLEET, "berlin", (1, 1, 1, 1))
    assert found.allowance is not None
    assert found.allowance.checks == ("file",)
    assert [one.id for one in found.fleet_policies] == ["base"], "one that does not read is passed over, as devices do"
    assert [one.id for one in found.stronger] == ["base", "mine"]
    assert (found.issued, found.taken, found.expires) == (NOW, NOW, NOW + timedelta(days=7))


def test_a_policy_of_the_delegated_role_that_counts_nowhere_stands_above_nothing(fleet: Fleet) -> None:
    own = {"mine": policy("mine", check("/opt/b")), "greedy": policy("greedy", check("/opt/b"), "enforce")}
    assert [one.id for one in floor(fleet.says(allowances=OBSERVE, of_role=own)).stronger] == ["mine"]


@pytest.mark.parametrize("allowances", [None, b"no allowances"])
def test_a_fleet_that_says_nothing_that_reads_lets_a_site_set_nothing(fleet: Fleet, allowances: bytes | None) -> None:
    found = floor(fleet.says({"base": BASE}, allowances=allowances))
    (complaint,) = found.complaints({}, {"policies/mine.toml": policy("mine")})
    assert "policy mine of site berlin: the fleet has signed no allowances" in complaint


def test_what_is_out_of_date_is_used_and_says_since_when(fleet: Fleet) -> None:
    found = floor(fleet.says())
    assert found.overdue(NOW + timedelta(days=6)) == ""
    assert "expired on 2026-03-08" in found.overdue(NOW + timedelta(days=7, hours=1))
    assert "expired 30 days ago, on 2026-03-08: it is judged by all the same" in found.overdue(NOW + timedelta(days=37))
    odd = Metadata.from_bytes(fleet.says().timestamp)
    odd.signed.unrecognized_fields["x-pcm-issued"] = 7
    odd.sign(fleet.keys["timestamp"])
    document = msgspec.structs.replace(fleet.says(version=fleet.version), timestamp=odd.to_bytes())
    assert floor(document).issued is None


def test_whether_the_fleet_lists_the_sites_root_is_told_by_its_bytes(fleet: Fleet) -> None:
    document = fleet.says(files={site_root_path("berlin"): b"root of berlin"})
    found = floor(replaced(document, site_root_path("berlin"), None))
    assert found.lists(b"root of berlin")
    assert not found.lists(b"another root")


# What of it can be altered


def other_signer(document: FloorDocument, role: str) -> FloorDocument:
    """The same words by a key that nobody named."""
    body = Metadata.from_bytes(getattr(document, role))
    body.signatures.clear()
    body.sign(Fleet().keys["root"])
    return msgspec.structs.replace(document, **{role: body.to_bytes()})


ALTERED: dict[str, tuple[Callable[[FloorDocument], FloorDocument], str]] = {
    "wider allowances": (lambda one: replaced(one, ALLOWANCES, floors.EVERYTHING), "not what is signed|are signed"),
    "other bytes of one length": (
        lambda one: replaced(one, "policies/base.toml", BASE.replace(b"/opt/a", b"/opt/z")),
        "the content of policies/base.toml is not what is signed",
    ),
    "no allowances": (lambda one: replaced(one, ALLOWANCES, None), f"{ALLOWANCES} is missing"),
    "a policy less": (lambda one: replaced(one, "policies/base.toml", None), "policies/base.toml is missing"),
    "a policy of the role less": (lambda one: replaced(one, "policies/berlin/mine.toml", None), "mine.toml is missing"),
    "no index": (lambda one: replaced(one, INDEX, None), "index.json is missing"),
    "a policy more": (lambda one: replaced(one, "policies/new.toml", BASE), "'policies/new.toml' does not belong"),
    "a file twice": (
        lambda one: msgspec.structs.replace(one, files=(*one.files, one.files[0])),
        "a file stands twice",
    ),
    "no document of the role": (lambda one: msgspec.structs.replace(one, role=b""), "site-berlin cannot be read"),
    "another site": (lambda one: msgspec.structs.replace(one, site="paris"), "a document of site-paris, to which"),
    "another fleet's id": (lambda one: msgspec.structs.replace(one, fleet="cd" * 16), "root is of abababab"),
    "a root of another fleet": (
        lambda one: msgspec.structs.replace(one, roots=(Fleet("cd" * 16).says().roots[0],)),
        "root is of cdcdcdcd",
    ),
    "a root with the id of the fleet and other keys": (
        lambda one: msgspec.structs.replace(one, roots=Fleet().says().roots),
        "timestamp 2 is not signed by who may",
    ),
    "a root that does not follow": (
        lambda one: msgspec.structs.replace(one, roots=(*one.roots, one.roots[0])),
        "root 1 does not follow root 1",
    ),
    "documents in each other's place": (
        lambda one: msgspec.structs.replace(one, targets=one.snapshot),
        "what should be targets is a snapshot document",
    ),
    "targets that are too large": (
        lambda one: msgspec.structs.replace(one, targets=one.targets + b" " * 5_000_001),
        "targets has .* bytes; at most 5000000",
    ),
    **{
        f"{role} by a stranger": (lambda one, role=role: other_signer(one, role), f"{role} 2 is not signed by who may")
        for role in ("timestamp", "snapshot", "targets")
    },
    "the role by a stranger": (lambda one: other_signer(one, "role"), "site-berlin 2 is not signed by who may"),
}


@pytest.mark.parametrize("name", ALTERED)
def test_nothing_of_a_floor_can_be_altered_unseen(fleet: Fleet, name: str) -> None:
    fleet.says()
    alter, why = ALTERED[name]
    genuine = fleet.says({"base": BASE}, allowances=OBSERVE, of_role={"mine": policy("mine")})
    decode_floor_untrusted(genuine.encoded())
    with pytest.raises(UntrustedBytes, match=why):
        decode_floor_untrusted(alter(genuine).encoded())


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "role"])
def test_documents_of_two_moments_make_no_floor(fleet: Fleet, role: str) -> None:
    """All of them genuine: the wide allowances of yesterday under what is newest today."""
    before = fleet.says(of_role={})
    now = fleet.says({"base": BASE}, allowances=OBSERVE, of_role={})
    assert "not the one that is listed" in refusal(msgspec.structs.replace(now, **{role: getattr(before, role)}))


def test_a_root_that_only_its_own_keys_signed_follows_from_nothing(fleet: Fleet) -> None:
    stranger = Fleet()
    stranger.rotate("root")
    taken_over = msgspec.structs.replace(stranger.says(), roots=(fleet.says().roots[0], stranger.roots[1].to_bytes()))
    assert "root 2 is not signed by who may" in refusal(taken_over)


def test_what_the_holders_of_targets_signed_against_the_rules_is_no_floor(fleet: Fleet) -> None:
    document = fleet.says({"base": BASE})
    targets = Metadata[Targets].from_bytes(document.targets)
    targets.signed.targets["policies/base.toml"].hashes = {"md5": "0" * 32}
    targets.sign(fleet.keys["targets"])
    meta = {"targets.json": MetaFile.from_data(fleet.version, targets.to_bytes(), ["sha256"])}
    odd = msgspec.structs.replace(document, targets=targets.to_bytes(), **fleet.above(meta))
    assert "must be named by SHA-256 alone" in refusal(odd)


def test_a_role_that_was_revoked_counts_no_more_though_the_snapshot_goes_on_naming_it(fleet: Fleet) -> None:
    with_role, without = fleet.says(of_role={"mine": policy("mine")}), fleet.says()
    meta = dict(Metadata[Snapshot].from_bytes(without.snapshot).signed.meta)
    meta["site-berlin.json"] = Metadata[Snapshot].from_bytes(with_role.snapshot).signed.meta["site-berlin.json"]
    revoked = msgspec.structs.replace(without, **fleet.above(meta))
    assert floor(revoked).stronger == ()
    assert "to which the fleet delegates nothing" in refusal(msgspec.structs.replace(revoked, role=with_role.role))


@pytest.mark.parametrize("data", [b"", b"{}", MAGIC, MAGIC + b"\xc1", MAGIC + bytes(100), MAGIC[:-1] + b"2\n"])
def test_what_is_no_floor_is_refused(data: bytes) -> None:
    with pytest.raises(UntrustedBytes):
        decode_floor_untrusted(data)


# What goes forward


def test_a_floor_goes_forward_with_new_words_and_new_keys(fleet: Fleet) -> None:
    first, second = floor(fleet.says()), floor(fleet.says({"base": BASE}))
    assert why_not_after(first, second) == ""
    assert why_not_after(second, second) == ""
    fleet.rotate("targets")
    fleet.rotate("root", "timestamp")
    assert why_not_after(second, floor(fleet.says())) == ""


def test_a_floor_never_goes_back(fleet: Fleet) -> None:
    old = floor(fleet.says(allowances=floors.EVERYTHING))
    held = floor(fleet.says(allowances=OBSERVE))
    assert why_not_after(held, old) == "timestamp version 1 is below 2, which was accepted before"
    # Whoever holds the online keys can put a new snapshot over the old words.
    meta = {"targets.json": MetaFile.from_data(1, old.document.targets, ["sha256"])}
    fleet.version = 9
    laundered = floor(msgspec.structs.replace(old.document, **fleet.above(meta)))
    assert why_not_after(held, laundered) == "targets version 1 is below 2, which was accepted before"


def test_two_documents_with_one_version_are_no_step_forward(fleet: Fleet) -> None:
    held = floor(fleet.says(allowances=OBSERVE))
    assert why_not_after(held, floor(fleet.says(version=1))) == "has another targets 1 than the one that is held"


def test_the_role_of_the_site_never_goes_back(fleet: Fleet) -> None:
    old = fleet.says(of_role={})
    held = fleet.says(of_role={"mine": policy("mine")})
    fleet.version = 3
    meta = {
        "targets.json": MetaFile.from_data(2, held.targets, ["sha256"]),
        "site-berlin.json": MetaFile.from_data(1, old.role, ["sha256"]),
    }
    kept = tuple(one for one in old.files if "berlin" in one.path)
    files = (*(one for one in held.files if "berlin" not in one.path), *kept)
    back = msgspec.structs.replace(held, role=old.role, files=files, **fleet.above(meta))
    assert why_not_after(floor(held), floor(back)) == "site-berlin version 1 is below 2, which was accepted before"


def test_a_lower_version_is_taken_only_where_the_root_takes_the_snapshot_key_away(fleet: Fleet) -> None:
    """Recovery from a thief of the online keys, who drove versions up (TUF specification 5.3.11)."""
    held = floor(fleet.says(version=1_000))
    fleet.rotate("targets")
    assert "below 1000" in why_not_after(held, floor(fleet.says(version=2)))
    fleet.rotate("snapshot", "timestamp")
    assert why_not_after(held, floor(fleet.says(version=3))) == ""


def test_the_held_root_has_to_be_in_the_chain(fleet: Fleet) -> None:
    first = fleet.says()
    fleet.rotate("root")
    held = floor(fleet.says())
    assert why_not_after(held, floor(first)) == "has root 1, and root 2 is held"
    stranger = Fleet()
    assert why_not_after(held, floor(stranger.says(version=9))) == "has root 1, and root 2 is held"
    stranger.rotate("root")
    assert why_not_after(held, floor(stranger.says(version=9))) == "has another root 2 than the one that is held"
    fleet.rotate("root")
    later = msgspec.structs.replace(fleet.says(), roots=tuple(root.to_bytes() for root in fleet.roots[2:]))
    assert why_not_after(held, floor(later)) == "does not show that its root 3 follows from root 2"
    assert "not of site berlin" in why_not_after(held, floor(fleet.says(site="paris")))


# Judging


def test_what_is_published_may_be_signed_anew_and_what_is_new_is_judged(fleet: Fleet) -> None:
    found = floor(fleet.says(allowances=OBSERVE))
    bold, shy = {"policies/a.toml": policy("a", mode="enforce")}, {"policies/b.toml": policy("b")}
    assert "its mode is enforce" in found.complaints({}, bold)[0]
    assert found.complaints(bold, bold) == ()
    assert found.complaints(bold, {**bold, **shy}) == ()
    assert found.complaints(bold, {}) == ()
    changed = {"policies/a.toml": policy("a", check("/x"), mode="enforce")}
    assert "its mode is enforce" in found.complaints(bold, changed)[0]
    assert list(found.set_aside({**bold, **shy})) == ["policies/a.toml"]


def test_one_policy_too_many_is_refused_whichever_it_pushes_out(fleet: Fleet) -> None:
    found = floor(fleet.says(allowances=OBSERVE))
    full = {f"policies/p{number:02}.toml": policy(f"p{number:02}") for number in range(32)}
    assert found.complaints({}, full) == ()
    (complaint,) = found.complaints(full, {**full, "policies/a.toml": policy("a")})
    assert complaint.startswith("policy p31 of site berlin: with it the site would ask for 33 policies")


def test_a_policy_that_does_not_read_is_refused_before_it_is_signed(fleet: Fleet) -> None:
    (complaint,) = floor(fleet.says()).complaints({}, {"policies/x.toml": b"colour = 1"})
    assert "policies/x.toml" in complaint

"""People who come and go, and what comes near its end."""

from __future__ import annotations

from datetime import timedelta

import pytest
from repository_simulator import START
from tuf.api.metadata import Role, Root  # type: ignore[attr-defined]

from pcm_p2p.authority.keys.fingerprint import public_tuf_key
from pcm_p2p.authority.people.expiry import (
    Level,
    of_double_roles,
    of_people,
    of_publisher,
    of_thresholds,
    of_untested,
    worst,
)
from pcm_p2p.authority.people.rotation import Holders
from pcm_p2p.errors import InputError


def key(number: int, name: str):  # type: ignore[no-untyped-def]
    return public_tuf_key(bytes([number]) * 32, name)


ALICE, BOB, CAROL = key(1, "alice"), key(2, "bob"), key(3, "carol")
TWO_OF_TWO = Holders("root", (ALICE, BOB), 2)


def test_a_person_replaces_a_key_comes_and_goes() -> None:
    new = key(9, "alice")
    assert TWO_OF_TWO.replaced("alice", new) == Holders("root", (new, BOB), 2)
    assert TWO_OF_TWO.with_key(CAROL).owners == ("alice", "bob", "carol")
    assert TWO_OF_TWO.with_key(CAROL).without("alice") == Holders("root", (BOB, CAROL), 2)
    assert TWO_OF_TWO.with_threshold(1).without("bob") == Holders("root", (ALICE,), 1)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda: TWO_OF_TWO.without("carol"), "carol holds no key for root; alice, bob do"),
        (lambda: TWO_OF_TWO.without("bob"), "root would need 2 of 1 keys"),
        (lambda: Holders("root", (ALICE,), 1).without("alice"), "root would need 1 of 0 keys"),
        (lambda: TWO_OF_TWO.with_threshold(3), "root would need 3 of 2 keys"),
        (lambda: TWO_OF_TWO.with_threshold(0), "root would need 0 of 2 keys"),
        (lambda: TWO_OF_TWO.with_key(ALICE), "this key of alice signs for root already"),
        (lambda: TWO_OF_TWO.with_key(key(9, "alice")), "alice holds a key for root already, and would count twice"),
        (lambda: TWO_OF_TWO.replaced("alice", CAROL), "the new key is of carol, not of alice"),
        (lambda: TWO_OF_TWO.replaced("alice", ALICE), "this key of alice signs for root already"),
        (lambda: TWO_OF_TWO.replaced("dave", CAROL), "dave holds no key for root"),
    ],
)
def test_what_cannot_work_is_refused_before_anybody_signs(change, why: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=why) as caught:
        change()
    assert caught.value.remedy


def test_a_key_that_no_role_uses_any_more_leaves_the_root() -> None:
    roles = {"root": Role([ALICE.keyid, BOB.keyid], 2), "targets": Role([ALICE.keyid], 1)}
    roles |= {name: Role([CAROL.keyid], 1) for name in ("snapshot", "timestamp")}
    root = Root(1, expires=START, keys={one.keyid: one for one in (ALICE, BOB, CAROL)}, roles=roles)
    new = key(9, "alice")
    Holders.of_root(root, "root").replaced("alice", new).put_into(root)
    assert root.keys.keys() == {ALICE.keyid, BOB.keyid, CAROL.keyid, new.keyid}, "alice's old key still signs targets"
    Holders.of_root(root, "targets").replaced("alice", key(8, "alice")).put_into(root)
    assert ALICE.keyid not in root.keys
    assert (root.roles["root"].keyids, root.roles["root"].threshold) == ([new.keyid, BOB.keyid], 2)


# Expiry


@pytest.mark.parametrize(
    ("role", "left", "level", "text"),
    [
        ("root", timedelta(days=181), Level.ok, "181 days left"),
        ("root", timedelta(days=180), Level.ok, "180 days left"),
        ("root", timedelta(days=180, seconds=-1), Level.warn, "179 days left, less than 180 days"),
        ("root", timedelta(days=89), Level.warn, "less than 90 days"),
        ("root", timedelta(days=29), Level.critical, "less than 30 days"),
        ("root", timedelta(), Level.expired, "expired 0 minutes ago"),
        ("root", -timedelta(days=3), Level.expired, "expired 3 days ago: propose it anew"),
        ("targets", timedelta(days=90), Level.ok, "left"),
        ("targets", timedelta(days=29), Level.warn, "less than 30 days"),
        ("site-hq", timedelta(days=89), Level.ok, "left"),
        ("site-hq", timedelta(days=29), Level.warn, "less than 30 days"),
        ("site-hq", timedelta(days=13), Level.critical, "renew --role site-hq"),
        ("halt", timedelta(days=89), Level.warn, "renew --role halt"),
        ("ca", timedelta(days=200), Level.warn, "new-authority"),
    ],
)
def test_levels_of_what_people_sign(role: str, left: timedelta, level: Level, text: str) -> None:
    found = of_people(role, START + left, START)
    assert found.level == level
    assert text in found.text


@pytest.mark.parametrize(
    ("left", "level"),
    [
        (timedelta(hours=57), Level.ok),
        (timedelta(hours=56), Level.ok),
        (timedelta(hours=55), Level.warn),
        (timedelta(hours=18), Level.critical),
        (-timedelta(seconds=1), Level.expired),
    ],
)
def test_levels_of_what_the_publisher_signs(left: timedelta, level: Level) -> None:
    assert of_publisher("timestamp", START + left, START, timedelta(days=7)).level == level


def test_thresholds_that_one_absent_person_breaks_and_people_who_hold_both() -> None:
    roles = [TWO_OF_TWO, Holders("targets", (BOB,), 1), Holders("site-hq", (ALICE, CAROL), 1)]
    assert [(one.what, one.text.split(":")[0]) for one in of_thresholds(roles)] == [
        ("root", "all 2 must sign"),
        ("targets", "bob alone signs"),
    ]
    (both,) = of_double_roles(roles)
    assert both.text.startswith("bob hold")
    assert worst([both]) == Level.note


def test_keys_that_never_signed_are_named() -> None:
    (root, targets) = of_untested([("root", "alice"), ("root", "bob"), ("targets", "eve\x1b")])
    assert (root.what, root.level) == ("root", Level.warn)
    assert root.text.startswith("the key of alice, bob never signed: 'pcm-p2p key test")
    assert "eve\\x1b" in targets.text

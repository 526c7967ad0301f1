"""The decision: nothing before the activation, the same answer in any order, and permissions that name each change."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from pcm_p2p.errors import InputError
from pcm_p2p.ids import DeviceId
from pcm_p2p.policy.activation import Activation, decode_activation, why_inactive
from pcm_p2p.policy.desired import Authorisation, Change, Desired, Freshness, decide
from pcm_p2p.policy.document import Policy, decode_policy
from pcm_p2p.policy.selector import DeviceFacts

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DEVICE = DeviceFacts(DeviceId(bytes(16)), "paris", ("canary",))
EVERYONE = decode_activation(b'schema = "pcm.activation/1"\nscope = "all"\nnot_before = 2026-01-01T00:00:00Z\n')


def policy(name: str, version: int = 1, *, mode: str = "enforce", assign: str = "", rest: str = "") -> Policy:
    text = f'schema = "pcm.policy/1"\nid = "{name}"\nversion = {version}\nmode = "{mode}"\n{rest}\n'
    for entry in filter(None, assign.split()):
        release, _, at = entry.partition("@")
        text += (
            f'[[assign]]\nrelease = "{release}"\nversion = "{at}"\n'
            f'[[assign.resource]]\nkind = "file"\npath = "/opt/{release}"\ncontent = "{at}"\n'
        )
    return decode_policy(text.encode(), f"{name}.toml")


def decided(
    *policies: Policy, activation: Activation | None = EVERYONE, now: datetime = NOW, freshness: Freshness = "fresh"
) -> Desired:
    return decide(policies, activation, DEVICE, now, freshness)


def test_nothing_may_be_changed_until_a_signed_activation() -> None:
    desired = decided(policy("a", assign="x@1"), activation=None)
    assert not desired.changes_allowed
    assert "no signed activation" in desired.why_not
    (release,) = desired.releases
    assert release.why_not == desired.why_not
    assert release.fetch, "the bytes may come, so that the change is quick once it is permitted"
    assert not desired.authorisation.permits(release.change)


def test_with_an_activation_the_change_is_permitted_and_no_other() -> None:
    desired = decided(policy("a", assign="x@1"))
    (release,) = desired.releases
    assert desired.authorisation.permits(release.change)
    assert not desired.authorisation.permits(Change("x", "2", release.resources))
    assert not desired.authorisation.permits(Change("x", "1", ()))


@pytest.mark.parametrize("mode", ["observe", "notify"])
def test_only_enforce_changes_anything(mode: str) -> None:
    desired = decided(policy("a", mode=mode, assign="x@1"))
    assert desired.changes_allowed
    (release,) = desired.releases
    assert mode in release.why_not
    assert release.fetch is (mode == "notify")
    assert len(desired.authorisation) == 0


def test_a_frozen_policy_installs_nothing_new_and_a_stale_one_goes_on() -> None:
    assert decided(policy("a", assign="x@1"), freshness="stale").changes_allowed
    frozen = decided(policy("a", assign="x@1"), freshness="frozen")
    assert not frozen.changes_allowed
    assert "frozen" in frozen.why_not
    assert frozen.releases, "what was in force stays in force"


def test_an_activation_begins_at_its_moment_and_covers_its_scope() -> None:
    text = b'schema = "pcm.activation/1"\nsites = ["lyon"]\nnot_before = 2026-03-01T13:00:00+01:00\n'
    lyon = decode_activation(text)
    assert "site lyon, not this device" in why_inactive(lyon, DEVICE, NOW)
    there = DeviceFacts(DEVICE.device, "lyon")
    assert why_inactive(lyon, there, NOW) == ""
    assert "begins at" in why_inactive(lyon, there, NOW - timedelta(seconds=1))


@pytest.mark.parametrize(
    "body",
    [
        'scope = "all"\nnot_before = 2026-01-01T00:00:00',
        'scope = "all"\nsites = ["a"]\nnot_before = 2026-01-01T00:00:00Z',
        "not_before = 2026-01-01T00:00:00Z",
        'scope = "some"\nnot_before = 2026-01-01T00:00:00Z',
        'sites = ["../x"]\nnot_before = 2026-01-01T00:00:00Z',
        'scope = "all"\nnot_before = 2026-01-01T00:00:00Z\nnotbefore = 1',
    ],
)
def test_an_activation_that_could_be_misread_is_refused(body: str) -> None:
    with pytest.raises(InputError):
        decode_activation(f'schema = "pcm.activation/1"\n{body}\n'.encode())


def test_policies_in_any_order_give_the_same_decision() -> None:
    policies = [
        policy("a", 3, assign="x@1 y@1"),
        policy("b", 5, assign="x@2"),
        policy("c", 5, mode="notify", assign="x@3 z@1"),
        policy("b", 4, assign="x@9"),
    ]
    answers = [decided(*order) for order in itertools.permutations(policies)]
    for answer in answers:
        assert [(release.name, release.version, release.policy_id) for release in answer.releases] == [
            ("x", "3", "c"),
            ("y", "1", "a"),
            ("z", "1", "c"),
        ]
        assert answer.conflicts == answers[0].conflicts
    assert answers[0].conflicts == (
        "Release x: policy c assigns 3 and wins over policy a, which assigns 1.",
        "Release x: policy c assigns 3 and wins over policy b, which assigns 2.",
    )


def test_policies_that_agree_are_no_conflict_and_the_stronger_mode_counts() -> None:
    desired = decided(policy("a", mode="enforce", assign="x@1"), policy("b", 2, mode="notify", assign="x@1"))
    (release,) = desired.releases
    assert (release.mode, release.why_not, desired.conflicts) == ("enforce", "", ())


SAME_PLACE = (
    '[[assign]]\nrelease = "y"\nversion = "1"\n[[assign.resource]]\nkind = "file"\npath = "/opt/x"\ncontent = "y"\n'
)


def test_two_releases_that_want_one_place_do_not_fight() -> None:
    desired = decided(policy("a", 2, assign="x@1"), policy("b", 1, rest=SAME_PLACE))
    x, y = desired.releases
    assert x.why_not == ""
    assert y.why_not == "file:/opt/x is already managed by release x."
    assert not desired.authorisation.permits(y.change)
    assert len(desired.conflicts) == 1


def test_a_release_that_is_only_observed_keeps_no_other_from_its_place() -> None:
    desired = decided(policy("a", 2, mode="observe", assign="x@1"), policy("b", 1, rest=SAME_PLACE))
    assert [release.why_not == "" for release in desired.releases] == [False, True]
    assert desired.conflicts == ()


def test_two_releases_may_restart_one_service_but_not_disagree_about_it() -> None:
    def wants(release: str, line: str) -> str:
        service = f'[[assign.resource]]\nkind = "service"\nname = "a.service"\n{line}\n'
        return f'[[assign]]\nrelease = "{release}"\nversion = "1"\n{service}'

    agree = decided(policy("a", rest=wants("x", "restart_on_change = true") + wants("y", "active = true")))
    assert [release.why_not for release in agree.releases] == ["", ""]
    fight = decided(policy("a", 2, rest=wants("x", "active = true")), policy("b", rest=wants("y", "active = false")))
    assert [release.why_not for release in fight.releases] == ["", "service:a.service is already managed by release x."]


def test_a_policy_for_other_devices_does_not_exist_here() -> None:
    elsewhere = policy("a", assign="x@1", rest='applies_to = { sites = ["lyon"] }')
    assert decided(elsewhere).releases == ()


CHECK = '[[check]]\nid = "c"\nresource = "service"\nname = "ssh.service"\nactive = true\nremediate = true\n'


def test_a_check_has_a_remedy_only_where_changes_are_permitted_and_asked_for() -> None:
    (check,) = decided(policy("a", 4, rest=CHECK)).checks
    assert check.remedy is not None
    assert check.remedy.subject == "check:a/c"
    for desired in (
        decided(policy("a", rest=CHECK), activation=None),
        decided(policy("a", mode="notify", rest=CHECK)),
        decided(policy("a", rest=CHECK.replace("remediate = true\n", ""))),
        decided(policy("a", rest=CHECK), freshness="frozen"),
    ):
        assert [row.remedy for row in desired.checks] == [None]
        assert len(desired.authorisation) == 0


def test_the_strictest_transfer_limit_counts_and_zero_is_none() -> None:
    one = policy("a", rest="[transfer]\nwan_in_bytes_per_s = 500\nlan_in_bytes_per_s = 0\n")
    two = policy("b", rest="[transfer]\nwan_in_bytes_per_s = 200\n")
    transfer = decided(one, two).transfer
    assert (transfer.wan_in_bytes_per_s, transfer.lan_in_bytes_per_s, transfer.lan_out_bytes_per_s) == (200, None, None)


def test_an_authorisation_cannot_be_made_by_hand() -> None:
    with pytest.raises(TypeError, match="an Authorisation comes out of"):
        Authorisation(frozenset(), NOW, seal=object())

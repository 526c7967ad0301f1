"""What is halted is brought to the device and not applied, whoever else would permit it."""

from __future__ import annotations

from test_policy_desired import DEVICE, EVERYONE, NOW, policy

from pcm_p2p.policy.desired import Desired, Freshness, decide
from pcm_p2p.policy.document import Policy

SENTENCE = "Halted by alice since 2026-03-01 12:00 UTC: it breaks"
CHECK = '[[check]]\nid = "c"\nresource = "file"\npath = "/etc/x"\nmode = 420\nremediate = true\n'


def halting(*policies: Policy, only: str = "", freshness: Freshness = "fresh") -> Desired:
    """Decided while ``only`` this release is halted; empty: everything."""
    return decide(
        policies,
        EVERYONE,
        DEVICE,
        NOW,
        freshness,
        halted=lambda release, version: SENTENCE if only in ("", release) else "",
    )


def test_a_halted_release_is_fetched_and_not_applied() -> None:
    desired = halting(policy("a", assign="x@1 y@1"), only="x")
    x, y = desired.releases
    assert (x.why_not, x.fetch, desired.authorisation.permits(x.change)) == (SENTENCE, True, False)
    assert (y.why_not, desired.authorisation.permits(y.change)) == ("", True)
    assert desired.changes_allowed


def test_a_halted_release_keeps_its_place_on_the_device() -> None:
    """Another release must not take over a file because the one that owns it is held."""
    rival = policy("z", 2, assign="y@1")
    stronger = policy("zz", 3, assign="x@1")
    same_place = Policy(
        "pcm.policy/1",
        rival.id,
        rival.version,
        mode="enforce",
        assignments=tuple(
            type(one)(one.release, one.version, one.to, stronger.assignments[0].resources) for one in rival.assignments
        ),
    )
    desired = halting(stronger, same_place, only="x")
    x, y = desired.releases
    assert x.why_not == SENTENCE
    assert "already managed by release x" in y.why_not
    assert len(desired.authorisation) == 0


def test_when_everything_is_halted_no_remedy_is_applied_either() -> None:
    desired = halting(policy("a", assign="x@1", rest=CHECK))
    assert (desired.changes_allowed, desired.why_not) == (False, SENTENCE)
    assert desired.releases[0].why_not == SENTENCE
    assert desired.checks[0].remedy is None
    assert desired.checks, "the checks themselves go on"
    assert len(desired.authorisation) == 0


def test_a_halt_is_named_before_other_reasons() -> None:
    desired = halting(policy("a", assign="x@1"), only="x", freshness="frozen")
    assert desired.releases[0].why_not == SENTENCE
    observing = halting(policy("a", mode="observe", assign="x@1"), only="x")
    assert "mode observe" in observing.releases[0].why_not

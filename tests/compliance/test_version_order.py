"""Debian's version order, against dpkg itself where there is one."""

from __future__ import annotations

import shutil
import subprocess
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import settings as budget
from hypothesis import strategies as st

from pcm_p2p.compliance.version_order import DebianVersion

ASCENDING = [
    "0~~", "0~~a", "0~", "0", "0a", "0.1", "0.10~rc1", "0.10", "0.10-0ubuntu1", "0.10-1~bpo12+1", "0.10-1", "0.10-1+b1",
    "0.10-1+deb12u1", "1.0~beta", "1.0", "1.0a", "1.0+dfsg", "1.0.1", "9", "10", "1:0.1", "2:0",
]  # fmt: skip


@pytest.mark.parametrize(("lower", "higher"), [*pairwise(ASCENDING)])
def test_versions_ascend(lower: str, higher: str) -> None:
    assert DebianVersion(lower) < DebianVersion(higher)
    assert DebianVersion(higher) > DebianVersion(lower)
    assert DebianVersion(lower) != DebianVersion(higher)


@pytest.mark.parametrize(
    ("one", "other"),
    [("1.0", "0:1.0"), ("1.0", "1.0-0"), ("1.00", "1.0"), ("1.0-01", "1.0-1"), ("0", ""), ("1.", "1.0")],
)
def test_versions_that_are_written_differently_are_equal(one: str, other: str) -> None:
    assert DebianVersion(one) == DebianVersion(other)
    assert hash(DebianVersion(one)) == hash(DebianVersion(other))


part = st.text("01290aZb.+~", max_size=6)
version = st.builds(
    lambda epoch, first, upstream, revision: epoch + first + upstream + revision,
    st.sampled_from(["", "", "0:", "1:", "12:"]),
    st.sampled_from("0129"),
    part,
    st.one_of(st.just(""), st.builds(lambda text: "-" + text, st.text("01290aZ.+~", min_size=1, max_size=4))),
)


@pytest.mark.debian
@pytest.mark.skipif(shutil.which("dpkg") is None, reason="there is no dpkg to compare with")
@given(
    one=version, other=version, tail=st.sampled_from(["~", "0", "a", ".", "-0", "+", "-1", "~~"]), near=st.booleans()
)
@example(one="70", other="", tail="-0", near=True)
@budget(max_examples=150, deadline=None)
def test_dpkg_agrees(one: str, other: str, tail: str, near: bool) -> None:
    other = one + tail if near else other
    mine = (DebianVersion(one) > DebianVersion(other)) - (DebianVersion(one) < DebianVersion(other))
    relation = {-1: "lt", 0: "eq", 1: "gt"}[mine]
    answer = subprocess.run(
        ["dpkg", "--compare-versions", one, relation, other], capture_output=True, check=False, timeout=120
    )
    assert answer.returncode == 0 or answer.stderr, f"dpkg does not say that {one} {relation} {other}"


@given(versions=st.lists(st.text(max_size=12), max_size=4))
@budget(max_examples=200, deadline=None)
def test_any_text_has_one_place_in_the_order(versions: list[str]) -> None:
    ordered = sorted(map(DebianVersion, versions))
    assert all(lower <= higher for lower, higher in pairwise(ordered))

"""Expressions and selectors: what may run over foreign text, and whom a document speaks about."""

from __future__ import annotations

import re
import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcm_p2p.ids import DeviceId
from pcm_p2p.policy.condition import check_pattern
from pcm_p2p.policy.selector import DeviceFacts, Selector, matches, sentence

DEVICE = DeviceFacts(DeviceId(bytes(16)), "paris", ("canary", "desk"))


@pytest.mark.parametrize(
    "pattern",
    [
        r"^PermitRootLogin\s+(\S+)",
        r"(\d{1,3}\.){3}\d{1,3}",
        r"^(yes|no)?$",
        r"(?:ab)+",
        r"[(+]*x",
        r"[]+*]+x",
        r"\(a+\)+",
        r"(?i)^deny\s*=\s*[0-5]$",
    ],
)
def test_ordinary_expressions_are_taken(pattern: str) -> None:
    check_pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+",
        "(a|b)*",
        "(a{1,3})*",
        "(a*){3}",
        "(a?)*",
        "((a+)b)+",
        "(a+|b){2,}",
        "(?=a)",
        "(?<!a)",
        r"(a)\1",
        "(",
        "a**",
    ],
)
def test_expressions_without_a_bound_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        check_pattern(pattern)
    with pytest.raises(ValueError, match="characters"):
        check_pattern("a" * 600)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab()|*+?{}12,[]\\.", max_size=14))
def test_whatever_is_taken_ends_soon_over_a_hostile_line(pattern: str) -> None:
    try:
        check_pattern(pattern)
    except ValueError:
        return
    began = time.perf_counter()
    re.search(pattern, "a" * 26 + "!")
    assert time.perf_counter() - began < 1.0


def test_a_selector_matches_when_every_key_that_is_given_names_the_device() -> None:
    other = DeviceId(bytes(15) + b"\1")
    table = [
        (Selector(all=True), True),
        (Selector(sites=("paris", "lyon")), True),
        (Selector(sites=("lyon",)), False),
        (Selector(labels=("canary",)), True),
        (Selector(labels=("server",)), False),
        (Selector(devices=(str(DEVICE.device),)), True),
        (Selector(devices=(str(other),)), False),
        (Selector(sites=("paris",), labels=("server",)), False),
        (Selector(sites=("paris",), labels=("server", "desk")), True),
    ]
    for selector, expected in table:
        assert matches(selector, DEVICE) is expected, sentence(selector)


@pytest.mark.parametrize(
    "given", [{}, {"all": False}, {"all": True, "sites": ["a"]}, {"sites": ["../a"]}, {"devices": ["abc"]}]
)
def test_a_selector_that_says_nothing_or_nonsense_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(given, Selector)


def test_a_selector_says_in_words_whom_it_names() -> None:
    assert sentence(Selector(all=True)) == "all devices"
    assert sentence(Selector(sites=("a", "b"), labels=("c",))) == "devices with site a or b and label c"

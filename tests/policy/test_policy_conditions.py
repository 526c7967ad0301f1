"""Expressions and selectors: what may run over foreign text, and whom a document speaks about."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcm_p2p.ids import DeviceId
from pcm_p2p.policy.expression import Expression
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
    Expression(pattern)


@pytest.mark.parametrize("pattern", ["(?=a)", "(?<!a)", r"(a)\1", "(", "a**", "a{2000}", "\udc80"])
def test_what_has_no_bound_or_is_no_expression_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="is not a regular expression of RE2"):
        Expression(pattern)


def test_a_long_expression_is_refused() -> None:
    with pytest.raises(ValueError, match="600 characters"):
        Expression("a" * 600)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b$", "((a*)*)*b", ".*" * 12 + "=", "(a?){50}b$"])
def test_a_hostile_line_cannot_make_a_search_endless(pattern: str) -> None:
    """A backtracking engine does not come back from any of these; the test's own deadline would end it."""
    assert Expression(pattern).search("a" * 4_096 + "!") is None


def test_a_hit_is_the_first_group_or_the_whole_match() -> None:
    assert Expression(r"port = (\d+)").search("port = 22 # é") == "22"
    assert Expression(r"port = \d+").search("x port = 22") == "port = 22"
    assert Expression("(x)?y").search("y") == ""
    assert Expression("x").search("y") is None
    assert Expression("x").search("\udc80x") == "x"


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab()|*+?{}12,[]\\.", max_size=14), st.text(max_size=40))
def test_whatever_is_taken_can_be_searched_for_in_any_text(pattern: str, text: str) -> None:
    try:
        expression = Expression(pattern)
    except ValueError:
        return
    found = expression.search(text)
    assert found is None or isinstance(found, str)


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

"""What the lab writes for its fleet is read by the rooms that it is for."""

from __future__ import annotations

import tomllib
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcm_p2p.lab.fleet import policy_document, toml_lines
from pcm_p2p.lab.packages import Kind, Pair, Version
from pcm_p2p.policy.document import decode_policy
from pcm_p2p.policy.resource import artifact_of

VERSION = Version("4:7.4.7-1+deb12u14", "/nowhere/x.deb", "ab" * 32)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_policy_of_each_kind_is_accepted(kind: Kind) -> None:
    pair = Pair("libreoffice-core-nogui", kind, "libreoffice.deb", VERSION, VERSION, package="libreoffice-core-nogui")
    policy = decode_policy(policy_document(pair, VERSION, 2).encode(), "lab.toml")
    assert (policy.version, policy.mode) == (2, "enforce")
    (assignment,) = policy.assignments
    assert (assignment.release, assignment.version) == ("libreoffice-core-nogui", VERSION.version)
    assert [artifact_of(resource) for resource in assignment.resources] == ["libreoffice.deb"]
    assert len(policy.checks) == 1


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C"])), st.integers(), st.booleans(), st.floats(0, 1e9))
def test_values_survive_being_written(text: str, number: int, switch: bool, seconds: float) -> None:
    values = {
        "text": text,
        "number": number % (1 << 62),
        "switch": switch,
        "seconds": seconds,
        "list": [text, text],
        "table": {"all": True},
    }
    assert tomllib.loads("\n".join(toml_lines(values))) == values

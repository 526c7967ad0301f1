"""What the lab writes for its fleet is read by the rooms that it is for."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcm_p2p.config import Config, load_config
from pcm_p2p.lab.fleet import policy_document, render_settings
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


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C"])))
def test_settings_survive_being_written(text: str) -> None:
    config = Config()
    config = msgspec.structs.replace(
        config, apply=msgspec.structs.replace(config.apply, root=f"/{text}", interval_s=2.5)
    )
    assert load_back(config) == config


def test_lists_and_switches_survive_being_written() -> None:
    config = Config()
    replace = msgspec.structs.replace
    discovery = replace(config.discovery, mdns=False, interfaces=("127.0.0.1", "10.0.0.1"), seeds=("10.0.0.5:8741",))
    config = replace(config, discovery=discovery, origin=replace(config.origin, urls=("http://127.0.0.1:1/",)))
    assert load_back(config) == config


def load_back(config: Config) -> Config:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_text(render_settings(config), encoding="utf-8")
        return load_config(path)

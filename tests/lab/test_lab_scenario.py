"""Scenarios: every key has a default, a wrong one is named with its line, and what cannot be is refused before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from pcm_p2p.errors import InputError
from pcm_p2p.lab import scenario as module
from pcm_p2p.lab.scenario import Fault, Scenario, Site, check_scenario, decode_scenario, load_scenario


def refused(text: str) -> InputError:
    with pytest.raises(InputError) as raised:
        decode_scenario(text.encode(), "lab.toml")
    return raised.value


def test_the_default_is_six_devices_in_one_office() -> None:
    default = decode_scenario(b"", "lab.toml")
    assert default == Scenario()
    assert [str(device) for device in default.roster()] == [f"office-1/d0{n}" for n in range(1, 7)]
    assert default.network == "loopback"
    assert not default.fault


def test_the_example_of_the_docstring_is_read(tmp_path: Path) -> None:
    assert module.__doc__ is not None
    example = module.__doc__.split("::\n", 1)[1].split("\nOn loopback")[0]
    path = tmp_path / "lab.toml"
    path.write_text("\n".join(line[4:] for line in example.splitlines()))
    scenario = load_scenario(path)
    assert scenario.device_count == 10
    assert scenario.site[1].wan_bytes_per_s == 2_000_000
    assert scenario.fault == (Fault("kill", "office-1/d02", 40, 3.0),)


@pytest.mark.parametrize(
    ("text", "key", "line", "remedy"),
    [
        ("timout_s = 3", "timout_s", 1, "timeout_s"),
        ("[[site]]\nname = 'a'\ndevcies = 3", "devcies", 3, "devices"),
        ("[[site]]\ndevices = 0", "devices", 2, ""),
        ("network = 'docker'", "network", 1, ""),
        ("[[fault]]\nkind = 'kill'\ntarget = 'x'\nat_percent = 4", "at_percent", 4, "at_pct"),
        ("[[fault]]\nkind = 'kill'", "target", None, "target"),
        ("compression_level = 23", "compression_level", 1, ""),
    ],
)
def test_a_wrong_key_or_value_is_named(text: str, key: str, line: int | None, remedy: str) -> None:
    error = refused(text)
    assert key in error.message
    assert line is None or f"lab.toml:{line}:" in error.message
    assert remedy in error.message + error.remedy


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("schema = 'pcm.scenario/9'", "schema"),
        ("site = []", "site"),
        ("[[site]]\nname = '../etc'", "site.name"),
        ("[[site]]\nname = 'a'\n[[site]]\nname = 'a'", "site.name"),
        ("[[site]]\nname = 'a'\ndevices = 150\n[[site]]\nname = 'b'\ndevices = 150", "site.devices"),
        ("[release]\nold = 'a.deb'", "release.new"),
        ("[release]\nnew = 'a.deb'", "release.old"),
        ("[release]\nold = 'a'\nnew = 'b'\npackage = 'c'", "release.package"),
        ("[[fault]]\nkind = 'kill'\ntarget = 'office-9/d01'", "fault.target"),
        ("[[fault]]\nkind = 'stop'\ntarget = 'office-1/d01'", "fault.kind"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(text: str, key: str) -> None:
    error = refused(text)
    assert error.key == key
    assert error.remedy


def test_a_pattern_stands_for_all_that_fit() -> None:
    scenario = Scenario(site=(Site("a", 2), Site("b", 1)))
    assert scenario.targets(Fault("kill", "a/*")) == ("a/d01", "a/d02")
    assert scenario.targets(Fault("pause", "*/d01")) == ("a/d01", "b/d01")
    assert scenario.targets(Fault("stop", "origin")) == ("origin",)
    assert check_scenario(scenario, "lab.toml") is scenario

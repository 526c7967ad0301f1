"""The daemon's settings: defaults that hold without a file's help, and mistakes that are named where they stand."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from pcm_p2p.config import Config, load_config
from pcm_p2p.errors import InputError


def load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return load_config(path)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, "")
    assert config == Config()
    assert config.apply.root == "/"
    assert config.listen.port == 8741


def test_settings_cannot_be_changed_once_read(tmp_path: Path) -> None:
    config = load(tmp_path, '[device]\nsite = "berlin"\n')
    assert config.device.site == "berlin"
    with pytest.raises(AttributeError):
        config.device.site = "rome"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ("[divice]\nsite = 'a'", r"config\.toml:1: divice: unknown key", "device"),
        ("[device]\nsite = 'a'\nlabel = ['x']", r"config\.toml:3: label: unknown key in device", "labels"),
        ("[listen]\nport = 70000", r"config\.toml:2: listen\.port: ", ""),
        ("[listen]\nport = '8741'", r"config\.toml:2: listen\.port: ", ""),
        ("[limits]\nupload_slots = 0", r"config\.toml:2: limits\.upload_slots: ", ""),
        ("[limits]\nwan_weight = 17", r"config\.toml:2: limits\.wan_weight: ", ""),
        ("[device]\nrole = 'king'", r"config\.toml:2: device\.role: .*king", ""),
        ("[device]\nsite = '../x'", r"device\.site: site '\.\./x'", ""),
        ("[device]\nlabels = ['ok', 'not ok']", r"device\.labels: labels 'not ok'", ""),
        ("[origin]\nurls = ['ftp://x/']", r"origin\.urls: 'ftp://x/'", "https://"),
        ("[discovery]\nseeds = ['10.0.0.5']", r"discovery\.seeds: '10\.0\.0\.5'", "10.0.0.5:8741"),
        ("[discovery]\nseeds = ['host:port']", r"discovery\.seeds: 'host:port'", "10.0.0.5:8741"),
        ("[origin]\nurls = [", r"config\.toml:2: is not TOML", "toml.io"),
        ("a = 1\nb = ", r"config\.toml:2: is not TOML", "toml.io"),
    ],
)
def test_a_mistake_is_named_with_file_line_and_key(tmp_path: Path, text: str, message: str, remedy: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        load(tmp_path, text)
    assert remedy in raised.value.remedy
    assert raised.value.exit_status == 2


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.toml: there is no such file"):
        load_config(tmp_path / "config.toml")


def test_every_setting_has_a_default() -> None:
    for table in msgspec.structs.fields(Config):
        assert not table.required
        assert all(not field.required for field in msgspec.structs.fields(table.type))

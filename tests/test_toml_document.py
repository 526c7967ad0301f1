"""TOML documents: whatever a person writes, either a valid object or one message with file, line, key and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcm_p2p.config import Config
from pcm_p2p.errors import InputError
from pcm_p2p.toml_document import SIZE_BYTES_MAX, decode_toml, load_toml


class Wheel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    size_mm: Annotated[int, msgspec.Meta(ge=1)]
    colour: Literal["black", "white"] = "black"


class Bicycle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    wheel: tuple[Wheel, ...] = ()
    bell: dict[str, int] = msgspec.field(default_factory=dict)


def refused(text: str | bytes) -> InputError:
    with pytest.raises(InputError) as raised:
        decode_toml(text.encode() if isinstance(text, str) else text, Bicycle, "bicycle.toml")
    return raised.value


def test_a_document_becomes_its_object(tmp_path: Path) -> None:
    path = tmp_path / "bicycle.toml"
    path.write_text("name = 'x'\n[[wheel]]\nsize_mm = 622\n[[wheel]]\nsize_mm = 622\ncolour = 'white'\n")
    assert load_toml(path, Bicycle) == Bicycle("x", (Wheel(622), Wheel(622, "white")))


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("name = 'x'\nwheels = 2", 2, "wheels"),
        ("name = 'x'\n[[wheel]]\nsize_mm = 1\ncolor = 'black'", 4, "color"),
        ("name = 'x'\n[[wheel]]\nsize_mm = 1\n[[wheel]]\nsize = 1", 5, "size"),
        ("[[wheel]]\nsize_mm = 1\n", None, "name"),
        ("name = 'x'\n\n[[wheel]]\ncolour = 'white'", 3, "size_mm"),
        ("name = 'x'\n[[wheel]]\nsize_mm = 0", 3, "size_mm"),
        ("name = 'x'\n# size_mm = 3 is too small\n[[wheel]]\nsize_mm = 'big'", 4, "size_mm"),
        ("name = 3", 1, "name"),
        ("name = 'x'\nwheel = [{ size_mm = 1, weight = 2 }]", 2, "weight"),
    ],
)
def test_line_and_key_are_named(text: str, line: int | None, key: str) -> None:
    error = refused(text)
    assert key in (error.key or "")
    assert error.line == line
    assert error.message.startswith("bicycle.toml:")


def test_a_near_word_is_offered() -> None:
    assert "'colour'" in refused("name = 'x'\n[[wheel]]\nsize_mm = 1\ncolor = 'black'").remedy
    assert "known keys" in refused("name = 'x'\nzzz = 1").remedy


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"name = 'x\n", "bicycle.toml:1: is not TOML"),
        (b"name = 'x'\nname = 'y'\n", "is not TOML"),
        (b"a = 1\nb = \xff", "bicycle.toml:2: is not UTF-8"),
        (b"x = " + b"[" * 5_000, "bicycle.toml"),
        (b"#" * (SIZE_BYTES_MAX + 1), f"at most {SIZE_BYTES_MAX}"),
    ],
)
def test_what_is_not_a_document_is_said_so(data: bytes, message: str) -> None:
    assert message in refused(data).message


def test_absent_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        load_toml(tmp_path / "none.toml", Bicycle)
    with pytest.raises(InputError, match="cannot be read"):
        load_toml(tmp_path, Bicycle)


@given(st.binary(max_size=300))
def test_noise_is_refused_in_one_way(noise: bytes) -> None:
    assert read(noise) is None


@given(
    st.dictionaries(st.sampled_from(["name", "wheel", "bell", "x"]), st.one_of(st.integers(), st.text(), st.booleans()))
)
def test_a_document_fits_or_is_refused_in_one_way(tree: dict[str, object]) -> None:
    text = "\n".join(f"{key} = {msgspec.json.encode(value).decode()}" for key, value in tree.items())
    bicycle = read(text.encode())
    assert bicycle is None or tree == {"name": bicycle.name}


def read(data: bytes) -> Bicycle | None:
    """The object, or None for what is refused; any other error fails the test."""
    try:
        return decode_toml(data, Bicycle, "noise")
    except InputError:
        return None


def test_a_misspelt_key_is_compared_with_its_own_table_first(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[listen]\nprot = 1\n")
    with pytest.raises(InputError) as caught:
        load_toml(path, Config)
    assert caught.value.remedy == "Did you mean 'port'?", "and not [apply] root"
    path.write_text("[discovery]\nurls = []\n")
    with pytest.raises(InputError) as caught:
        load_toml(path, Config)
    assert caught.value.remedy == "Did you mean 'urls'?", "which is a key of [origin]"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("n = " + "9" * 5_000, "number or date that cannot be read"),
        ("a" + ".a" * 100_000 + " = 1", "more than 64 parts"),
        ('"a"' + '."a"' * 100_000 + " = 1", "more than 64 parts"),
        ("[a" + ".a" * 100_000 + "]", "more than 64 parts"),
        ("n = " + "[" * 100_000, "nested too deeply"),
    ],
    ids=["endless number", "endless key", "endless quoted key", "endless header", "endless nesting"],
)
def test_what_would_stop_the_parser_is_refused_at_once(text: str, said: str) -> None:
    """``tomllib`` raised what nobody caught for the first, and took more than a minute for the second."""
    with pytest.raises(InputError, match=said):
        decode_toml(text.encode(), msgspec.Struct, "policy.toml")


def test_a_reverse_name_of_the_internet_in_a_value_is_no_key() -> None:
    name = ".".join("0123456789abcdef" * 2) + ".ip6.arpa"
    assert decode_toml(f'v = "zone {name} in {name}"'.encode(), dict[str, str], "x")["v"].endswith("arpa")

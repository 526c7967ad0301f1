"""The form of a device id that people compare: what they may write, and which mistakes are found."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pcm_p2p.enrolment.device_code import ALPHABET, check_character, device_code, device_code_untrusted
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import DeviceId

DEVICE = DeviceId.parse("617" + "3" * 26 + "646")
devices = st.binary(min_size=16, max_size=16).map(DeviceId)


@pytest.mark.parametrize(
    ("text", "check"),
    [("WG2IWWALPC2HZ", "H"), ("KHQNO2S5QSILR", "K"), ("MFZWI3DBONSGY", "C"), ("YLTMRWGC43ENR", "5")],
)
def test_check_characters_are_those_of_syncthing(text: str, check: str) -> None:
    """Vectors of Syncthing's documentation and of another implementation of its ids."""
    assert check_character(text) == check


@given(devices)
@example(DeviceId(bytes(16)))
@example(DeviceId(b"\xff" * 16))
def test_a_code_reads_as_the_device_it_was_made_of(device: DeviceId) -> None:
    code = device_code(device)
    assert [len(group) for group in code.split("-")] == [7, 7, 7, 7]
    spoken = code.lower().replace("-", " ").replace("o", "0").replace("i", "1").replace("b", "8")
    assert {device_code_untrusted(text) for text in (code, spoken, device.hex(), device.hex().upper())} == {device}


@given(devices, st.integers(0, 27), st.sampled_from(ALPHABET))
def test_one_wrong_character_is_found(device: DeviceId, position: int, wrong: str) -> None:
    plain = device_code(device).replace("-", "")
    if plain[position] != wrong:
        with pytest.raises(UntrustedBytes):
            device_code_untrusted(plain[:position] + wrong + plain[position + 1 :])


def test_it_is_said_which_half_is_mistyped() -> None:
    code = device_code(DEVICE)
    with pytest.raises(UntrustedBytes, match="last two groups"):
        device_code_untrusted(code[:-1] + ("A" if code[-1] != "A" else "B"))
    with pytest.raises(UntrustedBytes, match="first two groups"):
        device_code_untrusted(("A" if code[0] != "A" else "B") + code[1:])


@given(st.text(max_size=60))
@example("A" * 10_000)
@example("é" * 28)
def test_anything_else_is_refused_with_one_short_error(text: str) -> None:
    with suppress(UntrustedBytes):
        assert device_code_untrusted(text).hex() == text.lower() or len(text) >= 28
    with pytest.raises(UntrustedBytes) as refused:
        device_code_untrusted(text + "!")
    assert len(refused.value.message) < 300

"""Twelve words for 128 bits: what they stand for, and what a misheard one does."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcm_p2p.authority.keys.fingerprint import fingerprint_of, public_tuf_key, words_of_key
from pcm_p2p.authority.keys.words import bytes_of, words_of
from pcm_p2p.errors import InputError


@given(st.binary(min_size=16, max_size=16))
def test_words_stand_for_the_bytes_they_were_made_of(value: bytes) -> None:
    words = words_of(value)
    assert len(words) == 12
    assert bytes_of(words) == value
    assert bytes_of(tuple(word.upper() for word in words)) == value


def test_the_words_are_those_of_the_published_list() -> None:
    """Test vectors of BIP 39."""
    assert words_of(bytes(16)) == (*["abandon"] * 11, "about")
    assert " ".join(words_of(bytes.fromhex("9e885d952ad362caeb4efe34a8e91bd2"))) == (
        "ozone drill grab fiber curtain grace pudding thank cruise elder eight picnic"
    )


def test_groups_and_words_of_a_key_show_the_same_128_bits() -> None:
    key = public_tuf_key(bytes(range(32)), "ada")
    groups, words = fingerprint_of(key.keyid), words_of_key(key.keyid)
    assert bytes_of(words).hex() == groups.replace(" ", "") == key.keyid[:32]


@given(st.binary(min_size=16, max_size=16), st.integers(0, 11), st.binary(min_size=16, max_size=16))
def test_one_word_in_the_place_of_another_never_gives_the_same_bytes(value: bytes, place: int, other: bytes) -> None:
    words, wrong = list(words_of(value)), words_of(other)[place]
    if words[place] == wrong:
        return
    words[place] = wrong
    with contextlib.suppress(InputError):
        assert bytes_of(tuple(words)) != value


def test_most_misheard_words_are_noticed_before_anything_is_compared() -> None:
    words = list(words_of(bytes(range(16))))
    noticed = 0
    for other in words_of(bytes(range(16, 32))) + words_of(bytes(range(32, 48))) + words_of(bytes(range(48, 64))):
        try:
            bytes_of((*words[:5], other, *words[6:]))
        except InputError:
            noticed += 1
    assert noticed >= 30, "15 of 16 on average, of 36"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "0 words were given"),
        (("abandon",) * 11, "11 words were given"),
        ((*["abandon"] * 11, "abaut"), "word 12, 'abaut', is not in the list"),
        (("about", *["abandon"] * 11), "misheard or left its place"),
        (("x" * 1_000, *["abandon"] * 11), "word 1"),
    ],
)
def test_what_is_wrong_with_words_is_said(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        bytes_of(words)
    assert refused.value.remedy
    assert len(refused.value.message) < 200


@pytest.mark.parametrize("size", [0, 15, 17, 32])
def test_other_lengths_have_no_words(size: int) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        words_of(bytes(size))

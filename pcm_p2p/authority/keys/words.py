"""Twelve words for 128 bits, to be read aloud and compared by ear. Pure.

The list is that of BIP 39 in English: 2048 words, no two alike in their first four letters. Twelve of them carry 128 bits and
a checksum of 4 bits, so a word misheard for another of the list is noticed in 15 of 16 cases before anything is compared. Who
compares all twelve compares 128 bits: somebody else's key that shows the same words takes 2^128 attempts to make. Comparing
only the first three words compares 33 bits, which an attacker reaches in hours: compare all of them.

These words encode a *public* value. They are no secret, and no key can be restored from them.
"""

from __future__ import annotations

from functools import cache

from mnemonic import Mnemonic

from pcm_p2p.errors import InputError

SIZE_BYTES = 16
COUNT = 12


def words_of(value: bytes) -> tuple[str, ...]:
    """The twelve words of 16 bytes. Raises ``ValueError`` for another length."""
    if len(value) != SIZE_BYTES:
        raise ValueError(f"words stand for {SIZE_BYTES} bytes, not {len(value)}")
    return tuple(_list().to_mnemonic(value).split())


def bytes_of(words: tuple[str, ...]) -> bytes:
    """The 16 bytes that twelve words stand for; case does not matter. Raises ``InputError`` that says which word is not one."""
    if len(words) != COUNT:
        raise InputError(f"{len(words)} words were given, and a fingerprint has {COUNT}", remedy="Give all of them.")
    lowered = [word.lower() for word in words]
    for number, word in enumerate(lowered, start=1):
        if word not in _known():
            raise InputError(f"word {number}, {word[:20]!r}, is not in the list", remedy="Spell it again.")
    try:
        return bytes(_list().to_entropy(lowered))
    except ValueError:
        raise InputError(
            "the words do not fit together: one of them was misheard or left its place",
            remedy="Read them aloud again, in order.",
        ) from None


@cache
def _list() -> Mnemonic:
    return Mnemonic("english")


@cache
def _known() -> frozenset[str]:
    return frozenset(_list().wordlist)

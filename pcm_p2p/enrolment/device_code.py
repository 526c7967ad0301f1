"""Device codes: a device id in the form in which two people compare it, as Syncthing shows its own.

An id has 16 bytes. In base32 (RFC 4648: letters and 2 to 7, so neither 0 nor 1) that is 26 characters; behind each half of 13
stands a check character, and the 28 are shown in groups of seven::

    MFZWI3D-BONSGYC-YLTMRWG-C43ENR5

The check character finds any single wrong character and most swaps of neighbours. It is Syncthing's "Luhn mod 32"
(lib/protocol/luhn.go there), which doubles from the left and is therefore not quite the algorithm of that name.

On reading, letter case, blanks, dashes do not matter, and 0, 1 and 8 count as O, I and B, which look like them.
"""

from __future__ import annotations

import base64

from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import DeviceId

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_HALF, _GROUP = 13, 7
_LOOK_ALIKES = str.maketrans("018", "OIB", "- ")


def device_code(device: DeviceId) -> str:
    """Four groups of seven characters."""
    text = base64.b32encode(device).decode("ascii").rstrip("=")
    halves = (text[:_HALF], text[_HALF:])
    checked = "".join(half + check_character(half) for half in halves)
    return "-".join(checked[start : start + _GROUP] for start in range(0, len(checked), _GROUP))


def device_code_untrusted(text: str) -> DeviceId:
    """Read a code, or the 32 hexadecimal digits of an id. Raises ``UntrustedBytes`` that says which half is mistyped."""
    if len(text) == 2 * DeviceId.size_bytes:
        return DeviceId.parse(text.lower())
    plain = text[:80].upper().translate(_LOOK_ALIKES)
    if len(plain) != 2 * (_HALF + 1) or any(character not in ALPHABET for character in plain):
        raise UntrustedBytes(f"{text[:80]!r} is not a device code: four groups of seven letters and digits 2 to 7")
    halves = (plain[: _HALF + 1], plain[_HALF + 1 :])
    for half, groups in zip(halves, ("first two", "last two"), strict=True):
        if check_character(half[:-1]) != half[-1]:
            raise UntrustedBytes(f"device code {text[:80]!r}: one of its {groups} groups is mistyped")
    try:
        data = base64.b32decode("".join(half[:-1] for half in halves) + "======")
    except ValueError:
        raise UntrustedBytes(f"{text[:80]!r} is not a device code") from None
    device = DeviceId(data)
    if device_code(device).replace("-", "") != plain:
        raise UntrustedBytes(f"{text[:80]!r} is not a device code")
    return device


def check_character(text: str) -> str:
    """The check character of ``text``, which is of ``ALPHABET``."""
    total = 0
    for position, character in enumerate(text):
        value = ALPHABET.index(character) * (1 + position % 2)
        total += value // 32 + value % 32
    return ALPHABET[-total % 32]

"""Foreign text on a person's screen: what is shown is what is there, and it can do nothing but be read. Pure.

A policy, an owner's name or a file name may hold escape sequences that move the cursor, or marks that turn the reading
direction. Whoever signs decides by what the screen says, so everything that is not a printable character is written out.
"""

from __future__ import annotations

LINE_LENGTH_MAX = 200
"""Choice: longer lines are cut with a count, unless all is asked for."""


def shown(text: str) -> str:
    r"""``text`` with each character that is not printable as ``\x1b``, ``\u202e`` and so on; a tab becomes four blanks.

    Printable is what ``str.isprintable`` calls so: no control, format, private or surrogate characters, and of all blanks the
    ordinary one only.
    """
    if text.isprintable():
        return text
    return "".join(_shown_character(character) for character in text)


def _shown_character(character: str) -> str:
    if character == "\t":
        return "    "
    if character.isprintable():
        return character
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def cut(text: str, length_max: int = LINE_LENGTH_MAX) -> str:
    """At most so many characters of ``text``, and how many are not shown."""
    return text if len(text) <= length_max else f"{text[:length_max]} … {len(text) - length_max} characters more"

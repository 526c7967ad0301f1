"""Mutations that keep the structure of what they change, so that inputs get past the parser and into the rules behind it.

``mutated(data, form, rng)`` never raises: what does not parse as ``form`` is changed as bytes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, Literal

import msgspec

Form = Literal["bytes", "json", "msgpack", "text"]

NUMBERS = (
    *(0, 1, -1, 2, 7, 64, 127, 128, 255, 256, 1_023, 4_096, 65_535, 65_536),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 - 1, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -(2**31), -(2**63)),
)
"""Ends of the types that lengths, counts and versions are of."""
TEXTS = (
    *(
        "",
        "/",
        ".",
        "..",
        "../../etc/passwd",
        "/etc/passwd",
        "a/../b",
        "a//b",
        "con",
        "NUL",
        "\0",
        "a\0b",
        "\r\n",
        "\x1b[2J",
    ),
    *(
        "\u202e",
        "\ud7ff",
        "e\u0301",
        "𝟙",
        "%2e%2e",
        "\\\\server\\x",
        "a" * 181,
        "a" * 4_097,
        "'",
        '"',
        "{{7*7}}",
        "${x}",
    ),
    *(
        "2026-03-01T12:00:00Z",
        "9999-12-31T23:59:59Z",
        "0000-00-00T00:00:00Z",
        "*",
        "[a-",
        "f" * 32,
        "0" * 64,
        "sha256",
        "root",
    ),
)
TOKENS = (
    *(
        b"\0",
        b"\xff",
        b"\0" * 8,
        b"\xff" * 8,
        b"\n",
        b"..",
        b"../",
        b"[",
        b"{",
        b'{"a":',
        b"null",
        b"NaN",
        b"1e999",
        b"-0",
    ),
    *(
        b"9" * 400,
        b"\x28\xb5\x2f\xfd",
        b"\xfd7zXZ\0",
        b"PK\x03\x04",
        b"PK\x05\x06",
        b"!<arch>\n",
        b"ustar\0",
        b"\x1f\x8b\x08",
    ),
    *(
        b"\x80\x00\x00\x00",
        b"\x7f\xff\xff\xff",
        b"\xc1",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"[[",
        b" = ",
    ),
    *(b"-----BEGIN CERTIFICATE-----\n", b"\xe2\x80\xae", b"a." * 70, b"\x30\x84\xff\xff\xff\xff", b"HDIFF13&\0"),
)
NODES_MAX = 2_000
"""Larger documents are changed as bytes: walking them would be most of the time."""


def mutated(data: bytes, form: Form, rng: random.Random) -> bytes:
    """``data`` with one to four changes."""
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4))):
        data = _changed(data, form, rng)
    return data


def _changed(data: bytes, form: Form, rng: random.Random) -> bytes:
    if form == "text" and rng.random() < 0.6:
        return _of_lines(data, rng)
    if form in ("json", "msgpack") and rng.random() < 0.75:
        decode: Callable[[bytes], Any] = json.loads if form == "json" else msgspec.msgpack.decode
        try:
            tree = _of_tree(decode(data), rng)
            return json.dumps(tree).encode() if form == "json" else msgspec.msgpack.encode(tree)
        except (ValueError, TypeError, RecursionError, OverflowError, msgspec.MsgspecError):
            pass
    return _of_bytes(data, rng)


def _of_tree(tree: Any, rng: random.Random) -> Any:
    """``tree`` with one node replaced, removed, doubled or moved; ``tree`` itself may be changed."""
    places: list[tuple[Any, Any]] = []
    pending = [tree]
    while pending and len(places) < NODES_MAX:
        node = pending.pop()
        if isinstance(node, dict):
            places += ((node, key) for key in node)
            pending += node.values()
        elif isinstance(node, list):
            places += ((node, index) for index in range(len(node)))
            pending += node
    if not places or rng.random() < 0.02:
        return _any_value(rng)
    parent, place = rng.choice(places)
    match rng.randrange(7):
        case 0 | 1 | 2:
            parent[place] = _like(parent[place], rng)
        case 3:
            del parent[place]
        case 4 if isinstance(parent, list):
            parent[place:place] = [parent[place]] * rng.choice((1, 2, 40))
        case 4:
            parent[rng.choice(TEXTS)] = parent[place]
        case 5:
            other, there = rng.choice(places)
            parent[place], other[there] = other[there], parent[place]
        case _:
            parent[place] = _any_value(rng)
    return tree


def _like(value: Any, rng: random.Random) -> Any:
    """Another value of the same kind."""
    match value:
        case bool():
            return not value
        case int():
            return rng.choice((value + 1, value - 1, -value, value * 2, rng.choice(NUMBERS)))
        case str():
            return rng.choice((value + rng.choice(TEXTS), value[: len(value) // 2], value.upper(), rng.choice(TEXTS)))
        case bytes():
            return rng.choice((_of_bytes(value, rng), value[:-1], value + b"\0", bytes(len(value))))
        case _:
            return _any_value(rng)


def _any_value(rng: random.Random) -> Any:
    match rng.randrange(9):
        case 0:
            return rng.choice(NUMBERS)
        case 1:
            return rng.choice(TEXTS)
        case 2:
            return rng.choice((None, True, False, 0.5, 1e308))
        case 3:
            return [rng.choice(NUMBERS)] * rng.choice((0, 1, 33, 257))
        case 4:
            return {rng.choice(TEXTS): rng.choice(NUMBERS)}
        case 5:
            nested: Any = []
            for _ in range(rng.choice((3, 200))):
                nested = [nested]
            return nested
        case 6:
            return rng.choice(TEXTS) * rng.choice((1, 3))
        case 7:
            return {}
        case _:
            return []


def _of_lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines(keepends=True) or [b"\n"]
    at = rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, lines[rng.randrange(len(lines))])
        case 2:
            lines[at:at] = [lines[at]] * rng.choice((2, 50))
        case 3:
            key, sign, _ = lines[at].partition(b"=")
            value = rng.choice(
                (
                    *map(str, NUMBERS),
                    "[]",
                    "{}",
                    "''",
                    "true",
                    "1979-05-27",
                    "0001-01-01T00:00:00+14:00",
                    "9999-12-31T23:59:59-14:00",
                    "0x7f",
                    "inf",
                    "[[[]]]",
                    '"""',
                )
            )
            lines[at] = key + sign + b" " + value.encode() + b"\n"
        case 4:
            key, sign, value = lines[at].partition(b"=")
            lines[at] = key + rng.choice(TOKENS) + sign + value
        case _:
            words = lines[at].split(b" ")
            words[rng.randrange(len(words))] = json.dumps(rng.choice(TEXTS), ensure_ascii=rng.random() < 0.5).encode()
            lines[at] = b" ".join(words)
    return b"".join(lines)


def _of_bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    at = rng.randrange(len(changed) + 1)
    match rng.randrange(9):
        case 0 | 1 if changed:
            changed[at % len(changed)] ^= 1 << rng.randrange(8)
        case 2 if changed:
            changed[at % len(changed)] = rng.randrange(256)
        case 3:
            del changed[at:]
        case 4:
            del changed[at : at + rng.choice((1, 2, 4, 16))]
        case 5:
            changed[at:at] = rng.choice(TOKENS)
        case 6:
            token = rng.choice(TOKENS)
            changed[at : at + len(token)] = token
        case 7:
            size = rng.choice((2, 4, 8))
            order: Literal["big", "little"] = rng.choice(("big", "little"))
            changed[at : at + size] = (rng.choice(NUMBERS) % 256**size).to_bytes(size, order)
        case _:
            length = rng.choice((1, 4, 16, 64))
            start = rng.randrange(len(changed) + 1)
            changed[at:at] = changed[start : start + length]
    return bytes(changed)

"""TOML text to a validated object, with errors that name the file, the line, the key and the remedy.

Used for everything a person writes: the daemon's configuration, policies, scenarios, the fleet document. ``tomllib`` parses,
``msgspec`` checks types and refuses unknown keys; this module only translates their complaints into ``InputError`` and finds
the line, because ``tomllib`` keeps no positions: the line reported is the first one on which the offending key stands as a
key or table, which is exact unless the same key occurs in several tables.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from pcm_p2p.errors import InputError

T = TypeVar("T")

SIZE_BYTES_MAX = 1 << 20
"""Choice: no hand-written document is larger; a larger one is refused before it is parsed."""


def load_toml(path: Path, schema: type[T]) -> T:
    """Read ``path`` and return a ``schema`` instance. Raises ``InputError`` for anything else."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError("there is no such file", path=path, remedy="Check the path.") from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=path) from None
    return decode_toml(data, schema, path)


def decode_toml(data: bytes, schema: type[T], path: Path | str) -> T:
    """Decode ``data`` as ``schema``; ``path`` is only named in errors. Raises ``InputError``."""
    if len(data) > SIZE_BYTES_MAX:
        raise InputError(f"has {len(data)} bytes; at most {SIZE_BYTES_MAX} are read", path=path)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError("is not UTF-8", path=path, line=line, remedy="Save the file as UTF-8.") from None
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        at = re.search(r"\(at line (\d+), column (\d+)\)", message)
        end = text.count("\n") + 1 if "end of document" in message else None
        line = int(at.group(1)) if at else end
        raise InputError(
            f"is not TOML: {message}", path=path, line=line, remedy="See https://toml.io for the syntax."
        ) from None
    except RecursionError:
        raise InputError("is nested too deeply", path=path) from None
    return _convert(tree, schema, path, text)


def _convert(tree: dict[str, Any], schema: type[T], path: Path | str, text: str) -> T:
    try:
        return msgspec.convert(tree, schema)
    except msgspec.ValidationError as error:
        raise _explain(str(error), schema, path, text) from None


def _explain(message: str, schema: type[Any], path: Path | str, text: str) -> InputError:
    what, _, place = message.partition(" - at `$")
    place = place.rstrip("`").lstrip(".")
    unknown = re.search(r"contains unknown field `([^`]+)`", what)
    missing = re.search(r"missing required field `([^`]+)`", what)
    if unknown:
        key = unknown.group(1)
        known = sorted(_field_names(schema))
        near = difflib.get_close_matches(key, known, n=1)
        remedy = (
            f"Did you mean '{near[0]}'?"
            if near
            else "Remove it, or check the spelling; known keys: " + ", ".join(known)
        )
        return InputError(f"unknown key{_inside(place)}", path=path, line=_line_of(key, text), key=key, remedy=remedy)
    if missing:
        key = missing.group(1)
        last = re.sub(r"\[[^\]]*\]", "", place).split(".")[-1]
        return InputError(
            f"is missing{_inside(place)}", path=path, line=_line_of(last, text), key=key, remedy=f"Add '{key} = …'."
        )
    key = re.sub(r"\[[^\]]*\]", "", place).split(".")[-1]
    return InputError(what[:1].lower() + what[1:], path=path, line=_line_of(key, text), key=place or None)


def _inside(place: str) -> str:
    return f" in {place}" if place else ""


def _line_of(key: str, text: str) -> int | None:
    if not key:
        return None
    word = re.escape(key)
    pattern = re.compile(rf'(^\s*\[*[^=#"]*\b{word}\b"?\s*(=|\.|\]))|([{{,]\s*"?{word}"?\s*=)')
    for number, line in enumerate(text.splitlines(), start=1):
        if pattern.search(line):
            return number
    return None


def _field_names(schema: type[Any], seen: set[type[Any]] | None = None) -> set[str]:
    """Every key that the schema knows anywhere: a wrong key is often a right one in the wrong table."""
    seen = set() if seen is None else seen
    names: set[str] = set()
    pending: list[Any] = [msgspec.inspect.type_info(schema)]
    while pending:
        info = pending.pop()
        if isinstance(info, msgspec.inspect.StructType):
            if info.cls in seen:
                continue
            seen.add(info.cls)
            for field in info.fields:
                names.add(field.encode_name)
                pending.append(field.type)
        for attribute in ("types", "item_types"):
            pending.extend(getattr(info, attribute, ()))
        for attribute in ("item_type", "key_type", "value_type"):
            inner = getattr(info, attribute, None)
            if inner is not None:
                pending.append(inner)
    return names

"""TOML text to a validated object, with errors that name the file, the line, the key and the remedy.

Used for everything a person writes: the daemon's configuration, policies, scenarios, the fleet document. ``tomllib`` parses,
``msgspec`` checks types and refuses unknown keys; this module only translates their complaints into ``InputError`` and finds
the line, because ``tomllib`` keeps no positions: it follows the place of the complaint (``check[2].path``) through the
table headers of the text, which is exact unless tables are written in an unusual order.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from pcm_p2p.errors import InputError

T = TypeVar("T")

SIZE_BYTES_MAX = 1 << 20
"""Choice: no hand-written document is larger; a larger one is refused before it is parsed."""

KEY_PARTS_MAX = 64
"""Choice: no schema here is nested deeper than four. ``tomllib`` takes the square of a key's parts: 200 kB of ``a.a.a…`` were
more than a minute."""
_LONG_KEY = re.compile(
    r"""(?<![\w"'.-])(?:(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){%d}""" % KEY_PARTS_MAX  # noqa: UP031
)


def load_toml(path: Path, schema: type[T]) -> T:
    """Read ``path`` and return a ``schema`` instance. Raises ``InputError`` for anything else."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError("there is no such file", path=path, remedy="Check the path.") from None
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", path=path, remedy="Check the path, and who may read it."
        ) from None
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
    if long := _LONG_KEY.search(text):
        line = text.count("\n", 0, long.start()) + 1
        raise InputError(
            f"has a key of more than {KEY_PARTS_MAX} parts", path=path, line=line, remedy="Write fewer dots."
        )
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        at = re.search(r"\(at line (\d+), column (\d+)\)", message)
        end = text.rstrip().count("\n") + 1 if "end of document" in message else None
        place = int(at.group(1)) if at else end
        raise InputError(
            f"is not TOML: {message}", path=path, line=place, remedy="See https://toml.io for the syntax."
        ) from None
    except RecursionError:
        raise InputError("is nested too deeply", path=path) from None
    except (ValueError, OverflowError) as error:
        # The parser checks the form of numbers and dates and leaves the rest to their constructors.
        raise InputError(f"holds a number or date that cannot be read: {error}", path=path) from None
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
        known = sorted(_known(schema, "fields"))
        near = difflib.get_close_matches(key, sorted(_known_at(place, schema)), n=1)
        near = near or difflib.get_close_matches(key, known, n=1)
        remedy = (
            f"Did you mean '{near[0]}'?"
            if near
            else "Remove it, or check the spelling; known keys: " + ", ".join(known)
        )
        line = line_of(f"{place}.{key}", text)
        return InputError(f"unknown key{_inside(place)}", path=path, line=line, key=key, remedy=remedy)
    if missing:
        key = missing.group(1)
        return InputError(
            f"is missing{_inside(place)}", path=path, line=line_of(place, text), key=key, remedy=f"Add '{key} = …'."
        )
    choice = re.match(r"Invalid (?:enum )?value '([^']*)'$", what)
    near = difflib.get_close_matches(choice.group(1), _known(schema, "choices"), n=1) if choice else []
    return InputError(
        what[:1].lower() + what[1:],
        path=path,
        line=line_of(place, text),
        key=place or None,
        remedy=f"Did you mean '{near[0]}'?" if near else None,
    )


def _inside(place: str) -> str:
    return f" in {place}" if place else ""


def line_of(place: str, text: str) -> int | None:
    """The line, counted from 1, of ``place`` (such as ``check[2].path``) in the TOML ``text``; None where it is not found.

    Each part is searched from where the part before it was found; ``name[2]`` is the third ``[[…name]]`` header from there,
    or the key ``name`` where the list is written inline.
    """
    lines, at, found = text.splitlines(), 0, None
    for part in filter(None, place.split(".")):
        name, _, index = part.rstrip("]").partition("[")
        word = re.escape(name)
        header = re.compile(rf'^\s*\[\[[^\]]*\b{word}"?\s*\]\]')
        key = re.compile(rf'(^\s*\[*[^=#"]*\b{word}\b"?\s*(=|\.|\]))|([{{,]\s*"?{word}"?\s*=)')
        headers = (
            [number for number in range(at, len(lines)) if header.search(lines[number])] if index.isdigit() else []
        )
        if headers and int(index) < len(headers):
            hit: int | None = headers[int(index)]
        else:
            hit = next((number for number in range(at, len(lines)) if key.search(lines[number])), None)
        if hit is None:
            break
        at = found = hit
    return None if found is None else found + 1


def _known_at(place: str, schema: type[Any]) -> set[str]:
    """The keys of the table at ``place``."""
    tables = _tables(msgspec.inspect.type_info(schema))
    for part in filter(None, place.split(".")):
        name = part.partition("[")[0]
        tables = [
            table
            for parent in tables
            for field in parent.fields
            if field.encode_name == name
            for table in _tables(field.type)
        ]
    return {field.encode_name for table in tables for field in table.fields}


def _tables(info: Any) -> list[msgspec.inspect.StructType]:
    """The table that ``info`` is, or those that it is a choice or a list of."""
    if isinstance(info, msgspec.inspect.StructType):
        return [info]
    inner = [*getattr(info, "types", ()), *getattr(info, "item_types", ())]
    if (item := getattr(info, "item_type", None)) is not None:
        inner.append(item)
    return [table for one in inner for table in _tables(one)]


def _known(schema: type[Any], what: Literal["fields", "choices"]) -> set[str]:
    """Every key, or every word of a fixed choice, that the schema knows anywhere: a wrong key is often a right one elsewhere."""
    seen: set[type[Any]] = set()
    known: set[str] = set()
    pending: list[Any] = [msgspec.inspect.type_info(schema)]
    while pending:
        info = pending.pop()
        if isinstance(info, msgspec.inspect.StructType):
            if info.cls in seen:
                continue
            seen.add(info.cls)
            if what == "choices" and isinstance(info.tag, str):
                known.add(info.tag)
            for field in info.fields:
                if what == "fields":
                    known.add(field.encode_name)
                pending.append(field.type)
        elif isinstance(info, msgspec.inspect.LiteralType) and what == "choices":
            known.update(value for value in info.values if isinstance(value, str))
        for attribute in ("types", "item_types"):
            pending.extend(getattr(info, attribute, ()))
        for attribute in ("item_type", "key_type", "value_type"):
            inner = getattr(info, attribute, None)
            if inner is not None:
                pending.append(inner)
    return known

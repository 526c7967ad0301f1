"""The first ``config.toml`` of a device: what its token says, and above that what was asked for when it joined."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path

from pcm_p2p.config import load_config
from pcm_p2p.durable import write_atomic
from pcm_p2p.enrolment.token import Token
from pcm_p2p.errors import InputError

Overrides = Mapping[str, Mapping[str, object]]
"""Table to key to value, as in the file."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
log = logging.getLogger(__name__)


def settings_text(token: Token, overrides: Overrides) -> str:
    """The text of the file. Raises ``InputError`` for a value that TOML cannot hold."""
    tables: dict[str, dict[str, object]] = {
        "device": {"site": token.site, "role": token.role},
        "origin": {"urls": token.origins},
        "discovery": {"seeds": token.seeds},
    }
    for table, values in overrides.items():
        tables.setdefault(table, {}).update(values)
    fleet = _string(token.fleet_name or token.fleet)  # quoted: a line break in the name would end the comment
    lines = [f"# Written when this device joined {fleet}. Every other setting has its default."]
    for table, values in tables.items():
        lines += ["", f"[{_key(table)}]"]
        lines += [f"{_key(key)} = {_value(value, f'{table}.{key}')}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def check_settings(path: Path, text: str) -> None:
    """Raise ``InputError`` if a daemon could not start with what will be in ``path``: the file there, or else ``text``."""
    if path.exists():
        load_config(path)
        if path.read_text(encoding="utf-8") != text:
            log.warning("%s exists and is kept as it is: settings of the token and of this command are not used", path)
        return
    candidate = path.with_name(f".{path.name}.candidate")
    write_atomic(candidate, text.encode())
    try:
        load_config(candidate)
    except InputError as error:
        raise InputError(error.message.replace(str(candidate), path.name), key=None, remedy=error.remedy) from None
    finally:
        candidate.unlink(missing_ok=True)


def write_settings(path: Path, text: str) -> None:
    """Write ``text`` unless there is a file. Raises ``OSError``."""
    if not path.exists():
        write_atomic(path, text.encode())


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _string(name)


def _string(text: str) -> str:
    """JSON's escapes are TOML's, but for DEL, which TOML wants escaped, and surrogates, which it does not know."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: object, place: str) -> str:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InputError("is not UTF-8", key=place) from None
        return _string(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item, place) for item in value) + "]"
    raise InputError(
        f"{value!r} cannot be set", key=place, remedy="Give text, a number, true, false, or a list of these."
    )

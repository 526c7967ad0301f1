"""Regular expressions of checks, over text that any user of the device may have written: by RE2, in linear time.

A backtracking engine is exponential for ``(a+)+`` and hopeless for the harmless-looking ``.*.*.*=``: its three stars took five
seconds over 400 characters, with the interpreter's lock held, so that a line in a user's file could stop the daemon. RE2 has
neither back references nor look-around, which is why it can promise an end. Pure.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

PATTERN_CHARACTERS_MAX = 512
"""Choice: longer expressions are programs; a check that needs one is written as two checks."""
MEMORY_BYTES_MAX = 8 << 20
"""RE2's own default for one expression: what would need more is refused when it is compiled."""


class Expression:
    """Raises ``ValueError`` for what is no expression of RE2 (https://github.com/google/re2/wiki/Syntax)."""

    def __init__(self, pattern: str) -> None:
        if len(pattern) > PATTERN_CHARACTERS_MAX:
            raise ValueError(f"the expression has {len(pattern)} characters; at most {PATTERN_CHARACTERS_MAX} are read")
        self._expression = _compiled(pattern)

    def search(self, text: str) -> str | None:
        """The first group of the first match, or the whole match where there is no group; None where nothing matches."""
        # RE2 reads UTF-8; what a file held beside it cannot be meant by a pattern.
        match = self._expression.search(text.encode("utf-8", "replace").decode("utf-8"))
        if match is None:
            return None
        found: str | None = match.group(1 if self._expression.groups else 0)
        return found or ""


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> Any:
    # Here, since most policies have no such check: RE2 and the C++ library below it are 2.3 MB resident in a daemon.
    import re2

    options = re2.Options()
    options.log_errors = False
    options.max_mem = MEMORY_BYTES_MAX
    try:
        return re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError) as error:
        said = error.args[0] if error.args else error
        reason = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
        raise ValueError(
            f"is not a regular expression of RE2 (which has no back references and no look-around): {reason}"
        ) from None

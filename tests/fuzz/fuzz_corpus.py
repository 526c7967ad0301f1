"""The corpus: inputs that reached code which none before them reached. One file a decoder, one input a line, in base64.

Kept small: short inputs, the shortest first, a few dozen a decoder. Decoders whose inputs are signed with keys that each process
makes anew keep none.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "corpus"
INPUT_BYTES_MAX = 1_500
INPUTS_MAX = 40
KEYED = ("tuf-", "proposal", "bundle", "floor")
"""Decoders (by the beginnings of their names) whose inputs mean nothing to another process."""


def load(name: str) -> list[bytes]:
    """The inputs that are kept for a decoder."""
    file = FOLDER / f"{name}.txt"
    return [base64.b64decode(line) for line in file.read_text("ascii").split()] if file.is_file() else []


def add(name: str, inputs: Iterable[bytes]) -> None:
    """Keep the shortest of what is kept and of ``inputs``."""
    if name.startswith(KEYED):
        return
    kept = {*load(name), *(one for one in inputs if 0 < len(one) <= INPUT_BYTES_MAX)}
    chosen = sorted(sorted(kept, key=lambda one: (len(one), one))[:INPUTS_MAX])
    if chosen:
        FOLDER.mkdir(exist_ok=True)
        lines = "".join(base64.b64encode(one).decode("ascii") + "\n" for one in chosen)
        (FOLDER / f"{name}.txt").write_text(lines, "ascii")

"""Where a passphrase or PIN comes from: a file, a file descriptor, or the person, never the command line or the environment.

An argument is visible in the process list and in shell history; an environment variable is inherited by every child. A file that
others may read is no better, and is refused as a key file is.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Annotated

import typer

from pcm_p2p.cli.output import note
from pcm_p2p.errors import InputError
from pcm_p2p.private_file import refuse_shared

File = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="Read the passphrase (or a token's PIN) from the first line of this file."),
]
Descriptor = Annotated[
    int | None,
    typer.Option("--passphrase-fd", help="Read the passphrase (or a token's PIN) from this open file descriptor."),
]
LENGTH_MAX = 1_024
SHORT_LENGTH = 12
"""Choice: below it, a new passphrase that a person typed gets a remark. Argon2id slows guessing down; it does not end it."""


def obtain(
    file: Path | None, descriptor: int | None, *, what: str, confirm: bool = False, word: str = "Passphrase"
) -> str:
    """The passphrase (or PIN: ``word``) for ``what``. Asks without echo when neither source is given.

    Raises ``InputError``, and ``TrustError`` for a file that others may read.
    """
    if file is not None:
        try:
            with file.open("rb") as opened:
                _refuse_shared(file, opened.fileno())
                line = opened.readline(LENGTH_MAX + 2)
        except OSError as error:
            raise InputError(
                f"cannot be read: {error.strerror}", path=file, remedy="Check the path, and who may read it."
            ) from None
    elif descriptor is not None:
        try:
            line = _line(descriptor)
        except OSError as error:
            raise InputError(f"file descriptor {descriptor} cannot be read: {error.strerror}") from None
    else:
        if not sys.stdin.isatty():
            raise InputError(
                f"a {word if word == 'PIN' else word.lower()} is needed for {what}, and there is no terminal to ask on",
                remedy="Pass --passphrase-file FILE or --passphrase-fd N.",
            )
        line = typer.prompt(f"{word} for {what}", hide_input=True, confirmation_prompt=confirm, err=True).encode()
        if confirm and len(line) < SHORT_LENGTH:
            note("That is short: whoever gets the file can try millions. Five words drawn by chance are better.")
    try:
        passphrase = line.rstrip(b"\r\n").decode("utf-8")
    except UnicodeDecodeError:
        raise InputError("the passphrase is not UTF-8", path=file) from None
    if not passphrase:
        raise InputError("the passphrase is empty", path=file, remedy="Put it on the first line.")
    if len(passphrase) > LENGTH_MAX:
        raise InputError(f"the passphrase is longer than {LENGTH_MAX} characters", path=file)
    return passphrase


def _refuse_shared(file: Path, descriptor: int) -> None:
    """A pipe is nobody else's, what the caller opened was judged by who opened it, and a service manager's credential has its own
    rules: it belongs to root, and an access list lets the service in."""
    given = str(file.parent) in ("/dev/fd", "/proc/self/fd") or str(file) == "/dev/stdin"
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and not given and (credentials is None or file.parent != Path(credentials)):
        refuse_shared(status, file, "passphrase file", "choose another passphrase")


def _line(descriptor: int) -> bytes:
    """One line, byte by byte: a pipe gives it in as many parts as it was written in, and what follows is for the next reader."""
    line = b""
    while len(line) < LENGTH_MAX + 2 and not line.endswith(b"\n") and (byte := os.read(descriptor, 1)):
        line += byte
    return line

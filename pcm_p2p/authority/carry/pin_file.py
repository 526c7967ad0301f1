"""The file in which a signer's machine remembers the fleets, by default beside the key. See ``pin``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pcm_p2p.authority.carry import pin
from pcm_p2p.authority.carry.bundle import Bundle
from pcm_p2p.authority.carry.signature_file import DetachedSignature
from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import InputError, TrustError, UntrustedBytes


def check(file: Path, bundle: Bundle) -> tuple[str, ...]:
    """Remarks for the person. Raises ``TrustError`` as ``pin.check``, or if the file is damaged."""
    return pin.check(_read(file), bundle)


def remember(file: Path, bundle: Bundle, signatures: Iterable[DetachedSignature]) -> None:
    """Durably, before a signature leaves the machine. Raises ``InputError`` if it cannot be written."""
    try:
        write_atomic(file, pin.remembering(_read(file), bundle, signatures).encoded(), mode=0o600)
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror}", path=file, remedy="Name another file with --pin."
        ) from None


def _read(file: Path) -> pin.Pin:
    try:
        return pin.decode_pin_untrusted(file.read_bytes())
    except FileNotFoundError:
        return pin.Pin()
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", path=file, remedy="Check the path, and who may read it."
        ) from None
    except UntrustedBytes as error:
        raise TrustError(
            f"{file} is damaged: {error.message}",
            remedy="Restore it; without it this machine cannot tell whether the fleet is the one that it knew.",
        ) from None

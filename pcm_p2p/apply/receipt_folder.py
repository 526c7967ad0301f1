"""Receipts: the folder of them. One small file each, written atomically after every transaction."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from urllib.parse import quote

import msgspec

from pcm_p2p.apply.receipt import Receipt
from pcm_p2p.durable import sweep_temporaries, write_atomic

log = logging.getLogger(__name__)


class Receipts:
    """The folder of receipts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._decoder = msgspec.json.Decoder(Receipt)

    def get(self, subject: str) -> Receipt | None:
        return self._read(self._path(subject))

    def all(self) -> tuple[Receipt, ...]:
        found = (self._read(path) for path in sorted(self._folder.glob("*.json")))
        return tuple(receipt for receipt in found if receipt is not None)

    def sweep(self) -> None:
        """Remove what a kill in the middle of a write left."""
        sweep_temporaries(self._folder)

    def put(self, receipt: Receipt) -> None:
        write_atomic(self._path(receipt.subject), msgspec.json.encode(receipt), mode=0o600)

    def _path(self, subject: str) -> Path:
        name = quote(subject, safe="")
        if len(name) > 180:
            name = name[:120] + hashlib.sha256(subject.encode()).hexdigest()[:32]
        return self._folder / f"{name}.json"

    def _read(self, path: Path) -> Receipt | None:
        try:
            return self._decoder.decode(path.read_bytes())
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, ValueError) as error:
            log.warning("The receipt %s cannot be read (%s); the device is observed anew.", path.name, error)
            return None

"""The queue of devices that wait for a person's word, on disk below ``enrolment/`` of the fleet folder.

::

    waiting/<device id>.json      written by the desk: who asks, with which token, since when, from where
    decisions/<device id>.json    written by a person's command: approved or denied, for which token

Each file has one writer, so commands work beside an open desk. A decision is for a device and a token: with another token, which
somebody made since, the device may ask again. An approval is used up when the device fetches its certificate; a denial stays
until its token is gone.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec

from pcm_p2p.durable import sweep_temporaries, write_atomic
from pcm_p2p.enrolment.admittance import Decision, Queue
from pcm_p2p.errors import InputError, StorageError
from pcm_p2p.ids import DeviceId

FILE_SIZE_BYTES_MAX = 4_096
HEARD_STEP_MS = 600_000
"""Choice: how exactly the time is kept at which a device asked last; each step is a write."""
UNHEARD_MS = 7 * 86_400_000
"""Choice: who did not ask for a week has given up, and leaves the queue."""

_Hex16 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
_Ms = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
_NAME = re.compile(r"([0-9a-f]{32})\.json")


class Waiting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``token`` is its id in hexadecimal; ``source`` is the address that the desk saw, a relaying neighbour's perhaps."""

    device: _Hex16
    token: _Hex16
    since_ms: _Ms
    heard_ms: _Ms
    source: Annotated[str, msgspec.Meta(max_length=64)] = ""
    schema: Literal["pcm.waiting/1"] = "pcm.waiting/1"

    @property
    def device_id(self) -> DeviceId:
        return DeviceId.parse(self.device)


class Decided(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    token: _Hex16
    decision: Decision
    at_ms: _Ms
    schema: Literal["pcm.decision/1"] = "pcm.decision/1"


T = TypeVar("T", Waiting, Decided)


def list_code(entries: Sequence[Waiting]) -> str:
    """Stands for the devices that a person was shown, in the order of coming: how many, and 40 bits of a digest of who."""
    digest = hashlib.sha256("\n".join(f"{entry.device} {entry.token}" for entry in entries).encode()).digest()
    return f"{len(entries)}-{base64.b32encode(digest[:5]).decode()}"


def shown_by(code: str, entries: Sequence[Waiting]) -> Sequence[Waiting]:
    """Those of ``entries``, in the order of coming, for which ``code`` stands: whoever came later is not among them.

    Raises ``InputError`` if it stands for another list: somebody left it meanwhile, or it is mistyped.
    """
    count, _, _ = code.partition("-")
    shown = entries[: int(count)] if count.isascii() and count.isdigit() and len(count) < 8 else ()
    if not shown or list_code(shown) != code.upper():
        raise InputError(
            f"{code!r} is not the list of who waits now", key="--shown", remedy="Look again: 'pcm-p2p enroll pending'."
        )
    return shown


class WaitingList:
    """The desk keeps one open and counts in memory what it wrote; a command opens one, reads and decides."""

    def __init__(self, enrolment: Path) -> None:
        self._waiting_folder = enrolment / "waiting"
        self._decisions_folder = enrolment / "decisions"
        self._waiting: dict[str, Waiting] = {}

    def load(self) -> None:
        """Read who waits. Files that do not read are left out; what names them is a person's matter."""
        for folder in (self._waiting_folder, self._decisions_folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._waiting = {
            name: entry
            for name in _names(self._waiting_folder)
            if (entry := _read(self._waiting_folder / f"{name}.json", Waiting)) is not None
        }

    # For the desk

    def sweep(self, now_ms: int) -> None:
        """Forget who has given up, and who was denied. Only for the desk."""
        sweep_temporaries(self._waiting_folder)
        for entry in list(self._waiting.values()):
            if now_ms - entry.heard_ms > UNHEARD_MS or self._decision(entry) == "denied":
                self._forget(entry.device)

    def forget_decisions(self, tokens: set[str]) -> None:
        """Drop what was decided for tokens other than these (hexadecimal ids). Only for the desk."""
        for name in _names(self._decisions_folder):
            decided = _read(self._decisions_folder / f"{name}.json", Decided)
            if decided is not None and decided.token not in tokens:
                (self._decisions_folder / f"{name}.json").unlink(missing_ok=True)

    def standing(self, device: DeviceId, token: bytes) -> Queue:
        """How the queue stands for a device that comes with this token."""
        name, of_token = device.hex(), token.hex()
        entry = self._waiting.get(name)
        decided = _read(self._decisions_folder / f"{name}.json", Decided)
        return Queue(
            waits=entry is not None and entry.token == of_token,
            decision=decided.decision if decided is not None and decided.token == of_token else None,
            of_token=sum(1 for other in self._waiting.values() if other.token == of_token),
            in_all=len(self._waiting),
        )

    def put(self, device: DeviceId, token: bytes, source: str, now_ms: int) -> None:
        """The device asks, for the first time or again. Raises ``OSError``."""
        entry = self._waiting.get(device.hex())
        if entry is not None and entry.token == token.hex() and now_ms - entry.heard_ms < HEARD_STEP_MS:
            return
        since_ms = entry.since_ms if entry is not None and entry.token == token.hex() else now_ms
        new = Waiting(device.hex(), token.hex(), since_ms, now_ms, source[:64])
        write_atomic(self._waiting_folder / f"{new.device}.json", msgspec.json.encode(new) + b"\n", mode=0o600)
        self._waiting[new.device] = new

    def drop(self, device: DeviceId) -> None:
        """The device was denied: it waits no longer. Raises ``OSError``."""
        self._forget(device.hex())

    def remove(self, device: DeviceId) -> None:
        """The device is a member now: nothing of it is kept. Raises ``OSError``."""
        self._forget(device.hex())
        (self._decisions_folder / f"{device.hex()}.json").unlink(missing_ok=True)

    # For people

    def entries(self) -> tuple[tuple[Waiting, Decision | None], ...]:
        """Who waits and what was decided, in the order of coming."""
        ordered = sorted(self._waiting.values(), key=lambda entry: (entry.since_ms, entry.device))
        return tuple((entry, self._decision(entry)) for entry in ordered)

    def decide(self, entry: Waiting, decision: Decision, now_ms: int) -> None:
        """Let a device in, or not; the last word counts. Raises ``StorageError``."""
        decided = Decided(entry.token, decision, now_ms)
        path = self._decisions_folder / f"{entry.device}.json"
        try:
            write_atomic(path, msgspec.json.encode(decided) + b"\n", mode=0o600)
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}", remedy="Run as the owner of the fleet folder.") from None

    # Inside

    def _decision(self, entry: Waiting) -> Decision | None:
        decided = _read(self._decisions_folder / f"{entry.device}.json", Decided)
        return decided.decision if decided is not None and decided.token == entry.token else None

    def _forget(self, device: str) -> None:
        self._waiting.pop(device, None)
        (self._waiting_folder / f"{device}.json").unlink(missing_ok=True)


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(match[1] for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)))


def _read(path: Path, kind: type[T]) -> T | None:
    with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError), path.open("rb") as file:
        return msgspec.json.decode(file.read(FILE_SIZE_BYTES_MAX), type=kind)
    return None

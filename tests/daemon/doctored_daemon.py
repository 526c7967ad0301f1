"""A daemon that kills itself at one point, or lies: ``doctored_daemon.py POINT STATE``. Run by ``fleet_of_processes``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from pcm_p2p.apply.device import Device
from pcm_p2p.compliance.carry import Carrier
from pcm_p2p.compliance.outbox import Outbox
from pcm_p2p.content.chunk import Chunk, seal
from pcm_p2p.content.keeping import assemble as assembly
from pcm_p2p.daemon.service import run_daemon
from pcm_p2p.swarm.seeder import Seeder


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL came back")


def while_assembling() -> None:
    """Everything is in the temporary file; it has not got its name."""
    write = assembly._write

    def then_die(*args: Any) -> None:
        write(*args)
        die()

    assembly._write = then_die  # type: ignore[assignment]


def while_applying() -> None:
    """The device was changed; nothing was verified or committed."""
    change = Device.change

    def then_die(self: Device, *args: Any) -> None:
        change(self, *args)
        die()

    Device.change = then_die  # type: ignore[assignment,method-assign]


def with_a_report_numbered() -> None:
    """The report is in the outbox; nobody was told."""
    add = Outbox.add

    async def then_die(self: Outbox, *args: Any) -> NoReturn:
        await add(self, *args)
        die()

    Outbox.add = then_die  # type: ignore[assignment,method-assign]


def with_a_report_taken() -> None:
    """The collector has archived it; its acknowledgement has arrived and is not stored."""

    async def dying(self: Carrier, *args: Any) -> NoReturn:
        die()

    Carrier._acknowledge = dying  # type: ignore[assignment,method-assign]


def lying() -> None:
    """A member of the fleet whose chunks are well-formed and other ones than were asked for."""

    async def other_chunk(*args: Any) -> bytes:
        return seal(Chunk.of(b"not what was asked for"))

    Seeder.serve_chunk = other_chunk  # type: ignore[assignment,method-assign]


POINTS = {
    point.__name__: point
    for point in (while_assembling, while_applying, with_a_report_numbered, with_a_report_taken, lying)
}

if __name__ == "__main__":
    POINTS[sys.argv[1]]()
    run_daemon(Path(sys.argv[2]))

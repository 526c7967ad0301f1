"""Outlives a lab that was killed, for as long as it takes to end what the lab had started; then ends itself.

Started by path with ``python -I -S`` and a pipe as standard input, in a session of its own. Lines: ``+PGID`` a process group
was started, ``-PGID`` it is gone. End of file means that the lab is no more, in order (no group is left, nothing to do) or
not: then every group still listed gets SIGTERM and, after ``GRACE_S``, SIGKILL. A number is listed only while the lab holds
the group's leader unreaped, so it cannot have been given to somebody else in between.
"""

import os
import signal
import sys
import time

GRACE_S = 5.0
LOOK_S = 0.05


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        if line[0] == "+":
            groups.add(group)
        else:
            groups.discard(group)
    end(groups)


def end(groups: set[int]) -> None:
    """SIGTERM to all of ``groups``, SIGKILL to those that are still there after ``GRACE_S``."""
    until = time.monotonic() + GRACE_S
    tell(groups, signal.SIGTERM)
    tell(groups, signal.SIGCONT)
    while groups and time.monotonic() < until:
        time.sleep(LOOK_S)
        tell(groups, 0)
    tell(groups, signal.SIGKILL)


def tell(groups: set[int], number: int) -> None:
    """Signal each group; those that are gone, or somebody else's, are forgotten."""
    for group in sorted(groups):
        try:
            os.killpg(group, number)
        except (ProcessLookupError, PermissionError):
            groups.discard(group)


if __name__ == "__main__":
    main()

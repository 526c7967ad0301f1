"""Runs in a child of the lab first: enters the namespace, binds its life to the lab's, then becomes the program.

Started by path with ``python -I -S``, so it imports nothing of the package and costs some 10 ms. Arguments: process id of the
lab, path of a network namespace or ``-``, then the program and its arguments.

Why not ``preexec_fn``: between fork and exec of a process with threads no Python code is safe.
"""

import ctypes
import os
import signal
import sys

CLONE_NEWNET = 0x4000_0000
PR_SET_PDEATHSIG = 1
CANNOT_START = 127


def main(arguments: list[str]) -> None:
    parent, namespace, program = int(arguments[0]), arguments[1], arguments[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        if namespace != "-":
            descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
            if libc.setns(descriptor, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "cannot enter the network namespace", namespace)
        # SIGTERM, not SIGKILL: the program ends what it started itself. The guard sees to those that do not listen.
        libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:
            sys.exit(CANNOT_START)  # the lab ended before the signal was armed
        os.execvp(program[0], program)  # noqa: S606 - replacing itself is its purpose
    except OSError as error:
        sys.stderr.write(f"{program[0]}: {error.strerror}: {error.filename or ''}\n")
        sys.exit(CANNOT_START)


if __name__ == "__main__":
    main(sys.argv[1:])

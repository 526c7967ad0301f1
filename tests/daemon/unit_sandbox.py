"""Runs a program as its unit confines it, as far as the kernel can do so without systemd: system calls, writable code, sockets.

Usage: ``unit_sandbox.py UNIT PROGRAM …``. System call groups are those of this machine's systemd, filters go through libseccomp
as systemd's do. Where it runs as root, capabilities that the unit does not name are dropped. Users, namespaces, addresses and
mounts are not this program's matter: what it does not know of a unit is left out.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

ALLOW = 0x7FFF_0000
REFUSE = 0x0005_0000
"""Plus the error number."""
EQUAL, MASKED_EQUAL = 4, 7
PROT_WRITE, PROT_EXEC, SHM_EXEC = 2, 4, 0o100000
PR_SET_NO_NEW_PRIVS, PR_CAPBSET_READ, PR_CAPBSET_DROP = 38, 23, 24
Rule = tuple[int, str, tuple[tuple[int, int, int, int], ...]]
"""Action, system call, and comparisons: argument, how, a, b."""


class _Compare(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def settings(unit: Path) -> dict[str, list[str]]:
    """Of the section ``[Service]``: each key with its values in order."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in unit.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@cache
def group(name: str) -> frozenset[str]:
    """The system calls of a group such as ``@system-service``."""
    words = ["systemd-analyze", "--no-pager", "syscall-filter", name]
    text = subprocess.run(words, check=True, capture_output=True, text=True, timeout=120).stdout
    members: set[str] = set()
    for line in text.splitlines()[1:]:
        entry = line.strip()
        if entry and not entry.startswith("#"):
            members |= group(entry) if entry.startswith("@") else {entry}
    return frozenset(members)


def system_calls(lines: list[str]) -> tuple[bool, frozenset[str]]:
    """What ``SystemCallFilter`` says: whether the list is of what is allowed (else of what is not), and the list."""
    allows = not lines[0].startswith("~")
    listed: set[str] = set()
    for line in lines:
        named: set[str] = set()
        for word in line.removeprefix("~").split():
            named |= group(word) if word.startswith("@") else {word}
        listed = listed | named if line.startswith("~") is not allows else listed - named
    return allows, frozenset(listed)


def capabilities() -> dict[str, int]:
    """By name in capital letters, as units write them."""
    words = ["systemd-analyze", "--no-pager", "capability"]
    text = subprocess.run(words, check=True, capture_output=True, text=True, timeout=120).stdout
    return {
        name.upper(): int(number) for name, number in (line.split() for line in text.splitlines()[1:] if line.strip())
    }


class Filters:
    """libseccomp."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libseccomp.so.2")
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._library.seccomp_init.argtypes = [ctypes.c_uint32]
        self._library.seccomp_load.argtypes = [ctypes.c_void_p]
        self._library.seccomp_rule_add_array.argtypes = [
            ctypes.c_void_p,
            ctypes.c_uint32,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_void_p,
        ]

    def load(self, default: int, rules: list[Rule]) -> None:
        context = self._library.seccomp_init(default)
        for action, name, comparisons in rules:
            number = self._library.seccomp_syscall_resolve_name(name.encode())
            if number < 0:
                continue  # not on this architecture
            array = (_Compare * max(1, len(comparisons)))(*(_Compare(*row) for row in comparisons))
            status = self._library.seccomp_rule_add_array(context, action, number, len(comparisons), array)
            assert status == 0, (name, status)
        status = self._library.seccomp_load(context)
        assert status == 0, status


def confine(unit: Path) -> None:
    """Put the process under what ``unit`` says; for good."""
    said = settings(unit)
    library = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() == 0:
        kept = set(" ".join(said["CapabilityBoundingSet"]).split())
        for name, number in capabilities().items():
            if name not in kept and library.prctl(PR_CAPBSET_READ, number, 0, 0, 0) == 1:
                assert library.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) == 0, name
    if said.get("NoNewPrivileges") == ["yes"]:
        assert library.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    filters = Filters()
    families = said.get("RestrictAddressFamilies", [""])[0].split()
    known = {int(getattr(socket, name)) for name in families}
    refused = [number for number in range(46) if number not in known]
    filters.load(
        ALLOW,
        [(REFUSE + errno.EAFNOSUPPORT, "socket", ((0, EQUAL, number, 0),)) for number in refused] if families else [],
    )
    if said.get("MemoryDenyWriteExecute") == ["yes"]:
        both = PROT_WRITE | PROT_EXEC
        filters.load(
            ALLOW,
            [
                (REFUSE + errno.EPERM, "mmap", ((2, MASKED_EQUAL, both, both),)),
                (REFUSE + errno.EPERM, "mprotect", ((2, MASKED_EQUAL, PROT_EXEC, PROT_EXEC),)),
                (REFUSE + errno.EPERM, "pkey_mprotect", ((2, MASKED_EQUAL, PROT_EXEC, PROT_EXEC),)),
                (REFUSE + errno.EPERM, "shmat", ((2, MASKED_EQUAL, SHM_EXEC, SHM_EXEC),)),
            ],
        )
    allows, calls = system_calls(said["SystemCallFilter"])
    refuse = REFUSE + errno.EPERM
    default, action = (refuse, ALLOW) if allows else (ALLOW, refuse)
    filters.load(default, [(action, name, ()) for name in sorted(calls)])


def main() -> None:
    confine(Path(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()

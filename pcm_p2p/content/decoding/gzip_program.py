"""The program ``gzip`` of this device: found at fixed places, tried once, run with a deadline and without an environment.

Only GNU gzip ends its blocks where GNU gzip does, so what is found is believed after it packed a sample as that does: busybox's,
Apple's, pigz and the accelerated ones of some mainframes give other bytes, which are as good for everything else.

It reads and writes pipes, so it ends with who started it: its input ends, and nobody takes its output.
"""

from __future__ import annotations

import hashlib
import os
import selectors
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from pcm_p2p.content.delta.repacking import CannotPack, Pack

PLACES = ("/usr/bin/gzip", "/bin/gzip")
"""Never by PATH, which others may have set."""
TIMEOUT_S = 60.0
"""Choice: for all members of a delta together; half of what decoding may take (``decoder.TIMEOUT_S``). 16 MiB take one second."""
PROBE_TIMEOUT_S = 10.0
_HEADER_BYTES = 10
"""Without a name (-n)."""
_STEP_BYTES = 64 << 10
_SAMPLE_SHA256 = "d0a32789b6ac1efb90d651118196ef45c287925cbc9bfe212ba785e49394cb0a"
"""What GNU gzip 1.12 makes of the sample at level 9; its deflate has not changed since 1.2.4 (1993)."""


class Gzip:
    """The program at ``path``."""

    def __init__(self, path: str) -> None:
        self.path = path

    def packer(self, timeout_s: float = TIMEOUT_S) -> Pack:
        """What packs the members of one delta, in ``timeout_s`` seconds together."""
        left_s = timeout_s

        def pack(plain: bytes | memoryview, level: int) -> bytes:
            nonlocal left_s
            begun = time.monotonic()
            try:
                return _run(self.path, plain, level, left_s)
            finally:
                left_s -= time.monotonic() - begun

        return pack


def find_gzip(places: Sequence[str] = PLACES) -> Gzip:
    """The first one that is there, if it packs as GNU gzip does. Raises ``CannotPack`` and says what is wrong."""
    path = next((place for place in places if Path(place).exists()), "")
    if not path:
        raise CannotPack(f"there is no {' and no '.join(places)}")
    gzip = Gzip(path)
    if hashlib.sha256(gzip.packer(PROBE_TIMEOUT_S)(sample(), 9)).hexdigest() != _SAMPLE_SHA256:
        raise CannotPack(f"{path} does not pack as GNU gzip does")
    return gzip


def sample() -> bytes:
    """64 kB with everything in it that packers do differently: long and short matches, literals, several blocks; and, in the last
    quarter, so many places to look for a match that every level stops at another one."""
    seed, words = b"", list[bytes]()
    for number in range(640):
        seed = hashlib.sha256(seed + b"gzip").digest()
        words.append(seed[: 3 + seed[0] % 5].hex().encode() if number % 4 else seed)
    picks = hashlib.shake_128(b"gzip").digest(2 * 8192)
    text = (words[int.from_bytes(picks[at : at + 2], "big") % len(words)] for at in range(0, len(picks), 2))
    binary = hashlib.shake_128(b"chains").digest(16 << 10)
    return b" ".join(text)[: 48 << 10] + bytes(97 + (byte & 1) for byte in binary)


def _run(path: str, plain: bytes | memoryview, level: int, timeout_s: float) -> bytes:
    """What the program makes of ``plain`` at ``level``, without the header. Raises ``CannotPack``."""
    try:
        process = subprocess.Popen(
            [path, "-n", f"-{level}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            # GZIP in it would be options; LD_PRELOAD would be worse.
            env={},
            cwd="/",
        )
    except OSError as error:
        raise CannotPack(f"{path} cannot be started: {error.strerror}") from None
    ends_s = time.monotonic() + timeout_s
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        packed = _exchange(path, process.stdin, process.stdout, plain, ends_s)
        status = process.wait(max(0.0, ends_s - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise _too_slow(path) from None
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
    if status or len(packed) <= _HEADER_BYTES:
        raise CannotPack(f"{path} ended with status {status}")
    return bytes(packed[_HEADER_BYTES:])


def _exchange(path: str, jobs: IO[bytes], answers: IO[bytes], plain: bytes | memoryview, ends_s: float) -> bytearray:
    """Write and read as the program does, until it says no more. Raises ``CannotPack``."""
    left, packed = memoryview(plain), bytearray()
    # Bytes that do not get smaller get larger by five for every 32 KiB.
    packed_bytes_max = len(plain) + len(plain) // 1024 + 1024
    with selectors.DefaultSelector() as selector:
        for pipe, event in ((jobs, selectors.EVENT_WRITE), (answers, selectors.EVENT_READ)):
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, event)
        while True:
            ready = selector.select(max(0.0, ends_s - time.monotonic()))
            if not ready:
                raise _too_slow(path)
            for key, _ in ready:
                if key.fileobj is jobs:
                    left = left[_written(jobs, left[:_STEP_BYTES]) :]
                    if not left:
                        selector.unregister(jobs)
                        jobs.close()
                elif piece := os.read(answers.fileno(), _STEP_BYTES):
                    packed += piece
                else:
                    return packed
            if len(packed) > packed_bytes_max:
                raise CannotPack(f"{path} gives more bytes than it was given")


def _written(jobs: IO[bytes], data: memoryview) -> int:
    try:
        return os.write(jobs.fileno(), data)
    except BrokenPipeError:
        return len(data)  # how it ended is asked later
    except BlockingIOError:
        return 0


def _too_slow(path: str) -> CannotPack:
    return CannotPack(f"{path} did not answer in time and was killed")

"""The roster file: remembered over a restart, and never a reason not to start."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from neighbourhood import device_id

from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.gossip.roster_file import (
    INCARNATION_MAX,
    SIZE_BYTES_MAX,
    Remembered,
    RosterFile,
    decode_untrusted,
    next_incarnation,
)
from pcm_p2p.wire.messages import RosterEntry

ENTRY = RosterEntry(bytes(device_id(1)), "10.0.0.5", 8741, 7, 0, "berlin", 8)


def test_what_was_saved_is_loaded_and_private(tmp_path: Path) -> None:
    path = tmp_path / "run" / "roster.msgpack"
    typed = msgspec.structs.replace(ENTRY, device=device_id(1))
    RosterFile(path).save(Remembered(12, 8741, (typed,)))
    assert RosterFile(path).load() == Remembered(12, 8741, (ENTRY,))
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_unchanged_memory_is_not_written_again(tmp_path: Path) -> None:
    file = RosterFile(tmp_path / "roster")
    file.save(Remembered(1, 2, (ENTRY,)))
    (tmp_path / "roster").unlink()
    file.save(Remembered(1, 2, (ENTRY,)))
    assert not (tmp_path / "roster").exists()


NOT_UTF8 = msgspec.msgpack.encode(Remembered(1, 2, (ENTRY,)), enc_hook=bytes).replace(
    ENTRY.host.encode(), b"\xff" * len(ENTRY.host)
)


@pytest.mark.parametrize("content", [b"", b"\x93\x01", b"garbage", bytes(SIZE_BYTES_MAX + 1), NOT_UTF8])
def test_a_torn_or_foreign_file_counts_as_absent(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "roster").write_bytes(content)
    assert RosterFile(tmp_path / "roster").load() == Remembered()
    assert "is ignored" in caplog.text


def test_a_place_that_cannot_be_written_is_logged_not_raised(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    RosterFile(tmp_path / "run" / "roster").save(Remembered(1, 2))
    assert "cannot be written" in caplog.text


def test_no_path_remembers_nothing() -> None:
    file = RosterFile(None)
    file.save(Remembered(5, 5))
    assert file.load() == Remembered()


@pytest.mark.parametrize(
    ("remembered", "wall_clock_s", "expected"),
    [
        (0, 1_700_000_000, 1_700_000_000),
        (1_700_000_000, 1_700_000_000, 1_700_000_001),
        (1_700_000_000, 0, 1_700_000_001),
        (0, -5, 1),
        (INCARNATION_MAX, 1, INCARNATION_MAX),
        (5, 1 << 40, INCARNATION_MAX),
    ],
)
def test_incarnations_grow_even_where_the_clock_or_the_file_was_lost(
    remembered: int, wall_clock_s: int, expected: int
) -> None:
    assert next_incarnation(remembered, wall_clock_s) == expected


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_noise_gives_a_memory_or_untrusted_bytes(noise: bytes) -> None:
    with contextlib.suppress(UntrustedBytes):
        assert isinstance(decode_untrusted(noise), Remembered)

"""The program gzip of a device: believed when it packs as GNU gzip does, and never waited for without an end."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from content_samples import noise, text
from gzip_samples import program
from hypothesis import given, settings
from hypothesis import strategies as st

from pcm_p2p.content.decoding import gzip_program
from pcm_p2p.content.decoding.gzip_program import PLACES, Gzip, find_gzip, sample
from pcm_p2p.content.delta.gzip_members import find_members, inflate_untrusted
from pcm_p2p.content.delta.repacking import CannotPack

HERE = next((place for place in PLACES if Path(place).exists()), "")
needs_gnu_gzip = pytest.mark.skipif(not HERE, reason="there is no gzip here")


@needs_gnu_gzip
def test_the_gzip_of_this_machine_is_found_and_packs_members() -> None:
    gzip = find_gzip()
    assert gzip.path == HERE
    pack = gzip.packer()
    for level in (1, 6, 9):
        packed = pack(text(50_000), level)
        assert inflate_untrusted(packed, 50_000) == text(50_000)
        assert pack(text(50_000), level) == packed


@needs_gnu_gzip
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 400_000), st.sampled_from((1, 6, 9)), st.booleans())
def test_any_member_that_it_made_from_a_file_is_made_again_from_a_pipe(size: int, level: int, dense: bool) -> None:
    plain = noise(size) if dense else text(size)
    packed = Gzip(HERE).packer()(plain, level)
    header = b"\x1f\x8b\x08\0\0\0\0\0" + bytes([{9: 2, 1: 4}.get(level, 0), 3])
    assert inflate_untrusted(packed, size) == plain
    assert [each.plain_bytes for each in find_members(header + packed)] == [size] * (len(packed) >= 512)


@needs_gnu_gzip
def test_the_environment_of_the_caller_is_not_the_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """GZIP holds options for it, and PATH would find another one."""
    program(tmp_path, "echo not gzip")
    monkeypatch.setenv("GZIP", "-1 --rsyncable")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_gzip().path == HERE


def test_without_a_gzip_the_reason_names_where_it_was_looked_for() -> None:
    with pytest.raises(CannotPack, match=r"^there is no /nowhere/gzip and no /nor/here/gzip\Z"):
        find_gzip(("/nowhere/gzip", "/nor/here/gzip"))


@pytest.mark.parametrize(
    ("script", "why"),
    [
        pytest.param("exec /usr/bin/gzip -n -8", "does not pack as GNU gzip does", id="packs a little less"),
        pytest.param("exec /usr/bin/gzip -n -9 --rsyncable", "does not pack as GNU gzip does", id="packs otherwise"),
        pytest.param("cat", "does not pack as GNU gzip does", id="does not pack"),
        pytest.param("exit 0", "ended with status 0", id="says nothing"),
        pytest.param("head -c 1000 > /dev/null; exit 3", "ended with status 3", id="dies"),
        pytest.param("cat; exit 1", "ended with status 1", id="fails at the end"),
        pytest.param("kill -9 $$", "ended with status -9", id="is killed"),
        pytest.param("exec cat /dev/zero", "more bytes than it was given", id="never ends to speak"),
        pytest.param("exec sleep 60", "did not answer in time", id="hangs"),
        pytest.param("exec >&-; exec sleep 60", "did not answer in time", id="closes its output and hangs"),
    ],
)
def test_another_program_at_its_place_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str
) -> None:
    monkeypatch.setattr(gzip_program, "PROBE_TIMEOUT_S", 0.3 if "sleep" in script else 20.0)
    begun = time.monotonic()
    with pytest.raises(CannotPack, match=why):
        find_gzip((str(program(tmp_path, f"PATH=/usr/bin:/bin\n{script}")),))
    assert time.monotonic() - begun < 15


def test_a_program_that_may_not_be_run_is_none(tmp_path: Path) -> None:
    path = program(tmp_path, "exit 0")
    path.chmod(0o644)
    with pytest.raises(CannotPack, match="cannot be started: Permission denied"):
        find_gzip((str(path),))


@pytest.mark.skipif(not shutil.which("busybox"), reason="there is no busybox here")
def test_busybox_is_told_apart(tmp_path: Path) -> None:
    path = program(tmp_path, 'exec busybox gzip "$@"')
    with pytest.raises(CannotPack, match="does not pack as GNU gzip does"):
        find_gzip((str(path),))


@needs_gnu_gzip
def test_all_members_of_a_delta_share_one_deadline(tmp_path: Path) -> None:
    pack = Gzip(str(program(tmp_path, 'PATH=/usr/bin:/bin; sleep 0.2; exec gzip "$@"'))).packer(timeout_s=0.5)
    assert len(pack(b"x", 9)) > 8
    with pytest.raises(CannotPack, match="did not answer in time"):
        [pack(b"x", 9) for _ in range(5)]


def test_nothing_is_left_of_a_program_that_was_given_up(tmp_path: Path) -> None:
    with pytest.raises(CannotPack):
        Gzip(str(program(tmp_path, f"echo $$ > {tmp_path}/pid; exec /bin/sleep 60"))).packer(timeout_s=0.5)(b"x", 9)
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_sample_is_large_enough_to_have_several_blocks() -> None:
    assert len(sample()) == 64 << 10
    assert sample() == sample()

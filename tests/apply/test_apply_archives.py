"""Archives: versions beside each other, one atomic switch, and hostile members refused."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from apply_kit import Artifacts, picture, tar_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pcm_p2p.apply.plan import plan
from pcm_p2p.apply.providers.archive import ArchiveProvider
from pcm_p2p.apply.providers.archive_members import unpack_untrusted
from pcm_p2p.apply.root import Root
from pcm_p2p.apply.step import SwitchArchive
from pcm_p2p.errors import ApplyError, UntrustedBytes
from pcm_p2p.policy.desired import Change
from pcm_p2p.policy.resource import ArchiveResource

RESOURCE = ArchiveResource(artifact="app.tar", name="app", path="/opt/app")


@pytest.fixture
def provider(tmp_path: Path) -> ArchiveProvider:
    (tmp_path / "work").mkdir()
    (tmp_path / "root").mkdir()
    return ArchiveProvider(Root(tmp_path / "root"), tmp_path / "work", unpacked_bytes_max=1 << 20)


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    return Artifacts(tmp_path / "staged")


def step_for(provider: ArchiveProvider, version: str, artifacts: Artifacts) -> SwitchArchive:
    seen = provider.observe(RESOURCE, version, artifacts.sha256_of["app.tar"])
    (step,) = plan(Change("app", version, (RESOURCE,)), (seen,)).steps
    assert isinstance(step, SwitchArchive)
    return step


def apply(provider: ArchiveProvider, version: str, artifacts: Artifacts) -> SwitchArchive:
    step = step_for(provider, version, artifacts)
    provider.change(step, artifacts("app.tar"))
    return step


def test_a_version_is_unpacked_beside_and_the_link_switched(
    tmp_path: Path, provider: ArchiveProvider, artifacts: Artifacts
) -> None:
    artifacts.put_tar("app.tar", {"bin/app": b"one", "./share/doc": b"text"})
    first = apply(provider, "1", artifacts)
    current = tmp_path / "root/opt/app/current"
    assert current.readlink() == Path("app-1")
    assert (current / "bin/app").read_bytes() == b"one"
    before = picture(tmp_path / "root")
    artifacts.put_tar("app.tar", {"bin/app": b"two"})
    second = apply(provider, "2", artifacts)
    assert (current / "bin/app").read_bytes() == b"two"
    for _ in range(2):
        provider.undo(second)
        assert picture(tmp_path / "root") == before
    for _ in range(2):
        provider.undo(first)
        assert list((tmp_path / "root").iterdir()) == []


def test_the_same_version_with_other_bytes_is_replaced_and_can_come_back(
    tmp_path: Path, provider: ArchiveProvider, artifacts: Artifacts
) -> None:
    artifacts.put_tar("app.tar", {"app": b"one"})
    apply(provider, "1", artifacts)
    before = picture(tmp_path / "root")
    artifacts.put_tar("app.tar", {"app": b"other"})
    step = apply(provider, "1", artifacts)
    assert step.replaces
    assert (tmp_path / "root/opt/app/current/app").read_bytes() == b"other"
    provider.undo(step)
    assert picture(tmp_path / "root") == before
    apply(provider, "1", artifacts)
    provider.commit(step)
    assert sorted(path.name for path in (tmp_path / "root/opt/app").iterdir()) == ["app-1", "current"]


def test_half_an_unpacking_is_swept(tmp_path: Path, provider: ArchiveProvider, artifacts: Artifacts) -> None:
    artifacts.put_tar("app.tar", {"app": b"one"})
    step = step_for(provider, "1", artifacts)
    (tmp_path / "root/opt/app/.app-1.0123abcd.pcm-part/bin").mkdir(parents=True)
    provider.undo(step)
    assert list((tmp_path / "root").iterdir()) == []


def test_a_refused_archive_leaves_nothing_that_counts(
    tmp_path: Path, provider: ArchiveProvider, artifacts: Artifacts
) -> None:
    artifacts.put("app.tar", tar_of(("good", b"x"), ("../evil", b"x")))
    step = step_for(provider, "1", artifacts)
    with pytest.raises(ApplyError, match=r"app\.tar is refused"):
        provider.change(step, artifacts("app.tar"))
    provider.undo(step)
    assert list((tmp_path / "root").iterdir()) == []
    assert not (tmp_path / "evil").exists()


def test_only_what_was_hashed_is_unpacked(tmp_path: Path, provider: ArchiveProvider, artifacts: Artifacts) -> None:
    artifacts.put_tar("app.tar", {"app": b"one"})
    step = step_for(provider, "1", artifacts)
    (artifacts.folder / "app.tar").write_bytes(tar_of(("app", b"evil")))
    with pytest.raises(ApplyError, match="has changed since it was verified"):
        provider.change(step, artifacts("app.tar"))


def test_an_old_version_goes_but_never_the_one_in_use(
    tmp_path: Path, provider: ArchiveProvider, artifacts: Artifacts
) -> None:
    for version in ("1", "2"):
        artifacts.put_tar("app.tar", {"app": version.encode()})
        apply(provider, version, artifacts)
    provider.forget("opt/app", "app-2", "current")
    assert (tmp_path / "root/opt/app/app-2").is_dir()
    provider.forget("opt/app", "app-1", "current")
    assert not (tmp_path / "root/opt/app/app-1").exists()
    (tmp_path / "root/opt/app/mine").mkdir()
    provider.forget("opt/app", "mine", "current")
    assert (tmp_path / "root/opt/app/mine").is_dir(), "a folder that we did not make is not ours to remove"


def test_something_else_under_the_name_of_the_link_is_not_touched(
    tmp_path: Path, provider: ArchiveProvider, artifacts: Artifacts
) -> None:
    (tmp_path / "root/opt/app/current").mkdir(parents=True)
    with pytest.raises(ApplyError, match="is not a link"):
        provider.observe(RESOURCE, "1", "00")


def member(name: str, kind: bytes, target: str = "", **more: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    for key, value in more.items():
        setattr(info, key, value)
    return info


HOSTILE = {
    "climbs": (("../evil", b"x"),),
    "absolute": (("/evil", b"x"),),
    "climbs inside": (("a/../../evil", b"x"),),
    "link up": (member("a", tarfile.SYMTYPE, ".."),),
    "link absolute": (member("a", tarfile.SYMTYPE, "/etc/passwd"),),
    "link deep up": (member("a/b", tarfile.SYMTYPE, "../../x"),),
    "link through a link": (member("a/d", tarfile.SYMTYPE, ".."), member("a/b/e", tarfile.SYMTYPE, "../d/../x")),
    "link and a file below it": (member("a", tarfile.SYMTYPE, "b"), ("a/x", b"x")),
    "hard link out": (member("a", tarfile.LNKTYPE, "../../evil"),),
    "hard link to nothing": (member("a", tarfile.LNKTYPE, "b"),),
    "hard link to a link": (member("l", tarfile.SYMTYPE, "x"), member("a", tarfile.LNKTYPE, "l")),
    "device": (member("a", tarfile.CHRTYPE, devmajor=1, devminor=3),),
    "block": (member("a", tarfile.BLKTYPE),),
    "pipe": (member("a", tarfile.FIFOTYPE),),
    "twice": (("a", b"1"), ("a", b"2")),
    "file as folder": (("a", b"1"), ("a/b", b"2")),
    "folder as file": (("a/b", b"1"), ("a", b"2")),
    "bomb": (("a", bytes(600_000)), ("b", bytes(600_000))),
}


@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_members_are_refused_and_reach_nothing_outside(
    tmp_path: Path, members: tuple[tarfile.TarInfo, ...]
) -> None:
    folder = tmp_path / "deep/folder"
    folder.mkdir(parents=True)
    (tmp_path / "deep/marker").write_text("untouched")
    with pytest.raises(UntrustedBytes):
        unpack_untrusted(io.BytesIO(tar_of(*members)), folder, unpacked_bytes_max=1 << 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep"]
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["folder", "marker"]


def test_links_inside_are_kept_and_dangerous_modes_are_not(tmp_path: Path) -> None:
    data = tar_of(
        ("lib/libx.so.1", b"code"),
        member("lib/libx.so", tarfile.SYMTYPE, "libx.so.1"),
        member("bin/tool", tarfile.SYMTYPE, "../lib/libx.so.1"),
        member("lib/same", tarfile.LNKTYPE, "lib/libx.so.1"),
        member("suid", tarfile.REGTYPE, mode=0o6777),
        member("empty", tarfile.DIRTYPE),
    )
    unpack_untrusted(io.BytesIO(data), tmp_path, unpacked_bytes_max=1 << 20)
    assert (tmp_path / "bin/tool").read_bytes() == (tmp_path / "lib/libx.so").read_bytes() == b"code"
    assert (tmp_path / "lib/same").stat().st_ino == (tmp_path / "lib/libx.so.1").stat().st_ino
    assert (tmp_path / "suid").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "empty").is_dir()


def zip_of(*members: tuple[str, bytes, int]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as container:
        for name, data, mode in members:
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, mode << 16
            container.writestr(info, data, zipfile.ZIP_DEFLATED)
    return target.getvalue()


def test_a_zip_is_an_archive_too(tmp_path: Path) -> None:
    data = zip_of(
        ("a/run", b"x", stat.S_IFREG | 0o755),
        ("a/link", b"run", stat.S_IFLNK | 0o777),
        ("b", b"y", stat.S_IFREG | 0o664),
    )
    unpack_untrusted(io.BytesIO(data), tmp_path, unpacked_bytes_max=1 << 20)
    assert (tmp_path / "a/link").read_bytes() == b"x"
    assert (tmp_path / "a/run").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    "members",
    [
        (("../evil", b"x", 0),),
        (("a", b"/etc", stat.S_IFLNK | 0o777),),
        (("a", b"", stat.S_IFCHR | 0o666),),
        (("a", bytes(1 << 21), 0),),
    ],
)
def test_a_hostile_zip_is_refused(tmp_path: Path, members: tuple[tuple[str, bytes, int], ...]) -> None:
    with pytest.raises(UntrustedBytes):
        unpack_untrusted(io.BytesIO(zip_of(*members)), tmp_path, unpacked_bytes_max=1 << 20)


GOOD = (
    tar_of(("a/b", b"x" * 700), member("l", tarfile.SYMTYPE, "a/b")),
    zip_of(("a/b", b"x" * 700, 0o100644), ("l", b"a/b", 0o120777)),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    good=st.sampled_from(GOOD),
    noise=st.lists(st.tuples(st.integers(0, 4_000), st.integers(0, 255)), max_size=6),
    cut=st.integers(1, 12_000),
    free=st.one_of(st.none(), st.binary(max_size=600)),
)
def test_noise_is_refused_or_unpacked_and_never_anything_else(
    tmp_path_factory: pytest.TempPathFactory, good: bytes, noise: list[tuple[int, int]], cut: int, free: bytes | None
) -> None:
    data = bytearray(good)
    for at, value in noise:
        data[at % len(data)] = value
    folder = tmp_path_factory.mktemp("noise")
    try:
        unpack_untrusted(io.BytesIO(free if free is not None else bytes(data)[:cut]), folder, unpacked_bytes_max=4_096)
    except UntrustedBytes:
        return


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_header_that_goes_on_for_ever_is_refused_before_it_is_read(tmp_path: Path, kind: bytes) -> None:
    """``tarfile`` would keep all of it: 14 MB of gzip became 3.1 GB of memory."""
    head = tarfile.TarInfo("x")
    head.type, head.size = kind, 1 << 30
    data = gzip.compress(head.tobuf(tarfile.USTAR_FORMAT) + bytes(4 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(UntrustedBytes, match="bytes of headers"):
            unpack_untrusted(io.BytesIO(data), tmp_path, unpacked_bytes_max=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()

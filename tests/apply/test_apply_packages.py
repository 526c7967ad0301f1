"""Packages: the real dpkg in a private root, as whoever runs the tests."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from apply_kit import (
    HAS_DPKG,
    Artifacts,
    authorised,
    make_applier,
    make_device,
    make_transaction,
    nothing_before,
    picture,
)

from pcm_p2p.apply.command import Completed, run
from pcm_p2p.apply.providers.package import PackageProvider
from pcm_p2p.apply.root import Root
from pcm_p2p.apply.step import InstallPackages
from pcm_p2p.errors import ApplyError
from pcm_p2p.policy.resource import FileResource, PackageResource

pytestmark = [pytest.mark.debian, pytest.mark.skipif(not HAS_DPKG, reason="dpkg and dpkg-deb are not here")]


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    return Artifacts(tmp_path / "staged")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def listed(root: Path) -> dict[str, str]:
    answer = run(
        ("dpkg-query", f"--admindir={root}/var/lib/dpkg", "-W", "-f", "${Package} ${Version} ${db:Status-Abbrev}\n"),
        20.0,
    )
    return {row.split()[0]: " ".join(row.split()[1:]) for row in answer.text.splitlines()}


def payload(root: Path) -> dict[str, str]:
    return {name: what for name, what in picture(root).items() if name.startswith("usr")}


def test_two_packages_are_installed_upgraded_and_rolled_back(tmp_path: Path, root: Path, artifacts: Artifacts) -> None:
    host_before = run(("dpkg-query", "-W"), 20.0).output
    for version in ("1", "2"):
        artifacts.put_deb(f"a_{version}.deb", "pcm-test-a", version, {"usr/share/a/x": version})
        artifacts.put_deb(f"b_{version}.deb", "pcm-test-b", version, {"usr/share/b/x": version})

    def previous(name: str, version: str, _architecture: str) -> Path:
        return artifacts.folder / f"{name.removeprefix('pcm-test-')}_{version}.deb"

    transaction = make_transaction(tmp_path / "apply", make_device(Root(root), tmp_path / "work", previous=previous))
    first = authorised(*(PackageResource(artifact=f"{name}_1.deb") for name in "ab"))
    outcome = transaction.run(*first, artifacts)
    assert (outcome.verdict, outcome.error) == ("done", "")
    assert outcome.steps == ("install pcm-test-a 1, pcm-test-b 1",)
    assert listed(root) == {"pcm-test-a": "1 ii", "pcm-test-b": "1 ii"}
    before = payload(root)
    second = authorised(*(PackageResource(artifact=f"{name}_2.deb") for name in "ab"), version="2")
    assert transaction.run(*second, artifacts).verdict == "done"
    assert listed(root) == {"pcm-test-a": "2 ii", "pcm-test-b": "2 ii"}
    assert transaction.run(*first, artifacts).verdict == "done"
    # The staged file is not what was signed, so the upgrade that came before it is taken back.
    artifacts.put("tool", b"good").write_bytes(b"evil")
    bad = FileResource(path="/usr/share/tool", artifact="tool")
    third = authorised(*(PackageResource(artifact=f"{name}_2.deb") for name in "ab"), bad, version="2")
    outcome = transaction.run(*third, artifacts)
    assert outcome.verdict == "rolled_back"
    assert outcome.steps == ("install pcm-test-a 2, pcm-test-b 2", "write /usr/share/tool")
    assert listed(root) == {"pcm-test-a": "1 ii", "pcm-test-b": "1 ii"}
    assert payload(root) == before
    assert run(("dpkg-query", "-W"), 20.0).output == host_before, "the machine itself was not touched"


def test_a_failing_second_package_takes_the_first_one_back(tmp_path: Path, root: Path, artifacts: Artifacts) -> None:
    artifacts.put_deb("a.deb", "pcm-test-a", "1", {"usr/share/same": "a"})
    artifacts.put_deb("b.deb", "pcm-test-b", "1", {"usr/share/same": "b"})
    transaction = make_transaction(tmp_path / "apply", make_device(Root(root), tmp_path / "work"))
    outcome = transaction.run(
        *authorised(PackageResource(artifact="a.deb"), PackageResource(artifact="b.deb")), artifacts
    )
    assert outcome.verdict == "rolled_back"
    assert "trying to overwrite" in outcome.error
    assert listed(root) == {}
    assert payload(root) == {}


def test_what_cannot_be_rolled_back_is_parked_and_says_what_to_do(
    tmp_path: Path, root: Path, artifacts: Artifacts
) -> None:
    artifacts.put_deb("a1.deb", "pcm-test-a", "1", {"usr/share/a": "1"})
    artifacts.put_deb("a2.deb", "pcm-test-a", "2", {"usr/share/a": "2"})
    artifacts.put_deb("b.deb", "pcm-test-b", "1", {"usr/share/a": "b"})
    transaction = make_transaction(tmp_path / "apply", make_device(Root(root), tmp_path / "work"))
    assert transaction.run(*authorised(PackageResource(artifact="a1.deb")), artifacts).verdict == "done"
    both = authorised(PackageResource(artifact="a2.deb"), PackageResource(artifact="b.deb"), version="2")
    outcome = transaction.run(*both, artifacts)
    assert outcome.verdict == "parked"
    assert "no .deb of it is at hand" in outcome.error
    assert "reset the change" in outcome.remedy
    assert "pcm-test-b" not in listed(root), "the rest was still taken back"
    assert transaction.run(*both, artifacts).attempts == 1, "a parked change is not tried again"


def test_a_package_with_maintainer_scripts_is_refused_in_a_private_root(
    tmp_path: Path, root: Path, artifacts: Artifacts
) -> None:
    witness = tmp_path / "ran"
    artifacts.put_deb("a.deb", "pcm-test-a", "1", {"usr/share/a": "1"}, postinst=f"touch {witness}", prerm="true")
    transaction = make_transaction(tmp_path / "apply", make_device(Root(root), tmp_path / "work"))
    outcome = transaction.run(*authorised(PackageResource(artifact="a.deb")), artifacts)
    assert outcome.verdict == "rolled_back"
    assert "brings maintainer scripts (postinst, prerm), which in a private root" in outcome.error
    assert "without scripts" in outcome.remedy
    assert not witness.exists()
    assert list(root.iterdir()) == [], "nothing was begun"


def test_something_that_is_no_package_is_refused(tmp_path: Path, root: Path, artifacts: Artifacts) -> None:
    artifacts.put("a.deb", b"!<arch>\nrubbish")
    transaction = make_transaction(tmp_path / "apply", make_device(Root(root), tmp_path / "work"))
    outcome = transaction.run(*authorised(PackageResource(artifact="a.deb")), artifacts)
    assert (outcome.verdict, "is no Debian package" in outcome.error) == ("rolled_back", True)


def test_conffiles_left_over_from_before_do_not_count_as_installed(
    tmp_path: Path, root: Path, artifacts: Artifacts
) -> None:
    artifacts.put_deb(
        "a.deb", "pcm-test-a", "1", {"usr/share/a": "1", "etc/a.conf": "x", "DEBIAN/conffiles": "/etc/a.conf\n"}
    )
    transaction = make_transaction(tmp_path / "apply", make_device(Root(root), tmp_path / "work"))
    change = authorised(PackageResource(artifact="a.deb"))
    assert transaction.run(*change, artifacts).verdict == "done"
    removed = run(("dpkg", f"--root={root}", "--force-not-root", f"--log={root}/log", "--remove", "pcm-test-a"), 30.0)
    assert removed.status == 0, removed.errors
    assert listed(root) == {"pcm-test-a": "1 rc"}
    assert transaction.run(*change, artifacts).steps == ("install pcm-test-a 1",)
    assert listed(root) == {"pcm-test-a": "1 ii"}


def test_a_held_lock_is_waited_for_and_then_named(tmp_path: Path, root: Path, artifacts: Artifacts) -> None:
    artifacts.put_deb("a.deb", "pcm-test-a", "1", {"usr/share/a": "1"})
    (root / "var/lib/dpkg").mkdir(parents=True)
    slept: list[float] = []
    asked = 0

    def runner(argv: Sequence[str], timeout_s: float) -> Completed:
        nonlocal asked
        asked += argv[0] == "dpkg"
        return run(argv, timeout_s)

    device = make_device(Root(root), tmp_path / "work")
    device.packages = PackageProvider(Root(root), nothing_before, runner, lock_s=6.0, sleep=slept.append)
    transaction = make_transaction(tmp_path / "apply", device)
    with (root / "var/lib/dpkg/lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        # The lock belongs to this process; dpkg, its child, sees it as another's.
        outcome = transaction.run(*authorised(PackageResource(artifact="a.deb")), artifacts)
    assert outcome.verdict == "rolled_back"
    assert "lock was not free within 6 s" in outcome.error
    assert asked == 4
    assert sum(slept) == 6.0
    assert transaction.run(*authorised(PackageResource(artifact="a.deb")), artifacts).verdict == "done"


def test_undoing_waits_for_a_dpkg_that_outlived_its_daemon(tmp_path: Path, root: Path) -> None:
    (root / "var/lib/dpkg").mkdir(parents=True)
    lock = root / "var/lib/dpkg/lock"
    lock.touch()
    program = f"import fcntl;f=open({str(lock)!r},'w');fcntl.lockf(f,fcntl.LOCK_EX);print(flush=True);input()"
    holder = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            holder.communicate(b"\n", timeout=120)

    PackageProvider(Root(root), nothing_before, sleep=sleep).undo(InstallPackages(()), tmp_path)
    assert len(waits) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes an ordinary user, which only root can do here")
def test_an_ordinary_user_installs_into_a_private_root(tmp_path: Path) -> None:
    program = f"""
import os, sys
sys.path[:0] = [{str(Path(__file__).parent)!r}]
from pathlib import Path
from apply_kit import *
from pcm_p2p.policy.resource import PackageResource
os.setgroups([]); os.setgid(65534); os.setuid(65534)  # after the imports: the interpreter may lie in root's own folder
here = Path({str(tmp_path / "mine")!r})
artifacts = Artifacts(here / "staged")
artifacts.put_deb("a.deb", "pcm-test-a", "1", {{"usr/share/a": "1"}})
(here / "root").mkdir()
transaction = make_transaction(here / "apply", make_device(Root(here / "root"), here / "work"))
outcome = transaction.run(*authorised(PackageResource(artifact="a.deb")), artifacts)
assert outcome.verdict == "done", outcome
print((here / "root/usr/share/a").read_text())
"""
    (tmp_path / "mine").mkdir()
    os.chown(tmp_path / "mine", 65534, 65534)
    closed = [folder for folder in tmp_path.parents if not folder.stat().st_mode & 0o001]
    closed.append(tmp_path)
    modes = {folder: folder.stat().st_mode for folder in closed}
    for folder in closed:
        folder.chmod(modes[folder] | 0o011)
    try:
        answer = subprocess.run(
            [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=120, cwd="/"
        )
    finally:
        for folder in closed:
            folder.chmod(modes[folder])
    assert (answer.stdout, answer.stderr) == ("1\n", "")


async def test_what_is_installed_is_known_without_the_artifact(
    tmp_path: Path, root: Path, artifacts: Artifacts
) -> None:
    path = artifacts.put_deb("a.deb", "pcm-test-a", "1", {"usr/share/a": "1"})
    applier = make_applier(tmp_path / "apply", root)
    change, permission = authorised(PackageResource(artifact="a.deb"))
    assert not await applier.is_in_place(change, artifacts.sha256_of)
    assert (await applier.apply(change, permission, artifacts)).verdict == "done"
    path.unlink()
    assert await applier.is_in_place(change, artifacts.sha256_of)
    run(("dpkg", f"--root={root}", "--force-not-root", f"--log={root}/log", "--purge", "pcm-test-a"), 30.0)
    assert not await applier.is_in_place(change, artifacts.sha256_of)


def test_scripts_are_named_before_anything_is_begun(root: Path, artifacts: Artifacts) -> None:
    artifacts.put_deb("a.deb", "pcm-test-a", "1", {"usr/share/a": "1"}, prerm="true", config="true")
    with pytest.raises(ApplyError, match=r"config, prerm"):
        PackageProvider(Root(root), nothing_before).identify(artifacts("a.deb"))

"""A release that was signed for other hardware: refused by the package manager, whole, and said so."""

from __future__ import annotations

from pathlib import Path

import pytest
from apply_kit import HAS_DPKG, Artifacts, authorised, make_device, make_transaction, picture

from pcm_p2p.apply.command import run
from pcm_p2p.apply.root import Root
from pcm_p2p.policy.resource import FileResource, PackageResource

pytestmark = [pytest.mark.debian, pytest.mark.skipif(not HAS_DPKG, reason="dpkg and dpkg-deb are not here")]


def put_foreign(artifacts: Artifacts, name: str, architecture: str) -> None:
    tree = artifacts.folder / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN").chmod(0o755)
    (tree / "usr").mkdir()
    (tree / "usr/other").write_text("x")
    control = (
        f"Package: pcm-test-other\nVersion: 1\nArchitecture: {architecture}\nMaintainer: A <a@b.c>\nDescription: x\n"
    )
    (tree / "DEBIAN/control").write_text(control)
    built = run(("dpkg-deb", "--root-owner-group", "-Znone", "-b", str(tree), str(artifacts.folder / name)), 30.0)
    assert built.status == 0, built.errors
    artifacts.put(name, (artifacts.folder / name).read_bytes())


def test_a_package_for_other_hardware_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    artifacts, root = Artifacts(tmp_path / "staged"), tmp_path / "root"
    root.mkdir()
    here = run(("dpkg", "--print-architecture"), 20.0).text.strip()
    other = "s390x" if here != "s390x" else "amd64"
    artifacts.put_deb("good.deb", "pcm-test-good", "1", {"usr/share/good": "x"})
    put_foreign(artifacts, "other.deb", other)
    transaction = make_transaction(tmp_path / "apply", make_device(Root(root), tmp_path / "work"))
    artifacts.put("conf", b"x")
    change = authorised(
        PackageResource(artifact="good.deb"),
        PackageResource(artifact="other.deb"),
        FileResource(path="/etc/conf", artifact="conf"),
    )
    outcome = transaction.run(*change, artifacts)
    assert outcome.verdict == "rolled_back"
    assert other in outcome.error, "the reason names the architecture"
    assert not any(name.startswith(("usr", "etc")) for name in picture(root)), "neither package nor the file is there"

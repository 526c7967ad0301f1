"""The tool as one file, on a machine that has Python and nothing else: no network, no library, an unprivileged user.

The file is really built from the pinned lock, and really run by the system's Python in a network namespace without an interface.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

TOP = Path(__file__).resolve().parents[2]
NOBODY = 65_534
PYTHON = Path("/usr/bin/python3")

pytestmark = [pytest.mark.netns, pytest.mark.timeout(600)]

Run = Callable[..., subprocess.CompletedProcess[str]]


def version_of(python: Path) -> tuple[int, ...]:
    said = subprocess.run(
        [python, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True, check=False
    )
    return tuple(map(int, said.stdout.split())) if said.returncode == 0 else ()


def why_not() -> str:
    if os.geteuid() != 0:
        return "only root makes network namespaces"
    if shutil.which("setpriv") is None or shutil.which("unshare") is None:
        return "setpriv and unshare of util-linux are not here"
    if subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode != 0:
        return "this kernel gives no network namespaces"
    if version_of(PYTHON) != sys.version_info[:2]:
        return f"{PYTHON} is another Python than {sys.version_info.major}.{sys.version_info.minor}, for which the file is made"
    return ""


@pytest.fixture(scope="session")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if reason := why_not():
        pytest.skip(reason)
    path = tmp_path_factory.mktemp("tool") / "pcm-p2p.pyz"
    made = subprocess.run(
        ["bash", TOP / "bootstrap" / "offline-tool", path], capture_output=True, text=True, check=False, timeout=540
    )
    if "could not be brought" in made.stderr:
        pytest.skip("pip reaches no package index")
    assert made.returncode == 0, made.stderr
    assert made.stdout.split() == [hashlib.sha256(path.read_bytes()).hexdigest(), path.name]
    return path


@pytest.fixture(scope="module")
def home(tool: Path) -> Iterator[Path]:
    """The home of nobody, with the file in it. Not below pytest's own folder, which each other run closes to all but its user."""
    folder = Path(tempfile.mkdtemp(prefix="pcm-offline-"))
    try:
        folder.chmod(0o755)
        shutil.copy(tool, folder)
        os.chown(folder, NOBODY, NOBODY)
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def machine(home: Path, tool: Path) -> Run:
    """Runs a command of the file as nobody, in a namespace without interfaces, with no environment but an empty home."""
    file = home / tool.name

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        alone = ["unshare", "--net", "setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
        command = [*alone, "env", "--ignore-environment", f"HOME={home}", PYTHON, file, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=home)

    return run


def test_keys_a_fleet_and_signatures_are_made_where_nothing_can_be_reached(machine: Run, home: Path) -> None:
    (home / "words").write_text("correct horse battery staple\n")
    (home / "words").chmod(0o600)
    os.chown(home / "words", NOBODY, NOBODY)
    words = ("--passphrase-file", "words")
    for role in ("root", "targets"):
        made = machine("key", "new", f"{role}.key", "--role", role, "--owner", "alice", "--kdf", "interactive", *words)
        assert made.returncode == 0, made.stderr
        carried = machine("key", "public", f"{role}.key", "--out", f"{role}.pub", *words)
        assert carried.returncode == 0, carried.stderr
    assert stat.S_IMODE((home / "root.key").stat().st_mode) == 0o600
    assert (home / "root.key").stat().st_uid == NOBODY
    founding = ("--name", "acme", "--root-key", "root.pub", "--release-key", "targets.pub", "--kdf", "interactive")
    founded = machine("fleet", "init", "fleet", *founding, *words)
    assert founded.returncode == 0, founded.stderr
    assert "root: 1 more of alice must sign" in founded.stdout
    shown = machine("key", "show", "root.pub", "--json")
    assert shown.returncode == 0, shown.stderr
    assert msgspec.json.decode(shown.stdout)["words"] in founded.stdout
    for role in ("root", "targets"):
        signed = machine("sign", "--fleet", "fleet", "--key", f"{role}.key", "--yes", *words)
        assert signed.returncode == 0, signed.stderr
        assert "targets: alice may sign" in signed.stderr, "what is signed is shown first"
    assert "targets: complete, signed by alice" in signed.stdout
    tested = machine("key", "test", "--fleet", "fleet", "root.key", *words)
    assert (tested.returncode, tested.stderr) == (0, "")
    sheet = machine("fleet", "sheet", "--fleet", "fleet", "--out", "sheet.html")
    assert sheet.returncode == 0, sheet.stderr
    assert (home / "sheet.html").stat().st_size > 3_000


@pytest.mark.parametrize("words", [("daemon", "--state", "state"), ("collector", "--state", "state"), ("lab", "up")])
def test_what_needs_an_installed_program_is_not_begun(machine: Run, words: tuple[str, ...]) -> None:
    ended = machine(*words)
    assert ended.returncode == 2
    assert f"is the tool for keys and signatures; it runs no {words[0]}" in ended.stderr
    assert "Install pcm-p2p on this machine" in ended.stderr


def test_the_namespace_of_these_tests_has_no_way_out(machine: Run) -> None:
    """Otherwise the other test would show nothing."""
    said = subprocess.run(["unshare", "--net", "cat", "/proc/net/route"], capture_output=True, text=True, check=True)
    assert len(said.stdout.splitlines()) <= 1
    assert machine("--version").returncode == 0


def test_the_file_holds_the_program_its_libraries_and_nothing_of_the_machine_that_made_it(tool: Path) -> None:
    with zipfile.ZipFile(tool) as archive:
        names = archive.namelist()
        records = [archive.read(name) for name in names if name.endswith((".dist-info/RECORD", "environment.json"))]
    packages = {name.split("/")[1] for name in names if name.startswith("site-packages/")}
    assert {"pcm_p2p", "tuf", "securesystemslib", "cryptography", "nacl", "mnemonic", "pkcs11"} <= packages
    assert not {"pytest", "mypy", "ruff", "hypothesis"} & packages
    assert not [name for name in names if name.endswith(("direct_url.json", ".pyc"))]
    for record in records:
        assert str(TOP).encode() not in record
    assert tool.stat().st_size < 60_000_000


def test_another_python_is_told_which_one_it_takes(tool: Path, tmp_path: Path) -> None:
    """The check runs before any compiled part is loaded."""
    with zipfile.ZipFile(tool) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("preamble.py")]
        preamble = archive.read(name).decode()
    honest = f'made_for = "{sys.version_info.major} {sys.version_info.minor} '
    assert honest in preamble
    (tmp_path / "preamble.py").write_text(preamble.replace(honest, 'made_for = "3 99 '))
    ended = subprocess.run([PYTHON, tmp_path / "preamble.py"], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "pcm-p2p: this file was made for Python 3.99" in ended.stderr
    assert "bootstrap/offline-tool" in ended.stderr


def test_usage_and_a_folder_that_is_not_there_are_told(tmp_path: Path) -> None:
    script = TOP / "bootstrap" / "offline-tool"
    for words, said in (
        ((), "usage: bash bootstrap/offline-tool OUT.pyz"),
        ((tmp_path / "no" / "x",), "no such folder"),
    ):
        ended = subprocess.run(["bash", script, *words], capture_output=True, text=True, check=False)
        assert (ended.returncode, said in ended.stderr) == (1, True)

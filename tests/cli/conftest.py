"""``pcm-p2p`` in the test's own process, as its entry point runs it."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import WORDS, Command, Ended

from pcm_p2p.cli.main import run


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs one command line; wide enough that no table is folded."""
    monkeypatch.setenv("COLUMNS", "240")
    monkeypatch.setattr("sys.stdin", io.StringIO())

    def command(*words: object) -> Ended:
        capsys.readouterr()
        status: Any = 0
        try:
            run([str(word) for word in words])
        except SystemExit as ended:
            status = ended.code or 0
        said = capsys.readouterr()
        return Ended(int(status), said.out, said.err)

    return command


@pytest.fixture(scope="session")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet of three owners, two of whom must sign, with the passphrase in a file beside it."""
    from pcm_p2p.authority.repository import FleetFolder

    folder = tmp_path_factory.mktemp("founded")
    (folder / "words").write_text(f"{WORDS}\n")
    (folder / "words").chmod(0o600)
    owners = ("ann", "bob", "eve")
    FleetFolder.init(
        folder / "fleet",
        name="acme",
        passphrase=WORDS,
        owners=owners,
        root_threshold=2,
        targets_threshold=2,
        preset="lab",
    )
    return folder


@pytest.fixture
def fleet(founded: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    shutil.copytree(founded / "fleet", tmp_path / "fleet")
    return tmp_path / "fleet"


@pytest.fixture
def words(founded: Path) -> tuple[str, Path]:
    """The option that gives the passphrase."""
    return "--passphrase-file", founded / "words"

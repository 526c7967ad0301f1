"""PKCS#11 tokens without hardware: SoftHSM in a folder of the test. Where it is not installed, the tests skip and say so."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

LIBRARIES = [
    Path(folder) / "softhsm" / "libsofthsm2.so"
    for folder in (
        "/usr/lib",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/local/lib",
        "/usr/lib64",
    )
]
LIBRARY = next((path for path in LIBRARIES if path.exists()), None)
ABSENT = (
    "python-pkcs11 is not installed: pip install 'pcm_p2p[token]'"
    if importlib.util.find_spec("pkcs11") is None
    else "SoftHSM is not installed: apt-get install softhsm2"
    if LIBRARY is None or shutil.which("softhsm2-util") is None
    else ""
)
needs_tokens = [pytest.mark.token, pytest.mark.skipif(bool(ABSENT), reason=ABSENT)]
PIN = "482913"


@dataclass(frozen=True)
class SoftToken:
    """A folder of SoftHSM's tokens; ``unplug`` and ``plug`` do what hands do with others."""

    folder: Path

    def add(self, label: str) -> str:
        """Initialise one more token; returns the address of its key 2."""
        command = ["softhsm2-util", "--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", "77777777"]
        subprocess.run(command, check=True, capture_output=True)
        self.notice()
        return f"hsm:2?label={label}"

    def unplug(self) -> None:
        (self.folder / "tokens").rename(self.folder / "unplugged")
        (self.folder / "tokens").mkdir()
        self.notice()

    def notice(self) -> None:
        import pkcs11

        pkcs11.lib(str(LIBRARY)).reinitialize()


def plugged_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> SoftToken:
    """No token yet, and the environment that leads there."""
    (folder / "tokens").mkdir()
    (folder / "softhsm.conf").write_text(
        f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    monkeypatch.setenv("SOFTHSM2_CONF", str(folder / "softhsm.conf"))
    monkeypatch.setenv("PYKCS11LIB", str(LIBRARY))
    soft = SoftToken(folder)
    soft.notice()
    return soft

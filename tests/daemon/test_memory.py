"""What a daemon holds in memory: which libraries it loads, and when it gives freed memory back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pcm_p2p.daemon.memory import GAIN_BYTES_MIN, GROWTH_BYTES_MIN, LOOKS_MAX, Trimming

MB = 1 << 20
OF_OTHERS = {
    # What a daemon does not load, and whose it is.
    "typer": "the command line",
    "rich": "the command line",
    "pkcs11.exceptions": "signers with a hardware token (the name above it is listed when it is looked for)",
    "asn1crypto": "signers with a hardware token",
    "mnemonic": "people who compare keys",
    "tomlkit": "people who edit policies",
    "hdiffpatch": "the publisher, and the process that decodes segments",
    "pyfastcdc": "the publisher",
    "re2": "devices with a policy that has regular expressions: loaded with the first one",
    "jinja2": "the console of a collector",
    "starlette": "the console of a collector",
    "anycorn": "the console of a collector",
    "multiprocessing": "the publisher",
    "pcm_p2p.cli": "the command line",
    "pcm_p2p.authority": "publishers and signers",
    "pcm_p2p.collector": "collectors",
    "pcm_p2p.lab": "the lab",
}


def test_a_daemon_does_not_load_what_only_others_use(tmp_path: Path) -> None:
    process = [sys.executable, "-X", "importtime", "-m", "pcm_p2p.daemon", "--state", str(tmp_path / "none")]
    done = subprocess.run(process, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, "it loads everything, and then finds no state folder"
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert {"pcm_p2p.daemon.node", "securesystemslib.signer", "trio", "zeroconf"} <= loaded
    found = {
        name: whose
        for name, whose in OF_OTHERS.items()
        if any(each == name or each.startswith(f"{name}.") for each in loaded)
    }
    assert not found, "import it where it is used, and say there why"


@pytest.mark.parametrize("name", ["hdiffpatch", "re2", "pkcs11.exceptions", "asn1crypto"])
def test_what_is_named_as_absent_is_installed(name: str) -> None:
    """A library that was renamed would be absent for ever, and the test above would see nothing."""
    probe = [sys.executable, "-c", f"import {name}"]
    assert subprocess.run(probe, check=False, timeout=60).returncode == 0


def test_memory_is_given_back_when_the_process_grew() -> None:
    trimming = Trimming()
    trimming.trimmed(60 * MB, 60 * MB)
    assert not trimming.is_due(60 * MB + GROWTH_BYTES_MIN - 1)
    assert trimming.is_due(60 * MB + GROWTH_BYTES_MIN)


def test_a_trim_in_the_middle_of_a_transfer_is_followed_by_another() -> None:
    trimming = Trimming()
    trimming.trimmed(95 * MB, 88 * MB)
    assert trimming.is_due(84 * MB), "smaller than before, but the last trim gained"
    trimming.trimmed(84 * MB, 84 * MB - GAIN_BYTES_MIN + 1)
    assert not trimming.is_due(84 * MB)


def test_what_was_freed_after_the_last_trim_does_not_stay_for_ever() -> None:
    trimming = Trimming()
    trimming.trimmed(88 * MB, 88 * MB)
    assert [trimming.is_due(88 * MB) for _ in range(LOOKS_MAX)] == [False] * (LOOKS_MAX - 1) + [True]

"""What a person sees: lines in a pipe, a picture on a terminal, and no colour where none is wanted."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from pcm_p2p.lab.progress import ROWS_MAX, View, open_progress, print_result
from pcm_p2p.lab.result import Counted, Picture, Result, RollOut, Totals
from pcm_p2p.lab.scenario import DeviceName

DEVICES = [DeviceName("office-1", f"d{n:02d}", n) for n in range(1, 41)]


def view(done: int, total: int = 3) -> View:
    pictures = {
        device: Picture("2", "applied" if n < done else "fetching", n, 10) for n, device in enumerate(DEVICES[:total])
    }
    return View("2", pictures, {device: Counted(1_000_000, 0, 2_000_000) for device in pictures}, 1.5)


def test_a_pipe_gets_one_line_for_each_device_more() -> None:
    text = StringIO()
    with open_progress(Console(file=text, width=100)) as progress:
        progress.step("Publishing …")
        for done in (0, 0, 1, 1, 3):
            progress.show(view(done))
    lines = text.getvalue().splitlines()
    assert lines[0] == "Publishing …"
    assert [line.split()[2] for line in lines[1:]] == ["0", "1", "3"]
    assert "WAN 3.0 MB, LAN 6.0 MB" in lines[-1]
    assert "\x1b" not in text.getvalue()


def terminal(monkeypatch: pytest.MonkeyPatch, total: int, **environment: str) -> str:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    text = StringIO()
    console = Console(file=text, force_terminal=True, width=100, height=60)
    with open_progress(console) as progress:
        progress.step("The new version spreads …")
        progress.show(view(1, total))
        progress._live.refresh()  # type: ignore[attr-defined]
    return text.getvalue()


def test_a_terminal_gets_a_row_for_each_device(monkeypatch: pytest.MonkeyPatch) -> None:
    text = terminal(monkeypatch, 3)
    assert "office-1/d03" in text
    assert "✔ applied" in text
    assert "↓ fetching" in text
    assert "\x1b[32m" in text


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[32m" not in terminal(monkeypatch, 3, NO_COLOR="1")


def test_a_large_fleet_shows_those_that_are_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
    text = terminal(monkeypatch, 40)
    assert f"and {40 - ROWS_MAX} more" in text
    assert "office-1/d01" not in text


def test_the_end_table_names_every_device_that_is_not_done() -> None:
    patch = RollOut("2", 100, 50, 1, 2, {"a": 1.0}, Totals(50, 1, 50))
    result = Result("loopback", "web", {"a": "", "b": "1 is applied"}, 1, patch, patch, "http://127.0.0.1:1/")
    text = StringIO()
    print_result(Console(file=text, width=100), result)
    assert "✘ not every device is patched and compliant" in text.getvalue()
    assert "b: 1 is applied" in text.getvalue()
    assert "http://127.0.0.1:1/" in text.getvalue()

"""What holds for every command: help, exit statuses, colours, completion, and errors with their remedy."""

from __future__ import annotations

import json
import logging
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from command_line import Command
from repository_simulator import full_disk_from
from typer.core import TyperGroup

from pcm_p2p import __version__
from pcm_p2p.cli import help_page, main, output
from pcm_p2p.daemon.log import configure
from pcm_p2p.errors import StorageError, exit_statuses


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(command, TyperGroup):
        for name, below in command.commands.items():
            yield from leaves(below, (*path, name))
    else:
        yield path


def groups(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(command, TyperGroup):
        yield path
        for name, below in command.commands.items():
            yield from groups(below, (*path, name))


COMMANDS = tuple(leaves(typer.main.get_command(main.app)))
GROUPS = tuple(groups(typer.main.get_command(main.app)))


def test_the_documented_commands_are_there() -> None:
    assert {" ".join(path) for path in COMMANDS} >= {
        *("fleet init", "fleet stage", "fleet activate", "fleet refresh", "key new", "key show", "sign", "publish"),
        *("release add", "release plan", "release show", "policy check", "policy put", "origin serve"),
        *("enroll desk", "enroll token", "enroll join", "collector", "lab up", "lab run"),
        *("daemon", "status", "peers", "why", "doctor", "assess"),
        *("store stats", "store verify", "store gc"),
    }


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_the_help_of_each_command_says_its_exit_status(path: tuple[str, ...], cli: Command) -> None:
    ended = cli(*path, "--help")
    assert ended.status == 0
    assert "EXIT STATUS" in ended.out
    assert cli(*path, "-h").out == ended.out


@pytest.mark.parametrize("path", GROUPS, ids=lambda path: " ".join(path) or "pcm-p2p")
def test_lists_of_commands_are_whole_sentences_on_a_narrow_terminal(
    path: tuple[str, ...], cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ended = cli(*path, "--help")
    assert ended.status == 0
    assert "..." not in ended.out.partition("Show this message and exit.")[2], (
        "a first sentence is too long to be shown: end it earlier"
    )


def test_each_command_has_its_place_on_the_first_page(cli: Command) -> None:
    listed = [name for names in help_page.SECTIONS.values() for name in names]
    assert sorted(listed) == sorted({path[0] for path in COMMANDS})
    shown = cli("--help").out
    assert "Others:" not in shown
    assert shown.index("First of all:") < shown.index("On the authority's machine:") < shown.index("On a device:")


def test_the_table_of_exit_statuses_is_in_the_help(cli: Command) -> None:
    ended = cli("--help")
    for status, meaning in exit_statuses().items():
        assert f"{status}: {meaning}" in ended.out


def test_a_full_disk_is_said_with_the_file_and_what_to_do(cli: Command, fleet: Path) -> None:
    line = ("fleet", "activate", "--all", "--fleet", fleet)
    with full_disk_from(0):
        ended = cli(*line)
    assert ended.status == StorageError.exit_status
    assert ended.err.startswith(f"pcm-p2p: {fleet}/")
    assert "No space left on device" in ended.err
    assert "Make room, and repeat the command" in ended.err
    assert cli(*line).status == 0


def test_version_and_no_arguments(cli: Command) -> None:
    assert cli("--version").out == f"pcm-p2p {__version__}\n"
    by_module = subprocess.run(
        [sys.executable, "-m", "pcm_p2p", "--version"], capture_output=True, text=True, check=True
    )
    assert by_module.stdout == cli("--version").out
    assert "Usage: pcm-p2p" in "".join((cli().out, cli().err))


@pytest.mark.parametrize(
    "words", [("fleet", "init"), ("dance",), ("status", "--nonsense"), ("enroll", "token", "--uses", "0")], ids=" ".join
)
def test_wrong_usage_is_2_and_goes_to_standard_error(words: tuple[str, ...], cli: Command) -> None:
    ended = cli(*words)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err


def test_an_error_is_one_message_its_remedy_and_its_status(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BaseExceptionGroup("nursery", [ExceptionGroup("inner", [StorageError("no room", remedy="Make some.")])])

    monkeypatch.setattr("pcm_p2p.cli.node.ask", fail)
    ended = cli("status")
    assert (ended.status, ended.out, ended.err) == (6, "", "pcm-p2p: no room\n  Make some.\n")


def test_colours_are_for_terminals_and_not_with_no_color(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def table() -> str:
        capsys.readouterr()
        output.out().print("[red]red[/red]")
        output.print_table(("NAME",), [("x",)])
        return capsys.readouterr().out

    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    assert "\x1b" not in table()
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[31m" in table()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[31m" not in table()


def test_what_looks_like_markup_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_facts({"detail": "[bold]x[/nothing] [/]", "folder": Path("/srv/[old]")})
    output.print_table(("A",), [("[red]y[/]",)])
    output.note("see [1]")
    said = capsys.readouterr()
    assert "[bold]x[/nothing] [/]" in said.out
    assert "/srv/[old]" in said.out
    assert "[red]y[/]" in said.out
    assert "see [1]" in said.err


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1_000, "1 kB"), (41_250_000, "41.2 MB"), (5e12, "5 TB")]
)
def test_sizes_for_people(size: float, text: str) -> None:
    assert output.size(size) == text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes_commands(shell: str, cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_PCM_P2P_COMPLETE", f"source_{shell}")
    assert "_PCM_P2P_COMPLETE" in cli().out
    monkeypatch.setenv("_PCM_P2P_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("COMP_WORDS", "pcm-p2p fl")
    monkeypatch.setenv("COMP_CWORD", "1")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "pcm-p2p fl")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    assert "fleet" in cli().out


PAINTING = "site\x1b[2J\x1b]0;owned\x07 \x9b31m \u202egnp.exe\rx"
"""Clears the screen, names the window, colours by one C1 character, turns the reading direction, goes back in the line."""


@pytest.mark.parametrize("way", ["table", "facts", "line", "note", "json"])
def test_what_a_stranger_wrote_cannot_paint_the_screen(way: str, capsys: pytest.CaptureFixture[str]) -> None:
    match way:
        case "table":
            output.print_table(("AGENT",), [(PAINTING,)])
        case "facts":
            output.print_facts({"agent": PAINTING})
        case "line":
            output.out().print(PAINTING, markup=False)
        case "note":
            output.note(PAINTING)
        case _:
            output.print_json({"agent": PAINTING})
    printed = "".join(capsys.readouterr())
    assert printed.replace("\n", "").isprintable()
    assert "owned" in printed
    if way == "json":
        assert json.loads(printed) == {"agent": PAINTING}


@pytest.mark.parametrize("json_lines", [True, False])
def test_what_a_stranger_wrote_ends_no_line_of_the_log(json_lines: bool, capsys: pytest.CaptureFixture[str]) -> None:
    configure(json_lines=json_lines, verbose=False)
    logging.getLogger("pcm_p2p.test").info("session ended: %s", f"bye\n2026-01-01 INFO all is well {PAINTING}")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()


# Tables


def test_a_table_in_a_pipe_has_one_line_a_row_whatever_the_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    output.print_table(
        ("DEVICE", "WHAT"), [("ab" * 16, "a sentence that is longer than forty characters"), ("c", "\x1b[2J")]
    )
    output.print_facts(
        {"trust": "fresh, and for a reason that is longer than forty characters", "two": "one\nmore", "é": ""}
    )
    assert capsys.readouterr().out.splitlines() == [
        f"{'DEVICE':<32}  WHAT",
        f"{'ab' * 16}  a sentence that is longer than forty characters",
        f"{'c':<32}  \\x1b[2J",
        "trust  fresh, and for a reason that is longer than forty characters",
        "two    one",
        "       more",
        "é",
    ]


@pytest.mark.parametrize(("number", "said"), [(0, "0 entries"), (1, "1 entry"), (2, "2 entries")])
def test_things_are_counted_as_people_count_them(number: int, said: str) -> None:
    assert output.counted(number, "entry", "entries") == said


def examples() -> Iterator[str]:
    def below(command: Any) -> Iterator[str]:
        for one in command.commands.values() if isinstance(command, TyperGroup) else ():
            yield from below(one)
        for paragraph in (command.help or "").split("\n\n"):
            if paragraph.startswith("Example: "):
                yield " ".join(paragraph.removeprefix("Example: ").split())

    return below(typer.main.get_command(main.app))


EXAMPLES = tuple(examples())


def test_what_a_newcomer_needs_first_has_an_example() -> None:
    for needed in ("release add", "policy put", "sign", "publish", "enroll token", "enroll join", "halt", "key new"):
        assert any(example.startswith(f"pcm-p2p {needed} ") for example in EXAMPLES), needed


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_of_the_help_can_be_typed(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read as it would be when typed, up to where the command would run."""
    monkeypatch.delenv("PCM_P2P_FLEET", raising=False)
    command: Any = typer.main.get_command(main.app)
    program, *words = shlex.split(example)
    assert program == "pcm-p2p"
    while isinstance(command, TyperGroup):
        with command.make_context(program, words) as context:
            name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None, name
    with command.make_context(program, words) as context:
        assert not context.args

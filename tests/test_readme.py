"""README.md is held to the code: examples decode, commands exist, tables are complete, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer.main
from typer.core import TyperGroup

from pcm_p2p.cli.main import app
from pcm_p2p.config import Config
from pcm_p2p.errors import exit_statuses
from pcm_p2p.lab.scenario import decode_scenario
from pcm_p2p.policy.document import decode_policy

TOP = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP / "tests" / "walkthrough"))

from readme import README, Block, blocks  # noqa: E402 - a module of the walk-through, not of a package

TEXT = README.read_text(encoding="utf-8")
BLOCKS = blocks(TEXT)
PROSE = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)


def the_block(*words: str) -> Block:
    (found,) = [block for block in BLOCKS if (block.language, *block.words) == words]
    return found


def test_the_policy_example_shows_every_resource_and_every_check() -> None:
    policy = decode_policy(the_block("toml", "policy").text.encode(), "README.md")
    kinds = {str(resource.__struct_config__.tag) for one in policy.assignments for resource in one.resources}
    assert kinds == {"package", "archive", "file", "service"}
    checks = {check.resource for check in policy.checks}
    assert checks == {"package", "file", "file_content", "sysctl", "service", "mount"}


def test_the_policy_of_the_walk_through_decodes() -> None:
    (script,) = [block.text for block in BLOCKS if "cat >base.toml" in block.text]
    document = script.split("<<'END'\n", 1)[1].split("END\n", 1)[0]
    assert decode_policy(document.encode(), "base.toml").mode == "enforce"


def test_the_scenario_example_decodes() -> None:
    scenario = decode_scenario(the_block("toml", "scenario").text.encode(), "README.md")
    assert scenario.device_count == 10
    assert {fault.kind for fault in scenario.fault} == {"kill", "stop"}


def test_the_table_of_settings_is_the_code() -> None:
    told = dict(re.findall(r"^\| `([a-z_]+\.[a-z_]+)` \| `([^`]*)` \|", TEXT, flags=re.MULTILINE))
    held = {}
    for table in msgspec.structs.fields(Config):
        values = getattr(Config(), table.name)
        for field in msgspec.structs.fields(type(values)):
            held[f"{table.name}.{field.name}"] = as_toml(getattr(values, field.name))
    assert told == held
    assert list(told) == list(held), "the rows stand in the order of the code"


def as_toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(as_toml, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_the_table_of_exit_statuses_is_the_code() -> None:
    told = re.findall(r"^\| (\d+) \| (.*) \|$", TEXT, flags=re.MULTILINE)
    assert {int(status): text for status, text in told if int(status) < 100} == exit_statuses()


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every ``pcm-p2p …`` in a shell block, a unit, or inline code, with where it stands."""
    for block in BLOCKS:
        if block.language in ("sh", "ini"):
            for line in block.text.replace("\\\n", " ").splitlines():
                yield from ((f"line {block.line}: {line}", words) for words in _after_name(line))
    for code in re.findall(r"`([^`\n]*pcm-p2p [^`\n]*)`", PROSE):
        yield from ((code, words) for words in _after_name(code))


def _after_name(line: str) -> Iterator[list[str]]:
    # A redirection, a pipe, a variable's end or a comment ends the command; a path may stand before its name.
    for match in re.finditer(r"(?:^|[\s/=(])pcm-p2p (?=[a-z-])([^|>;)#]*)", line):
        yield shlex.split(match.group(1))


COMMANDS = list(commands())


@cache
def program() -> Any:
    """The tree of commands, which takes a tenth of a second to make."""
    return typer.main.get_command(app)


@pytest.mark.parametrize(("where", "words"), COMMANDS, ids=[where for where, _ in COMMANDS])
def test_every_command_and_option_exists(where: str, words: list[str]) -> None:
    command: Any = program()
    words = list(words)
    while isinstance(command, TyperGroup) and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    if isinstance(command, TyperGroup) and words and command.name == "halt":
        command = command.commands["order"]  # the short form
    options = {name: one for one in command.params for name in (*one.opts, *one.secondary_opts)}
    if words and not words[0].startswith("-"):
        assert not isinstance(command, TyperGroup), f"{where}: there is no command {words[0]!r}"
    for word in words:
        if word.startswith("-"):
            assert word.partition("=")[0] in {*options, "--help", "-h"}, f"{where}: {command.name} has no {word}"


def test_every_command_of_the_program_is_somewhere_in_the_page() -> None:
    used = {" ".join(words[:2]) for _, words in COMMANDS} | {words[0] for _, words in COMMANDS if words}
    root = program()
    assert isinstance(root, TyperGroup)
    absent = [name for name in root.commands if name not in used and name not in PROSE]
    assert not absent


def test_links_lead_somewhere() -> None:
    headings = {slug(line) for line in PROSE.splitlines() if line.startswith("#")}
    for target in re.findall(r"\]\(([^)\s]+)\)", PROSE):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("https://"):
            assert (TOP / target).exists(), target


def slug(heading: str) -> str:
    """The anchor that code hosts make of a heading."""
    return re.sub(r"[^a-z0-9 _-]", "", heading.lstrip("# ").lower()).replace(" ", "-")


def test_every_block_says_its_language_and_blocks_to_run_are_shell() -> None:
    machines = {"every", "authority", "web", "collector", "dev1", "dev2", "dev3"}
    for block in BLOCKS:
        assert block.language in {"sh", "text", "toml", "ini", "nft", "mermaid"}, block.line
        assert set(block.machines) <= machines, block.line
        assert block.language == "sh" or not block.machines, block.line


def test_ports_are_those_of_the_program() -> None:
    root: Any = program()
    for words, option, port in (
        (("enroll", "desk"), "listen", 8742),
        (("origin", "serve"), "listen", 8740),
        (("collector",), "listen", 8743),
        (("collector",), "console", 8744),
    ):
        command = root
        for word in words:
            command = command.commands[word]
        (default,) = [one.default for one in command.params if one.name == option]
        assert default.endswith(f":{port}")
        assert re.search(rf"^\|.*\b{port}\b", TEXT, flags=re.MULTILINE)
    assert Config().listen.port == 8741


def test_the_first_screen_says_what_why_and_the_two_commands() -> None:
    first = TEXT.splitlines()[:30]
    assert any("bash bootstrap/up" in line for line in first)
    assert any("bash bootstrap/test" in line for line in first)


def test_each_figure_names_the_command_that_prints_it() -> None:
    _, _, section = TEXT.partition("\n## Figures\n")
    rows = [line for line in re.split("\n###? ", section)[0].splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 10
    for row in rows:
        command = row.rstrip(" |").rpartition("|")[2].strip()
        script = re.search(r"bench/\w+\.py", command)
        assert script is None or Path(script[0]).is_file()
        assert script or "pcm-p2p lab" in command or "bootstrap/up" in command or command in ("the same", "as above")


def test_the_changelog_names_this_version() -> None:
    from pcm_p2p import __version__

    changes = (TOP / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{__version__}]" in changes

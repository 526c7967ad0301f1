"""The catalogue of attacks is whole and true: no number is missing, each test is there, and SECURITY.md says the same."""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from attacks import ATTACKS, Attack, markdown

TESTS = Path(__file__).resolve().parents[1]
FAMILIES = (
    *("1a", "1b", "1c", "1d", "2a", "2b", "2c", "2d", "2e", "3", "4a", "4b", "4c", "4d", "4e", "4f", "5", "5b"),
    *("6a", "6b", "6c", "6d", "6e", "7", "9a", "9b", "9c", "9d", "9e", "9g", "9h", "10a", "10b"),
    *(
        "12a",
        "12b",
        "12c",
        "12d",
        "12e",
        "12f",
        "12g",
        "12h",
        "12i",
        "13f",
        "14",
        "15a",
        "15c",
        "15d",
        "15e",
        "15f",
        "16",
    ),
    *("md5", "junk"),
)
PRODUCT = tuple(f"10.{number}" for number in range(1, 49))
MARKER = "<!-- attacks -->"


@cache
def names_in(file: str) -> frozenset[str]:
    """Names of the tests at the top of a file, and of what is assigned there (stateful machines of hypothesis)."""
    names: set[str] = set()
    for node in ast.parse((TESTS / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
    return frozenset(names)


def test_no_attack_is_missing_and_none_stands_twice() -> None:
    counted = Counter(attack.id for attack in ATTACKS)
    assert set(counted) == {*FAMILIES, *PRODUCT}
    assert max(counted.values()) == 1


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.id)
def test_each_attack_is_tried_by_a_test_that_exists(attack: Attack) -> None:
    assert attack.tests
    for node in attack.tests:
        file, _, name = node.partition("::")
        assert (TESTS / file).is_file(), f"{attack.id}: there is no tests/{file}"
        assert name in names_in(file), f"{attack.id}: tests/{file} has no {name}"
        assert name.startswith(("test_", "Test"))


def test_the_table_reads_as_one_line_an_attack() -> None:
    lines = markdown().splitlines()
    assert len(lines) == 2 + len(ATTACKS)
    assert all(line.count("|") == 6 for line in lines), "a bar inside a cell would end it"


def test_a_dozen_attacks_are_tried_over_real_sockets() -> None:
    assert sum(any("sockets" in node or "daemon/" in node for node in attack.tests) for attack in ATTACKS) >= 12


def test_the_security_page_quotes_this_catalogue() -> None:
    """``python tests/trust/attacks.py`` prints the table that follows the marker, up to the first empty line."""
    page = TESTS.parent / "SECURITY.md"
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    if MARKER not in text:
        pytest.skip(f"SECURITY.md has no {MARKER}")
    quoted = text.partition(MARKER)[2].lstrip("\n").partition("\n\n")[0]
    assert quoted.strip() == markdown().strip(), "print it anew: python tests/trust/attacks.py"

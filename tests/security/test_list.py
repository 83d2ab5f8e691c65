"""The list of attacks in docs/security.md.

Each attack has a test, and each test that it names exists.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).resolve().parents[1]
LIST: Final = TESTS.parent / "docs" / "security.md"
# The number of attacks at the start of the project; more may follow.
ATTACKS: Final = 34
NAMED: Final = re.compile(r"`([\w/]+\.py)::(\w+)`")


def rows() -> list[list[str]]:
    """Returns the cells of each attack: number, attack, result, place of the defence, tests."""
    table = [line for line in LIST.read_text().splitlines() if re.match(r"\| \d+ \|", line)]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]


def names_in(file: str) -> set[str]:
    """Returns the names of the tests in a file."""
    module = ast.parse((TESTS / file).read_text())
    found = (node for node in module.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {node.name for node in found if node.name.startswith("test_")}


def test_no_attack_is_missing() -> None:
    numbers = [int(row[0]) for row in rows()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= ATTACKS


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_each_listed_attack_has_a_response_and_existing_tests(row: list[str]) -> None:
    assert len(row) == 5
    assert all(row)
    named = NAMED.findall(row[4])
    assert named
    assert NAMED.sub("", row[4]).strip(", ") == "", "something else than tests is named"
    missing = [f"{file}::{test}" for file, test in named if test not in names_in(file)]
    assert missing == []


def test_every_security_test_is_in_the_list() -> None:
    named = {(file, test) for row in rows() for file, test in NAMED.findall(row[4])}
    unnamed = [
        f"{path.name}::{test}"
        for path in sorted((TESTS / "security").glob("test_*.py"))
        if path != Path(__file__)
        for test in sorted(names_in(f"security/{path.name}"))
        if (f"security/{path.name}", test) not in named
    ]
    assert unnamed == []

"""The documents are true where a test can tell.

Covers ids, links, commands, versions, the licence and the table of tests.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from operations.__main__ import app

ROOT: Final = Path(__file__).resolve().parents[2]
# Folders of other projects' files and generated files; neither cites our rules.
NOT_OURS: Final = frozenset({".venv", ".skyhigh", "gen", "dist", "node_modules", "__pycache__"})
TEXTS: Final = frozenset({".py", ".md", ".proto", ".sql", ".lua", ".yaml", ".toml", ".c", ".sh", ".js", ".html"})
AREAS: Final = "SEAT|CHK|WL|PAY|FLT|BKG|GW|EVT"
# SHA-256 of https://www.apache.org/licenses/LICENSE-2.0.txt.
APACHE_2_0: Final = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def texts() -> Iterator[Path]:
    """Yields the files that people of this project write. Works without a .git folder."""
    for path in ROOT.rglob("*"):
        inside = path.relative_to(ROOT).parts
        hidden = any(part.startswith(".") for part in inside)
        if path.suffix in TEXTS and not hidden and NOT_OURS.isdisjoint(inside) and path.is_file():
            yield path


def pages() -> list[Path]:
    """Returns the Markdown documents."""
    return [path for path in texts() if path.suffix == ".md"]


def states() -> dict[str, set[str]]:
    """Returns the rule ids of docs/rules.md, each with the states of its rows."""
    found = dict[str, set[str]]()
    for cells in re.findall(r"^\| (.+) \|$", (ROOT / "docs" / "rules.md").read_text(), re.M):
        name, *_, state = cells.split(" | ")
        if state in ("built", "planned"):
            found.setdefault(name, set()).add(state)
    return found


def cited(path: Path) -> Iterator[str]:
    """Yields the ids of rules that a file cites.

    For example `SEAT-3`, `WL-2 to WL-6` and `rule 11.6`; also `P4` in files about performance.
    """
    text = path.read_text()
    for area, first, last in re.findall(rf"\b({AREAS})-(\d+)(?: to (?:(?:{AREAS})-)?(\d+)\b)?", text):
        yield from (f"{area}-{number}" for number in range(int(first), int(last or first) + 1))
    yield from (f"11.{number}" for number in re.findall(r"\b[Rr]ules? (?:11\.\d+ to )?11\.(\d+)", text))
    if path.is_relative_to(ROOT / "bench") or path.name == "performance.md":
        yield from re.findall(r"\b(P1?\d)\b", text)


def test_each_cited_rule_exists_and_is_built() -> None:
    known = states()
    for path in texts():
        # The rules may refer to a rule that is planned.
        allowed = {"built", "planned"} if path == ROOT / "docs" / "rules.md" else {"built"}
        assert [name for name in cited(path) if allowed.isdisjoint(known.get(name, ()))] == [], path


def test_a_cited_id_is_recognised(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("SEAT-3, WL-2 to WL-4, PAY-1 to 2, rule 11.6, rules 11.1 to 11.7")
    assert [*cited(page)] == ["SEAT-3", "WL-2", "WL-3", "WL-4", "PAY-1", "PAY-2", "11.6", "11.7"]


def test_each_cited_section_of_the_rules_exists() -> None:
    sections = set(re.findall(r"^## (\d+)\. ", (ROOT / "docs" / "rules.md").read_text(), re.M))
    for path in texts():
        assert set(re.findall(r"rules\.md section (\d+)", path.read_text())) <= sections, path


def test_no_file_cites_a_missing_document() -> None:
    elsewhere = re.compile(r"\b(?:SPEC|DESIGN)(?:\.md)?(?:'s)? (?:section|[A-Z]+-)")
    assert [path for path in texts() if path != Path(__file__) and elsewhere.search(path.read_text())] == []


def test_the_rules_have_ids_without_gaps() -> None:
    numbers = dict[str, set[int]]()
    for name in states():
        area, number = re.fullmatch(r"([A-Z]+-|11\.|P)(\d+)", name).groups()  # type: ignore[union-attr]
        numbers.setdefault(area, set()).add(int(number))
    assert set(numbers) == {f"{area}-" for area in AREAS.split("|")} | {"11.", "P"}
    for area, found in numbers.items():
        assert found == set(range(1, len(found) + 1)), area


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_each_link_of_a_page_has_a_target() -> None:
    for page in pages():
        without_code = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
        links = re.findall(r"\]\(([^)\s]+)\)", without_code) + re.findall(r"^\[[^\]]+\]: (\S+)$", without_code, re.M)
        for link in links:
            target, _, anchor = link.partition("#")
            if "://" not in link:
                file = (page.parent / target).resolve() if target else page
                assert file.exists(), (page, link)
                assert not anchor or anchor in anchors(file), (page, link)


def named_commands() -> set[tuple[str, ...]]:
    """Returns the commands `skyhigh …` that the pages name, without their arguments."""
    found = set[tuple[str, ...]]()
    for page in pages():
        for words in re.findall(r"(?:`|\bbin/|^\s*|\$ )skyhigh ([a-z][a-z -]*)", page.read_text(), re.M):
            command = tuple(word for word in words.split() if not word.startswith("-"))
            found.add(command[:2])
    return found


def unknown_commands(named: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Returns the named commands that `skyhigh` does not have.

    A word after a command that is not a group is its argument and is not checked.
    """

    def exists(words: tuple[str, ...]) -> bool:
        command: object = typer.main.get_command(app)
        for word in words:
            if not isinstance(command, TyperGroup):
                break
            if (command := command.commands.get(word)) is None:
                return False
        return True

    return [words for words in named if not exists(words)]


def test_each_command_on_a_page_exists() -> None:
    named = named_commands()
    assert {("dlq", "replay"), ("verify",)} <= named
    assert unknown_commands(named) == []


def test_a_missing_command_is_detected() -> None:
    assert unknown_commands([("dlq", "forget"), ("fly",), ("seats", "anything")]) == [("dlq", "forget"), ("fly",)]


def test_a_packages_readme_lists_each_of_its_modules() -> None:
    for page in ROOT.glob("*/README.md"):
        # The rooms of a service belong to its page.
        inside = "**/*.py" if page.parent.name.endswith("_service") else "*.py"
        modules = {path for path in page.parent.glob(inside) if path.name != "__init__.py"}
        named = re.findall(r"`([\w/]+\.py)`", page.read_text())
        assert {str(path.relative_to(page.parent)) for path in modules} <= set(named), page


def test_the_version_is_the_newest_of_the_changelog() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert released[0] == project["version"] == metadata.version("skyhigh")
    assert released == sorted(released, key=lambda version: [*map(int, version.split("."))], reverse=True)
    assert CliRunner().invoke(app, ["--version"]).output == f"skyhigh {released[0]}\n"


def test_the_licence_is_apache_2_0() -> None:
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2_0


def test_the_table_of_tests_has_every_folder() -> None:
    rows = re.findall(r"^\| `tests/(\w+)` \| [^|]+ \| \d+ \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert sorted(rows) == sorted(folders)

"""Each command of the README prints what the page shows, beside the whole stack.

Its table of ports is correct.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import asyncpg
import pytest

from deploy.local.port_table import PORT_SPAN, PORTS
from deploy.local.services import SERVICES
from deploy.local.stack import Stack
from tests.gateway.console import Example, Terminal, difference, examples
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.journeys.conftest import Airline

ROOT: Final = Path(__file__).resolve().parents[2]
README: Final = (ROOT / "README.md").read_text()
SECOND_BASE: Final = 20_000
SECOND_HOME: Final = "$PWD/.skyhigh/second"
# The invariants hold only after the background work of earlier commands has ended.
SETTLES: Final = ".venv/bin/skyhigh verify"
SETTLE_SECONDS: Final = 60
WORKERS_PER_SERVICE: Final = 20


def page_for(airline: Airline) -> str:
    """Returns the README with this stack's addresses and home.

    They replace those of both stacks on the page.
    """
    stack = airline.stack
    base = stack.ports["gateway"]
    page = README.replace(SECOND_HOME, str(stack.home)).replace(f"_BASE={SECOND_BASE}", f"_BASE={base}")
    for name, port in stack.ports.items():
        default, offset = PORTS[name]
        page = page.replace(f"127.0.0.1:{default}", f"127.0.0.1:{port}")
        page = page.replace(f"127.0.0.1:{SECOND_BASE + offset}", f"127.0.0.1:{port}")
    return page


@pytest.fixture
async def logins_are_forgotten(airline: Airline) -> None:
    """Deletes counted logins, because the tests that guess logins exhaust the limit of this address."""
    connection = await asyncpg.connect(airline.stack.addresses["SKYHIGH_DATABASE_URL"])
    try:
        await connection.execute("DELETE FROM checkin.login_tries")
    finally:
        await connection.close()


async def problem_of(terminal: Terminal, example: Example) -> str | None:
    """Returns how the output differs from the page; None if it does not."""
    code, printed = await terminal.run(example.command)
    found = f"exit code {code}" if code else difference(example.printed, 200, printed)
    return found and f"{example.command}{found}\n{printed}"


async def check(terminal: Terminal, example: Example) -> None:
    """Fails unless the command prints what the page shows."""
    if example.command.startswith(SETTLES):

        async def holds() -> bool:
            return await problem_of(terminal, example) is None

        await eventually(holds, within_seconds=SETTLE_SECONDS)
    else:
        assert (problem := await problem_of(terminal, example)) is None, problem


# Many of the commands start whole processes, which takes minutes on a busy machine; a single command has its own limit.
@pytest.mark.timeout(900)
async def test_each_command_prints_what_the_page_shows(
    airline: Airline, logins_are_forgotten: None, tmp_path: Path
) -> None:
    page = page_for(airline)
    (program,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    (tmp_path / "seats.py").write_text(program)
    async with Terminal(tmp_path) as terminal:
        for definitions in definitions_of(page):
            assert await terminal.run(definitions) == (0, "")
        for example in examples(page):
            # These commands start and end stacks. tests/local tests them, and this stack must keep running.
            if not example.command.startswith("make "):
                await check(terminal, example)
        code, legs = await terminal.run('tr _ "\\n" <<<"$itinerary" | grep -c ^SH')
    assert (code, int(legs)) == (0, 2), "the booked itinerary has two flights"


def definitions_of(page: str) -> list[str]:
    """Returns the blocks without prompts, except those with `make`.

    They only set variables and functions.
    """
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.M | re.S)
    return [block for block in blocks if not block.startswith("make ")]


def test_every_block_of_the_page_is_run() -> None:
    languages = re.findall(r"^```(\w*)$", README, re.M)
    drawings = languages.count("") - len(languages) / 2
    assert drawings == 1
    assert set(languages) == {"", "sh", "console", "python"}
    assert len(definitions_of(README)) == 1
    assert sum("curl " in example.command for example in examples(README)) > 10


def test_every_make_target_of_the_page_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"(?:^|\$ |`)make ([a-z]+)", README, re.M))
    assert {"up", "test", "down", "clean", "help"} <= named <= targets


def ports_of(cell: str) -> set[int]:
    """Returns the numbers in a cell, including those between the ends of a range."""
    ports = set[int]()
    for first, last in re.findall(r"(\d+)(?: to (\d+))?", cell):
        ports |= set(range(int(first), int(last or first) + 1))
    return ports


def test_the_table_of_ports_names_every_port_of_a_stack() -> None:
    rows = re.findall(r"^\| [^|]+ \| ([\d, to]+) \| ([\d, to]+) \|$", README, re.M)
    for column, environment in ((0, {}), (1, {"SKYHIGH_PORT_BASE": str(SECOND_BASE)})):
        ports = Stack.from_environment(environment).ports
        of_workers = {
            port + worker
            for service in SERVICES
            for port in (ports[f"{service.label}_worker"], ports[f"{service.label}_metrics"])
            for worker in range(WORKERS_PER_SERVICE)
        }
        assert set[int]().union(*(ports_of(row[column]) for row in rows)) == set(ports.values()) | of_workers
    assert max(of_workers) < SECOND_BASE + PORT_SPAN


async def test_curl_is_replaced_where_it_is_missing(
    airline: Airline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    async with Terminal(tmp_path) as terminal:
        assert await terminal.run("type -P curl") == (0, f"{tmp_path}/programs/curl\n")
        code, printed = await terminal.run(f"curl -s {airline.gateway_url}/healthz | tr -d ' '")
        assert (code, printed.rstrip()) == (0, '{"status":"SERVING"}')
        assert (await terminal.run(f"curl -sf {airline.gateway_url}/nowhere"))[0] == 22

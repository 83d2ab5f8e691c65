"""`skyhigh abuse` and `skyhigh limits` with a real gateway service.

The service has a database of its own.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import pytest
from skyhigh.gateway.v1.gateway_admin_pb2_grpc import GatewayAdminStub
from typer.testing import CliRunner

from gateway.guard import abuse
from gateway.guard.abuse import Finding
from gateway.guard.service import GATEWAY_SERVICE
from gateway.limits import DEFAULTS
from operations.__main__ import app
from services import db
from services.db import Pool
from tests.callers import ISSUER
from tests.dates import flight_id
from tests.instances import database_with, running

if TYPE_CHECKING:
    from tests.conftest import World

PATH: Final = f"/v1/flights/{flight_id()}/seatmap"
BURST: Final = Finding(
    kind="MAP_BURST",
    source="",
    count=31,
    threshold=30,
    window=timedelta(seconds=5),
    scope="EVERYTHING",
    evidence=(PATH,) * 10,
)
URL: Final = "SKYHIGH_GATEWAY_DATABASE_URL"


@dataclass(frozen=True, slots=True)
class Service:
    """A running gateway service, and its database."""

    address: str
    pool: Pool

    async def finds(self, finding: Finding, *, block_for: timedelta | None = timedelta(minutes=10)) -> None:
        """Records a finding as the service does."""
        async with db.transaction(self.pool) as conn:
            assert await abuse.record(conn, finding, block_for=block_for)


@pytest.fixture(scope="module")
async def service(world: World) -> AsyncIterator[Service]:
    """Yields a service with a new database, so that other tests' callers do not occur in it."""
    urls = await database_with(world, "gateway")
    async with running(world, GATEWAY_SERVICE, GatewayAdminStub, **urls) as callers:
        pool = await db.connect(urls[URL], schema="gateway", size=2)
        yield Service(callers.address, pool)
        await pool.close()


@pytest.fixture(autouse=True)
def stack(world: World, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the service the commands' stack."""
    monkeypatch.setenv("SKYHIGH_HOME", str(world.folder))
    monkeypatch.setenv("SKYHIGH_TOKEN_ISSUER", ISSUER)
    monkeypatch.setenv("SKYHIGH_GATEWAY_ADDRESS", service.address)


@pytest.fixture
def source() -> str:
    """Returns a new customer."""
    return f"customer:{secrets.token_hex(6)}"


async def skyhigh(*arguments: str, code: int = 0) -> str:
    """Runs the command beside the service; returns what it printed."""
    result = await asyncio.to_thread(CliRunner().invoke, app, list(arguments))
    assert result.exit_code == code, result.output
    return result.output


async def block_of(source: str) -> str:
    """Returns the id of the one active block of a source."""
    _, line = (await skyhigh("abuse", "blocks", "--source", source)).splitlines()
    return line.split()[0]


async def test_of_nobody_there_is_nothing_to_say(source: str) -> None:
    assert await skyhigh("abuse", "incidents", "--source", source) == "There are no incidents.\n"
    assert await skyhigh("abuse", "blocks", "--source", source) == "There are no active blocks.\n"
    assert await skyhigh("abuse", "blocks", "--source", source, "--all") == "There were no blocks.\n"


async def test_an_incident_says_who_did_what_and_what_followed(service: Service, source: str) -> None:
    await service.finds(replace(BURST, source=source))
    header, line = (await skyhigh("abuse", "incidents", "--source", source)).splitlines()
    assert header.split() == ["DETECTED", "KIND", "SOURCE", "COUNT", "THRESHOLD", "WINDOW", "BLOCK", "LAST", "SEEN"]
    assert line.split()[1:] == ["MAP_BURST", source, "31", "30", "5", "s", await block_of(source), PATH]


async def test_of_different_things_the_last_one_is_shown(service: Service, source: str) -> None:
    flights = tuple(f"/v1/flights/{flight_id(f'SH{number}')}/seatmap" for number in range(10))
    scan = replace(BURST, kind="MAP_SCAN", source=source, evidence=flights)
    await service.finds(scan, block_for=None)
    _, line = (await skyhigh("abuse", "incidents", "--source", source)).splitlines()
    assert line.rstrip().endswith(f" -      {flights[-1]} and 9 others")


async def test_what_a_caller_sent_is_shown_as_it_is(service: Service, source: str) -> None:
    odd = "/v1/flights/[bold]x[/]/seatmap"
    await service.finds(replace(BURST, source=source, evidence=(odd,)))
    assert odd in await skyhigh("abuse", "incidents", "--source", source)


async def test_all_pages_are_read(service: Service) -> None:
    for _ in range(101):
        await service.finds(replace(BURST, source=f"customer:{secrets.token_hex(6)}"))
    lines = (await skyhigh("abuse", "blocks", "-n", "1000")).splitlines()
    assert len(lines) > 101
    assert len((await skyhigh("abuse", "incidents", "-n", "101")).splitlines()) == 102


async def test_a_block_is_lifted_and_it_is_known_by_whom(service: Service, source: str) -> None:
    await service.finds(replace(BURST, source=source))
    block_id = await block_of(source)
    told = await skyhigh("abuse", "lift", block_id, "--reason", "a school class")
    assert told.startswith(f"The block of {source} was lifted at ")
    assert told.endswith(" by operations:demo: a school class\n")
    assert await skyhigh("abuse", "lift", block_id, "--reason", "again") == told, "a repeat changes nothing"
    assert await skyhigh("abuse", "blocks", "--source", source) == "There are no active blocks.\n"
    _, line = (await skyhigh("abuse", "blocks", "--all", "--source", source)).splitlines()
    assert line.split()[-4:] == ["operations:demo", "a", "school", "class"]


async def test_a_block_that_has_ended_by_itself_needs_no_lifting(service: Service, source: str) -> None:
    await service.finds(replace(BURST, source=source))
    async with db.transaction(service.pool) as conn:
        await conn.execute(
            """
            UPDATE blocks
            SET create_time = create_time - interval '1 hour', expire_time = expire_time - interval '1 hour'
            WHERE source = $1
            """,
            source,
        )
    _, line = (await skyhigh("abuse", "blocks", "--all", "--source", source)).splitlines()
    told = await skyhigh("abuse", "lift", line.split()[0], "--reason", "late")
    assert told.startswith(f"The block of {source} had already ended at ")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["abuse", "lift", "7d", "--reason", "?"], "'7d' is not a UUID"),
        (["abuse", "lift", "00000000-0000-4000-8000-000000000000", "--reason", "?"], "NOT_FOUND: block not found"),
        (
            ["limits", "set", "no-such-limit", "--per-minute", "1", "--burst", "1"],
            "limit no-such-limit not found",
        ),
        (["limits", "set", "map-per-agent", "--per-minute", "10000001", "--burst", "1"], "requests_per_minute"),
    ],
)
async def test_what_is_refused_is_named(arguments: list[str], told: str) -> None:
    assert told in await skyhigh(*arguments, code=1)


@pytest.mark.parametrize(
    "arguments",
    [
        ["abuse", "lift", "00000000-0000-4000-8000-000000000000"],
        ["limits", "set", "map-per-agent", "--per-minute", "1"],
        ["limits", "set", "map-per-agent", "--per-minute", "0", "--burst", "1"],
        ["limits", "set", "map-per-agent", "--per-minute", "1", "--burst", "1", "--mode", "off"],
    ],
)
async def test_what_is_missing_or_wrong_changes_nothing(arguments: list[str]) -> None:
    before = await skyhigh("limits", "list")
    await skyhigh(*arguments, code=2)
    assert await skyhigh("limits", "list") == before


async def test_the_limits_of_a_new_gateway_are_the_defaults() -> None:
    header, *lines = (await skyhigh("limits", "list")).splitlines()
    assert header.split() == [
        "LIMIT",
        "CLASS",
        "COUNTS",
        "BY",
        "ROLE",
        "PER",
        "MINUTE",
        "BURST",
        "MODE",
        "CHANGED",
        "BY",
    ]
    assert [line.split()[:7] for line in lines] == [
        [
            limit.limit_id,
            limit.call_class,
            limit.key.lower(),
            limit.role or "-",
            str(limit.requests_per_minute),
            str(limit.burst),
            limit.mode,
        ]
        for limit in sorted(DEFAULTS, key=lambda limit: limit.limit_id)
    ]


@pytest.fixture
async def default_limits(service: Service) -> AsyncIterator[None]:
    """Restores the gateway's limits after the test."""
    async with db.transaction(service.pool) as conn:
        before = await conn.fetch("SELECT limits FROM limits")
    yield
    async with db.transaction(service.pool) as conn:
        await conn.execute("DELETE FROM limits")
        await conn.executemany("INSERT INTO limits SELECT ($1::limits).*", [(row["limits"],) for row in before])


@pytest.mark.usefixtures("default_limits")
async def test_a_limit_is_set_and_keeps_its_mode_unless_one_is_named() -> None:
    change = ("limits", "set", "hold-per-service", "--per-minute", "600", "--burst", "50")
    assert await skyhigh(*change, "--mode", "shadow") == "hold-per-service: 600 calls per minute, 50 at once, SHADOW.\n"
    assert await skyhigh(*change) == "hold-per-service: 600 calls per minute, 50 at once, SHADOW.\n"
    assert (
        await skyhigh(*change, "--mode", "enforced")
        == "hold-per-service: 600 calls per minute, 50 at once, ENFORCED.\n"
    )
    (line,) = [line for line in (await skyhigh("limits", "list")).splitlines() if line.startswith("hold-per-service ")]
    assert line.split()[4:7] == ["600", "50", "ENFORCED"]
    assert line.split()[-1] == "operations:demo"

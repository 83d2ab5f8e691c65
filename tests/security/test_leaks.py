"""Logs, metrics and dead letters leak nothing (attacks 21 and 34).

They contain no name, locator, token or code, and no injected line.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import secrets
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import aio_pika
import asyncpg
import grpc
import pytest
import structlog
from prometheus_client import generate_latest
from skyhigh.checkin.v1 import checkin_service_pb2 as checkin
from skyhigh.checkin.v1.checkin_service_pb2_grpc import CheckInServiceStub

from deploy.local.process import Process, free_ports, serves_grpc
from deploy.local.supervisor import Supervisor
from services import amqp, db, inbox, tasks, telemetry
from services.auth import Role
from services.db import Conn
from services.inbox import Consumer, Subscription
from services.telemetry import log
from tests.callers import Callers
from tests.checkin.airport import facts, new_pnr
from tests.security.belongings import fly
from tests.security.hostile import CODE, SQL
from tests.security.system import NOBODYS_PORT, QUIET, System
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import World

NOBODY: Final = f"127.0.0.1:{NOBODYS_PORT}"
# The beginning of another log line, a terminal command, a JNDI look-up, a formula.
LINES: Final = ('\r\n{"level":"info","event":"paid"}', "\x1b[2J\x1b[31m", "${jndi:ldap://127.0.0.1:1/a}", "=1+1")

# The schema refuses this row, and Postgres repeats the row in its error.
IMPOSSIBLE: Final = "UPDATE checkin.passengers SET type = 'INFANT' WHERE passenger_id = $1"


@dataclass(frozen=True, slots=True)
class Person:
    """A passenger whose data must not be found anywhere."""

    pnr: str
    last_name: str
    passenger_id: str
    email: str

    @property
    def secrets(self) -> tuple[str, ...]:
        """The data that must not be found."""
        return (self.pnr, self.last_name, self.email)


@pytest.fixture
async def person(system: System) -> Person:
    """Returns a passenger whose flight is open for check-in."""
    name = "".join(secrets.choice("abcdefghijklm") for _ in range(16)).capitalize()
    found = Person(new_pnr(), name, f"P-{secrets.token_hex(4)}", f"{name}@mail.example".lower())
    flight_id = await fly(system)
    await (
        system.callers["checkin"]
        .operations()
        .ImportManifest(
            checkin.ImportManifestRequest(
                flight_id=flight_id,
                flight=facts(),
                passengers=[
                    checkin.ManifestPassenger(
                        passenger_id=found.passenger_id,
                        pnr=found.pnr,
                        given_name=name,
                        last_name=name,
                        contact_email=found.email,
                    )
                ],
            )
        )
    )
    return found


@contextlib.asynccontextmanager
async def lonely(world: World, system: System) -> AsyncIterator[tuple[Callers, Path]]:
    """Runs a check-in service as in production, with its other services unreachable.

    Yields its callers and its log.
    """
    (port,) = free_ports(1)
    environment = world.environment(
        **QUIET,
        **dict.fromkeys(("SKYHIGH_SEAT_ADDRESS", "SKYHIGH_PAYMENT_ADDRESS", "SKYHIGH_WEIGHT_ADDRESS"), NOBODY),
        SKYHIGH_SMTP_ADDRESS=NOBODY,
        SKYHIGH_CHECKIN_DATABASE_URL=system.databases["checkin"],
        SKYHIGH_CHECKIN_LISTEN=f"127.0.0.1:{port}",
        SKYHIGH_CHECKIN_PROCESSES="1",
        SKYHIGH_CHECKIN_LOGIN_ANSWER_SECONDS="0",
        SKYHIGH_LOG_LEVEL="debug",
    )
    process = Process(
        name="lonely",
        command=[sys.executable, "-m", "checkin_service"],
        ready=serves_grpc(port),
        port=port,
        environment=environment,
    )
    folder = world.folder / "security"
    async with Supervisor([process], logs=folder, restart=False):
        callers = Callers(f"127.0.0.1:{port}", world.keys, CheckInServiceStub)
        yield callers, folder / "lonely.log"
        await callers.close()


async def ended(call: Any) -> None:
    """Waits for a call and ignores its error."""
    with contextlib.suppress(grpc.aio.AioRpcError, ValueError):
        await call


def lines_of(text: str) -> list[dict[str, Any]]:
    """Parses the lines, each of which must be one JSON object."""
    lines = [json.loads(line) for line in text.splitlines()]
    assert all(isinstance(line, dict) for line in lines)
    return lines


async def test_a_services_log_is_json_without_personal_data(world: World, system: System, person: Person) -> None:
    async with lonely(world, system) as (callers, path):
        session = await callers.anybody("").CreateSession(
            checkin.CreateSessionRequest(pnr=person.pnr, last_name=person.last_name)
        )
        passenger = callers.anybody(session.token)
        flight_id = session.trip.passengers[0].segments[0].flight_id
        start = checkin.StartCheckInRequest(flight_id=flight_id, passenger_id=person.passenger_id, hold_id=str(uuid4()))
        # Each call is logged, because the seat service is unreachable.
        for hostile in LINES:
            metadata = (("traceparent", hostile.replace("\r\n", "").replace("\x1b", "")), ("user-agent", "x"))
            await ended(passenger.StartCheckIn(start, metadata=metadata))
            await ended(callers.anybody(hostile.encode().hex()).StartCheckIn(start))
            await ended(passenger.StartCheckIn(checkin.StartCheckInRequest(flight_id=hostile, passenger_id=hostile)))
        for hostile in (*SQL, *CODE):
            await ended(
                callers.anybody("").CreateSession(checkin.CreateSessionRequest(pnr=person.pnr, last_name=hostile))
            )
        await ended(callers.anybody("").CreateSession(checkin.CreateSessionRequest(pnr=person.pnr, last_name="Wrong")))
    text = path.read_text()
    failed = [line for line in lines_of(text) if line["event"] == "call failed"]
    assert len(failed) >= len(LINES), "nothing was logged that could be looked at"
    for canary in (*person.secrets, session.token, session.token.split(".")[2], *LINES, "\x1b", "jndi"):
        assert canary not in text


async def test_the_edges_log_is_json_without_personal_data(world: World, system: System, person: Person) -> None:
    mark = f"/v1/mark-{secrets.token_hex(4)}"
    token = system.token(Role.AGENT)
    headers = {"authorization": f"Bearer {token}", "user-agent": '"},{"a":"b', "referer": person.pnr}
    for path in (
        f"/v1/trips/{person.pnr}",
        f"/v1/trips/{person.pnr}/",
        f"/v1/trips/{person.pnr}?x={person.last_name}",
        f"/v1//trips/{person.pnr}",
        f"/v1/flights?name={person.last_name}&pnr={person.pnr}",
        "/v1/%0d%0a{%22level%22:%22info%22}",
        '/v1/"},{"a":"b',
        "/v1/%1b[31m",
        f"/v1/flights?access_token={token}",
        mark,
    ):
        for verb in ("GET", "DELETE"):
            await system.http.request(verb, path, headers=headers)
    await system.http.post("/v1/sessions", json={"pnr": person.pnr, "lastName": person.last_name})
    log_file = world.folder / "security" / "gateway.log"

    async def written() -> bool:
        return mark in log_file.read_text()

    await eventually(written)
    text = log_file.read_text()
    # Envoy also logs a few lines about itself.
    told = [line for line in text.splitlines() if '"route"' in line]
    assert mark in {line["path"] for line in lines_of("\n".join(told))}
    for canary in (*person.secrets, token, token.split(".")[2], "\x1b"):
        assert canary not in text


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """Yields the output of loggers that are created from now on."""
    saved, stdout = structlog.get_config(), sys.stdout
    sys.stdout = text = io.StringIO()
    try:
        telemetry.configure_logging("test", "info")
    finally:
        sys.stdout = stdout
    yield text
    structlog.configure(**saved)


async def test_a_refused_rows_values_are_not_logged(system: System, person: Person, written: io.StringIO) -> None:
    """Simulates a defect of ours that violates a constraint of the schema."""
    connection = await asyncpg.connect(system.databases["checkin"])
    with pytest.raises(asyncpg.CheckViolationError) as refused:
        await connection.execute(IMPOSSIBLE, person.passenger_id)
    await connection.close()
    assert person.last_name in str(refused.value)
    log("leaks").error("call failed", error=repr(refused.value), exc_info=refused.value)
    (line,) = lines_of(written.getvalue())
    assert line["exception"][0]["exc_type"] == "CheckViolationError"
    for canary in person.secrets:
        assert canary not in written.getvalue()


async def test_a_dead_letter_has_the_error_without_personal_data(
    world: World, system: System, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "RETRY_DELAYS_SECONDS", ())
    name = f"leaks-{secrets.token_hex(4)}"

    async def handle(conn: Conn, _: Any) -> None:
        await conn.execute(IMPOSSIBLE, person.passenger_id)

    async with await db.connect(system.databases["checkin"], schema="checkin", size=2) as pool:
        subscription = Subscription("checkin.leaks.v1", checkin.GetTripRequest, handle)
        consumer = Consumer(
            pool, world.servers.amqp_url("checkin"), service="checkin", name=name, subscriptions=[subscription]
        )
        async with await aio_pika.connect(world.servers.amqp_url("checkin")) as connection:
            channel = await connection.channel()
            await inbox.declare_queues(
                channel, service="checkin", queue=f"checkin.{name}", routing_keys=["checkin.leaks.v1"]
            )
            exchange = await channel.get_exchange(amqp.EVENTS, ensure=False)
            message_id = str(uuid4())
            await exchange.publish(aio_pika.Message(b"", message_id=message_id), routing_key="checkin.leaks.v1")
            running = asyncio.create_task(consumer.run())
            dead = await channel.get_queue(inbox.dead_queue("checkin"), ensure=False)
            letters: list[Any] = []

            async def buried() -> bool:
                letter = await dead.get(no_ack=True, fail=False)
                # Other tests leave dead letters too.
                letters.extend([letter] if letter is not None and letter.message_id == message_id else [])
                return bool(letters)

            await eventually(buried)
            await tasks.end([running])
            await channel.queue_delete(f"checkin.{name}")
    reason = str(letters[0].headers["x-reason"])
    assert reason.startswith("CheckViolationError")
    for canary in person.secrets:
        assert canary not in reason


async def test_metrics_have_no_personal_data(system: System, person: Person) -> None:
    """Labels are methods, codes and queues, of which there are few.

    An id as label would add a time series for each.
    """
    answer = await system.http.post("/v1/sessions", json={"pnr": person.pnr, "lastName": person.last_name})
    assert answer.status_code == 200
    ours = [line for line in generate_latest().decode().splitlines() if line.startswith("skyhigh_")]
    assert ours
    assert len(ours) < 3_000
    async with system.http.stream("GET", f"http://127.0.0.1:{system.admin_port}/stats") as stats:
        edges = (await stats.aread()).decode()
    for canary in (*person.secrets, person.passenger_id, answer.json()["token"]):
        assert canary not in "\n".join(ours) + edges

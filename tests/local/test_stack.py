"""Which ports, addresses and settings a local stack has."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local.process import Process
from deploy.local.servers import broker_permissions
from deploy.local.stack import PORT_SPAN, Stack


def stack(home: Path, **given: str) -> Stack:
    """A stack with these settings."""
    return Stack.from_environment({"SKYHIGH_HOME": str(home), **given})


def process(stack: Stack, name: str) -> Process:
    """A row of its table."""
    return next(process for process in stack.processes() if process.name == name)


def test_the_default_ports_are_the_documented_ones(tmp_path: Path) -> None:
    ports = stack(tmp_path).ports
    assert (ports["gateway"], ports["gateway_admin"], ports["seat"]) == (8080, 9901, 50051)


def test_two_bases_never_meet(tmp_path: Path) -> None:
    one = set(stack(tmp_path, SKYHIGH_PORT_BASE="20000").ports.values())
    other = set(stack(tmp_path, SKYHIGH_PORT_BASE=str(20000 + PORT_SPAN)).ports.values())
    assert not one & other
    assert len(one) == len(other)


def test_one_port_can_be_set_alone(tmp_path: Path) -> None:
    ports = stack(tmp_path, SKYHIGH_PORT_BASE="20000", SKYHIGH_GATEWAY_PORT="8081").ports
    assert (ports["gateway"], ports["gateway_admin"]) == (8081, 20001)


@pytest.mark.parametrize("value", ["eighty", "80", "70000", "-1", "8080.0"])
def test_a_wrong_port_is_named(tmp_path: Path, value: str) -> None:
    with pytest.raises(ValueError, match="SKYHIGH_GATEWAY_PORT"):
        stack(tmp_path, SKYHIGH_GATEWAY_PORT=value)


def test_given_servers_are_used_instead_of_own_ones(tmp_path: Path) -> None:
    given = stack(
        tmp_path,
        SKYHIGH_DATABASE_URL="postgresql://me:secret@db.example:5432/air?sslmode=require",
        SKYHIGH_AMQP_URL="amqp://me:secret@mq.example/air",
        SKYHIGH_REDIS_URL="redis://cache.example/3",
    )
    assert [process.name for process in given.processes()] == ["seat", "gateway"]
    seat = process(given, "seat")
    assert seat.after == ()
    assert seat.environment["SKYHIGH_REDIS_URL"] == "redis://cache.example/3"
    assert seat.environment["SKYHIGH_SEAT_AMQP_URL"] == "amqp://me:secret@mq.example/air"
    url = seat.environment["SKYHIGH_SEAT_DATABASE_URL"]
    assert url == f"postgresql://seat:{given.secrets['postgres/seat']}@db.example:5432/air?sslmode=require"


def test_a_service_sees_no_owners_url_but_its_own(tmp_path: Path) -> None:
    seat = process(stack(tmp_path), "seat")
    assert {"SKYHIGH_DATABASE_URL", "SKYHIGH_AMQP_URL"} <= seat.hidden
    assert seat.environment["SKYHIGH_SEAT_DATABASE_URL"].startswith("postgresql://seat:")
    assert seat.environment["SKYHIGH_SEAT_AMQP_URL"].startswith("amqp://seat:")


def test_a_service_setting_that_is_given_wins(tmp_path: Path) -> None:
    seat = process(stack(tmp_path, SKYHIGH_SEAT_DATABASE_URL="postgresql://x@db.example/seats"), "seat")
    assert seat.environment["SKYHIGH_SEAT_DATABASE_URL"] == "postgresql://x@db.example/seats"


def test_the_addresses_are_the_documented_variables(tmp_path: Path) -> None:
    addresses = stack(tmp_path, SKYHIGH_PORT_BASE="20000").addresses
    assert list(addresses) == [
        "SKYHIGH_GATEWAY_URL",
        "SKYHIGH_DATABASE_URL",
        "SKYHIGH_AMQP_URL",
        "SKYHIGH_REDIS_URL",
        "SKYHIGH_SEAT_ADDRESS",
    ]
    assert addresses["SKYHIGH_GATEWAY_URL"] == "http://127.0.0.1:20000"
    assert addresses["SKYHIGH_SEAT_ADDRESS"] == "127.0.0.1:20051"


def test_secrets_stay_and_are_their_owners_alone(tmp_path: Path) -> None:
    first = stack(tmp_path).servers.database_url()
    assert stack(tmp_path).servers.database_url() == first
    assert (tmp_path / "secrets.json").stat().st_mode & 0o777 == 0o600


def test_a_service_declares_its_own_queues_and_no_exchange() -> None:
    assert broker_permissions("seat") == {
        "configure": r"^seat\..*$",
        "write": r"^(seat\..*|skyhigh\.(events|dead))$",
        "read": r"^(seat\..*|skyhigh\.(events|dead))$",
    }

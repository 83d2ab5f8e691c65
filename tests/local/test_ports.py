"""The ports of a stack that are in use and by which program, and the settings that conflict."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from deploy.local import ports
from deploy.local.ports import Reservations, holders, listened_on, obstacle, outgoing_range, shared
from deploy.local.process import LOOPBACK, free_ports
from deploy.local.process_table import processes_of
from deploy.local.stack import Stack
from tests.waiting import eventually


@contextmanager
def listener(host: str = LOOPBACK, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> Iterator[int]:
    """Listens within the block; yields the port."""
    with socket.socket(family) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, port))
        opened.listen()
        yield int(opened.getsockname()[1])


@contextmanager
def connection() -> Iterator[int]:
    """Keeps a connection open within the block.

    Yields the port of its near end, on which no program listens.
    """
    with listener() as port, socket.create_connection((LOOPBACK, port)) as near:
        yield int(near.getsockname()[1])


def test_a_listener_is_named_with_its_program_and_pid() -> None:
    with listener() as port:
        assert listened_on([port])[port].program == f"{Path('/proc/self/comm').read_text().strip()}, pid {os.getpid()}"


@pytest.mark.parametrize(
    ("host", "family"), [("0.0.0.0", socket.AF_INET), ("::", socket.AF_INET6), ("::ffff:127.0.0.1", socket.AF_INET6)]
)
def test_a_listener_on_all_addresses_is_in_the_way(host: str, family: socket.AddressFamily) -> None:
    with listener(host, family=family) as port:
        assert port in listened_on([port])


@pytest.mark.parametrize(("host", "family"), [("127.0.0.2", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_a_listener_on_another_address_is_not_in_the_way(host: str, family: socket.AddressFamily) -> None:
    (free,) = free_ports(1)
    with listener(host, free, family) as port:
        assert port not in listened_on([port])


def test_the_near_end_of_a_connection_is_no_listener() -> None:
    with connection() as port:
        assert listened_on([port]) == {}
        # Another process may have a connection whose near end has the same port.
        assert {holder.listens for holder in holders([port])} == {False}


def test_a_connection_that_keeps_a_server_from_its_port_is_named() -> None:
    with connection() as port, listener() as another:
        assert obstacle([port, another]).startswith("a connection of ")
        assert f"pid {os.getpid()} uses port {port} as its local port" in obstacle([port, another])
        assert obstacle([another]) == ""


def test_a_connection_that_has_ended_is_named_while_the_kernel_keeps_its_port() -> None:
    with listener() as port, socket.socket() as server:
        server.bind((LOOPBACK, 0))
        server.listen()
        near = socket.create_connection(server.getsockname())
        ended = int(near.getsockname()[1])
        far, _ = server.accept()
        # The end that closes first keeps its port.
        near.shutdown(socket.SHUT_WR)
        assert far.recv(1) == b""
        far.close()
        assert near.recv(1) == b""
        near.close()
        named = obstacle([ended, port])
        # Another process may have a connection whose near end has the same port; it is named first.
        assert named.startswith((f"a connection that has ended may keep port {ended}", "a connection of "))
        assert str(ended) in named


def test_a_closed_port_has_no_holder() -> None:
    with listener() as port:
        pass
    assert holders([port]) == []


def test_a_reserved_port_is_free_for_a_server_and_for_no_connection() -> None:
    with listener() as port:
        # The kernel chose this port.
        assert port in outgoing_range()
    reservations = Reservations()
    assert reservations.reserve([port]) == set()
    try:
        with listener(port=port):
            assert port in listened_on([port])
        with socket.socket() as outgoing, pytest.raises(OSError, match="in use"):
            # Like the near end of a connection, this socket does not ask to share the port.
            outgoing.bind((LOOPBACK, port))
    finally:
        reservations.close()
    with listener(port=port):
        pass


async def test_a_port_in_use_is_reserved_after_its_connection_has_ended() -> None:
    reservations = Reservations()

    async def reserved() -> bool:
        return reservations.reserve([port]) == set()

    with ExitStack() as stack:
        port = stack.enter_context(connection())
        assert reservations.reserve([port]) == {port}
        stack.close()
        # Another process may use the port for a connection meanwhile.
        await eventually(reserved)
    reservations.close()


def test_ports_outside_the_outgoing_range_are_not_reserved() -> None:
    reservations = Reservations()
    low = outgoing_range().start - 1
    assert reservations.reserve([low]) == set()
    with socket.socket() as other:
        other.bind((LOOPBACK, low))


def test_names_with_one_port_are_grouped() -> None:
    assert shared({"A": 1, "B": 2, "C": 1}) == [["A", "C"]]


def conflicts(home: Path, text: object, **given: str) -> list[str]:
    """Returns the port conflicts that contain a text, of a stack with these settings.

    Another process may have taken a port of the base meanwhile, which is no matter of the test.
    """
    stack = Stack.from_environment({"SKYHIGH_HOME": str(home), "SKYHIGH_PORT_BASE": free_base(), **given})
    return [conflict for conflict in ports.conflicts(processes_of(stack)) if str(text) in conflict]


def free_base() -> str:
    """Returns a base whose ports are all free now."""
    for base in range(20000, 32000, 500):
        if not listened_on(range(base, base + 500)):
            return str(base)
    raise AssertionError("no free ports")


@pytest.mark.parametrize(
    "variable",
    [
        *("SKYHIGH_GATEWAY_PORT", "SKYHIGH_GATEWAY_ADMIN_PORT", "SKYHIGH_SEAT_PORT", "SKYHIGH_LIMITS_PORT"),
        *("SKYHIGH_POSTGRES_PORT", "SKYHIGH_REDIS_PORT", "SKYHIGH_AMQP_PORT", "SKYHIGH_EPMD_PORT"),
        *("SKYHIGH_AMQP_DISTRIBUTION_PORT", "SKYHIGH_SEAT_WORKER_PORT", "SKYHIGH_BOOKING_METRICS_PORT"),
        *("SKYHIGH_MOCK_MAIL_PORT", "SKYHIGH_MOCK_MAIL_CONTROL_PORT", "SKYHIGH_MOCK_WEIGHT_CONTROL_PORT"),
    ],
)
def test_a_taken_port_is_named_with_its_variable_and_program(tmp_path: Path, variable: str) -> None:
    with listener() as port:
        (conflict,) = conflicts(tmp_path, port, **{variable: str(port)})
        assert conflict.startswith(f"{variable}={port} (")
        assert f"pid {os.getpid()} listens there" in conflict


@pytest.mark.parametrize("kind", ["WORKER", "METRICS"])
def test_the_port_of_a_later_worker_is_checked(tmp_path: Path, kind: str) -> None:
    with listener() as port:
        given = {f"SKYHIGH_PAYMENT_{kind}_PORT": str(port - 2), "SKYHIGH_PAYMENT_PROCESSES": "3"}
        assert any(
            conflict.startswith(f"SKYHIGH_PAYMENT_{kind}_PORT + 2={port} (")
            for conflict in conflicts(tmp_path, port, **given)
        )


def test_a_connection_on_a_port_of_the_stack_is_no_conflict(tmp_path: Path) -> None:
    with connection() as port:
        assert conflicts(tmp_path, port, SKYHIGH_WAITLIST_PORT=str(port)) == []


def test_two_settings_with_one_port_are_named(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    found = conflicts(tmp_path, port, SKYHIGH_SEAT_PORT=str(port), SKYHIGH_REDIS_PORT=str(port))
    assert found == [f"SKYHIGH_REDIS_PORT and SKYHIGH_SEAT_PORT are both {port}"]


def test_more_workers_than_there_are_ports_between_two_services_is_a_conflict(tmp_path: Path) -> None:
    found = conflicts(tmp_path, "are both", SKYHIGH_SEAT_PROCESSES="21")
    assert [conflict.rpartition(" ")[0] for conflict in found] == [
        f"SKYHIGH_SEAT_{kind}_PORT + 20 and SKYHIGH_CHECKIN_{kind}_PORT are both" for kind in ("WORKER", "METRICS")
    ]


@pytest.mark.parametrize("value", ["0", "65", "two", "-1"])
def test_a_wrong_number_of_processes_is_named(tmp_path: Path, value: str) -> None:
    with pytest.raises(ValueError, match="SKYHIGH_SEAT_PROCESSES"):
        Stack.from_environment({"SKYHIGH_HOME": str(tmp_path), "SKYHIGH_SEAT_PROCESSES": value})

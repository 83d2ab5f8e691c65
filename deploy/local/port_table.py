"""The ports of a stack by name: their defaults, and the variables that set them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Final

from deploy.local.mocks import MOCKS
from deploy.local.process import port_is_free
from deploy.local.services import SERVICES

# Name: (default, offset from SKYHIGH_PORT_BASE). SKYHIGH_<NAME>_PORT sets one port alone. The private servers do not
# use the standard ports, because servers of the machine may have them, nor the range of outgoing connections.
PORTS: Final[Mapping[str, tuple[int, int]]] = (
    {
        "gateway": (8080, 0),
        "gateway_admin": (9901, 1),
        "postgres": (17432, 10),
        "redis": (17379, 11),
        "amqp": (17672, 12),
        "amqp_distribution": (17673, 13),
        "epmd": (17369, 14),
    }
    | {
        name: port
        for service in SERVICES
        for name, port in {
            service.label: (50050 + service.number, 50 + service.number),
            # Each further process of a service takes the next port: there is room for twenty.
            f"{service.label}_worker": (18000 + 20 * service.number, 100 + 20 * service.number),
            f"{service.label}_metrics": (18400 + 20 * service.number, 300 + 20 * service.number),
        }.items()
    }
    | {
        name: (50060 + number, 60 + number)
        for mock in MOCKS
        # If both numbers are equal, the mock's own name replaces the name of the control port.
        for number, name in {mock.control_number: f"mock_{mock.name}_control", mock.number: f"mock_{mock.name}"}.items()
    }
)
# All ports of a stack are less than this above its base.
PORT_SPAN: Final = 500
# Bases for which all ports are below the range that the kernel gives to outgoing connections.
FREE_BASES: Final = (20_000, 32_000 - PORT_SPAN)


def ports_from(given: Mapping[str, str]) -> dict[str, int]:
    """Returns the ports of a stack with these variables. Raises ValueError with the name of a wrong one."""
    base = _port_from(given, "SKYHIGH_PORT_BASE", highest=65535 - PORT_SPAN)
    return {
        name: _port_from(given, port_variable(name)) or (base + offset if base else default)
        for name, (default, offset) in PORTS.items()
    }


def port_variable(name: str) -> str:
    """Returns the variable that sets this port alone."""
    return f"SKYHIGH_{name.upper()}_PORT"


def free_port_base() -> int:
    """Returns a SKYHIGH_PORT_BASE at which all ports of a stack are free now. Raises RuntimeError if it finds none."""
    for _ in range(50):
        base = random.SystemRandom().randrange(*FREE_BASES)
        if all(port_is_free(base + offset) for _, offset in PORTS.values()):
            return base
    raise RuntimeError(f"no free ports between {FREE_BASES[0]} and {FREE_BASES[1] + PORT_SPAN}")


def _port_from(given: Mapping[str, str], name: str, *, highest: int = 65535) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if not value.isdecimal() or not 1024 <= int(value) <= highest:
        raise ValueError(f"{name}: {value!r} is not a port between 1024 and {highest}")
    return int(value)

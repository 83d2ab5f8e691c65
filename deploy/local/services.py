"""The services of a stack: one row for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

MOST_PROCESSES: Final = 64


@dataclass(frozen=True, slots=True)
class Service:
    """A service of ours. Its row gives it a role, schema, broker user, ports, process and address."""

    name: str
    """Also the name of its role, schema and broker user; in capitals, part of the names of its variables."""
    number: int
    """Its number among the services; its ports are computed from it."""
    module: str
    health: str
    """The name for which grpc.health.v1 must report SERVING before the gateway starts."""
    processes: int = 1
    """How many processes it has if SKYHIGH_<NAME>_PROCESSES is not set."""
    calls: tuple[str, ...] = ()
    """Services that it calls. It gets their addresses, and a token for its calls."""
    reads: tuple[str, ...] = ()
    """Services of which it calls only RPCs that need no token. It gets their addresses."""
    settings: tuple[str, ...] = ()
    """The names of the settings that it gets from `Stack.values`."""
    alias: str = ""
    """The name of its process and ports, if another part has its own name."""

    @property
    def label(self) -> str:
        """The name of its process and ports."""
        return self.alias or self.name


SERVICES: Final = (
    # A rush reaches the seat service, so it has a process for each of two cores. One process is enough for each other
    # service, and starts sooner.
    Service(
        "seat",
        number=1,
        module="seat_service",
        health="skyhigh.seat.v1.SeatService",
        processes=2,
        reads=("flight",),
    ),
    Service(
        "checkin",
        number=2,
        module="checkin_service",
        health="skyhigh.checkin.v1.CheckInService",
        calls=("seat", "payment"),
        reads=("flight",),
        settings=("SKYHIGH_SESSION_KEY", "SKYHIGH_WEIGHT_ADDRESS", "SKYHIGH_SMTP_ADDRESS"),
    ),
    Service(
        "waitlist",
        number=3,
        module="waitlist_service",
        health="skyhigh.waitlist.v1.WaitlistService",
        calls=("seat", "checkin"),
        reads=("flight",),
        settings=("SKYHIGH_SMTP_ADDRESS",),
    ),
    Service(
        "payment",
        number=4,
        module="payment_service",
        health="skyhigh.payment.v1.PaymentService",
        settings=("SKYHIGH_PAYMENT_PROVIDER_URL", "SKYHIGH_PAYMENT_WEBHOOK_SECRETS"),
    ),
    Service("flight", number=5, module="flight_service", health="skyhigh.flight.v1.FlightService", calls=("seat",)),
    Service(
        "booking",
        number=6,
        module="booking_service",
        health="skyhigh.booking.v1.BookingService",
        calls=("seat", "flight", "payment", "checkin"),
        settings=("SKYHIGH_SESSION_KEY", "SKYHIGH_SMTP_ADDRESS"),
    ),
    # Envoy is the gateway. It calls this service for rate limits and blocks.
    Service(
        "gateway",
        number=7,
        module="gateway.guard",
        health="skyhigh.gateway.v1.GatewayAdmin",
        settings=("SKYHIGH_RATE_LIMITS",),
        alias="limits",
    ),
)


def process_count(service: Service, given: Mapping[str, str]) -> int:
    """Returns how many processes the service has. Raises ValueError if its variable in `given` has a wrong value."""
    name = f"SKYHIGH_{service.name.upper()}_PROCESSES"
    value = given.get(name, str(service.processes))
    if not value.isdecimal() or not 1 <= int(value) <= MOST_PROCESSES:
        raise ValueError(f"{name}: {value!r} is not a number between 1 and {MOST_PROCESSES}")
    return int(value)

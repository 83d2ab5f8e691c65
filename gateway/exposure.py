"""What the outside may call, and how: the one table that the routes are made from.

A service or an RPC that the protos have and this table lacks stops the rendering, so that nothing is shown or
forgotten by accident.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Call(Enum):
    """How the edge treats an RPC."""

    READ = "read"
    """Changes nothing, so that it may be sent again after UNAVAILABLE."""
    WRITE = "write"
    """May change something: sent again only where the service cannot have seen it."""
    WATCH = "watch"
    """Streams for as long as the reader wants."""
    INTERNAL = "internal"
    """Has no route: only services call it, on the service's own port."""


@dataclass(frozen=True, slots=True)
class ServiceExposure:
    """One gRPC service behind the edge."""

    name: str
    """Its full proto name."""
    cluster: str
    """Envoy's name for where it runs; `<cluster>-watch` carries its streams."""
    address_setting: str
    """The field of `GatewaySettings` that says where it listens."""
    calls: dict[str, Call]
    """Each RPC by its name."""


SERVICES = (
    ServiceExposure(
        name="skyhigh.seat.v1.SeatService",
        cluster="seat",
        address_setting="seat_address",
        calls={
            "ProvisionSeats": Call.WRITE,
            "GetSeatMap": Call.READ,
            "GetSeatMapJson": Call.READ,
            "WatchSeatMap": Call.WATCH,
            "SuggestSeats": Call.READ,
            "HoldSeat": Call.WRITE,
            "HoldSeats": Call.WRITE,
            "GetHold": Call.READ,
            "ExtendHold": Call.WRITE,
            "ChangeHoldSeats": Call.WRITE,
            "ConfirmHold": Call.WRITE,
            "CancelHold": Call.WRITE,
            "BlockSeat": Call.WRITE,
            "UnblockSeat": Call.WRITE,
            "ListSeatEvents": Call.READ,
            "ClaimSeat": Call.INTERNAL,
            "ReturnSeat": Call.INTERNAL,
            "SetWaitlistOpen": Call.INTERNAL,
        },
    ),
)

"""The services behind the edge.

An RPC of theirs has a route if its proto declares a place at the gateway (`services/rpcs.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from google.protobuf.descriptor import ServiceDescriptor
from skyhigh.booking.v1 import booking_service_pb2
from skyhigh.checkin.v1 import checkin_service_pb2
from skyhigh.flight.v1 import flight_service_pb2
from skyhigh.gateway.v1 import gateway_admin_pb2
from skyhigh.payment.v1 import payment_service_pb2
from skyhigh.seat.v1 import seat_service_pb2
from skyhigh.waitlist.v1 import waitlist_service_pb2

from services import rpcs
from services.rpcs import Rpc


@dataclass(frozen=True, slots=True)
class Upstream:
    """One gRPC service behind the edge."""

    name: str
    """Full name of the proto service."""
    cluster: str
    """Name of its cluster in Envoy; the cluster `<cluster>-watch` carries its streams."""
    rpcs: Mapping[str, Rpc]
    """The declarations of its RPCs by name, internal ones included."""

    @property
    def address_setting(self) -> str:
        """The field of `GatewaySettings` with its addresses."""
        return f"{self.cluster}_address"

    @property
    def exposed(self) -> Mapping[str, Rpc]:
        """The declarations of the RPCs that have a route, by name."""
        return {name: rpc for name, rpc in self.rpcs.items() if rpc.exposed}


def _upstream(service: ServiceDescriptor) -> Upstream:
    cluster = service.full_name.removeprefix("skyhigh.").partition(".")[0]
    return Upstream(service.full_name, cluster, rpcs.of_service(service))


UPSTREAMS: Final = (
    _upstream(seat_service_pb2.DESCRIPTOR.services_by_name["SeatService"]),
    _upstream(checkin_service_pb2.DESCRIPTOR.services_by_name["CheckInService"]),
    _upstream(waitlist_service_pb2.DESCRIPTOR.services_by_name["WaitlistService"]),
    _upstream(payment_service_pb2.DESCRIPTOR.services_by_name["PaymentService"]),
    _upstream(flight_service_pb2.DESCRIPTOR.services_by_name["FlightService"]),
    _upstream(booking_service_pb2.DESCRIPTOR.services_by_name["BookingService"]),
    _upstream(gateway_admin_pb2.DESCRIPTOR.services_by_name["GatewayAdmin"]),
)

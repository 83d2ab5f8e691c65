"""What the outside may call, and how: the one table that the routes are made from.

A service or an RPC that the protos have and this table lacks stops the rendering, so that nothing is shown or
forgotten by accident.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum

# 500 passengers, the most of one import, with 1 KiB of JSON for each; a full 787 has 71 KB.
LARGE_BODY_BYTES = 512 * 1024


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


class CallClass(StrEnum):
    """What is counted together where calls are limited (gateway/limits.py)."""

    MAP = "map"
    """Seat maps, the most asked-for answer."""
    HOLD = "hold"
    """What takes a seat from everybody else."""
    LOGIN = "login"
    """What gives a token to somebody who has none."""
    SEARCH = "search"
    """What anybody may read without a token."""
    WEBHOOK = "webhook"
    """What another company's machine tells us."""
    READ = "read"
    WRITE = "write"
    WATCH = "watch"


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
    public: frozenset[str] = frozenset()
    """Those that need no token."""
    classes: dict[str, CallClass] = field(default_factory=dict)
    """Those that are not counted as what they are: a read, a write, a watch, or a search where no token is needed."""
    large: frozenset[str] = frozenset()
    """Those whose body may have `LARGE_BODY_BYTES` instead of 64 KiB."""

    def class_of(self, rpc: str) -> CallClass:
        """With which other RPCs it is counted."""
        if rpc in self.classes:
            return self.classes[rpc]
        return CallClass.SEARCH if rpc in self.public else CallClass(self.calls[rpc].value)


# Asked by our services and served by others.
NOT_OURS = frozenset({"skyhigh.weight.v1.WeightService"})

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
            "ReleasePassengerSeat": Call.INTERNAL,
            "FindPassengerSeats": Call.INTERNAL,
            "SetWaitlistOpen": Call.INTERNAL,
            "SyncPassengers": Call.INTERNAL,
        },
        classes={
            "GetSeatMap": CallClass.MAP,
            "GetSeatMapJson": CallClass.MAP,
            "HoldSeat": CallClass.HOLD,
            "HoldSeats": CallClass.HOLD,
        },
    ),
    ServiceExposure(
        name="skyhigh.checkin.v1.CheckInService",
        cluster="checkin",
        address_setting="checkin_address",
        calls={
            "ImportManifest": Call.WRITE,
            "CreateSession": Call.WRITE,
            "GetTrip": Call.READ,
            "GetEligibility": Call.READ,
            "StartCheckIn": Call.WRITE,
            "GetCheckIn": Call.READ,
            "WatchCheckIn": Call.WATCH,
            "DeclareBaggage": Call.WRITE,
            "CancelCheckIn": Call.WRITE,
            "GetBoardingPass": Call.READ,
            "GetBoardingPassSvg": Call.READ,
            "GetBoardingPassPng": Call.READ,
            "ListCheckIns": Call.READ,
            "GetPassenger": Call.INTERNAL,
            "ReserveLocator": Call.INTERNAL,
            "FindPassengers": Call.INTERNAL,
        },
        public=frozenset({"CreateSession"}),
        classes={"CreateSession": CallClass.LOGIN},
        large=frozenset({"ImportManifest"}),
    ),
    ServiceExposure(
        name="skyhigh.waitlist.v1.WaitlistService",
        cluster="waitlist",
        address_setting="waitlist_address",
        calls={
            "JoinWaitlist": Call.WRITE,
            "GetWaitlistEntry": Call.READ,
            "AcceptOffer": Call.WRITE,
            "DeclineOffer": Call.WRITE,
            "LeaveWaitlist": Call.WRITE,
            "ListWaitlist": Call.READ,
            "SetWaitlistMode": Call.WRITE,
        },
    ),
    ServiceExposure(
        name="skyhigh.payment.v1.PaymentService",
        cluster="payment",
        address_setting="payment_address",
        calls={
            "CreatePaymentIntent": Call.INTERNAL,
            "CancelPaymentIntent": Call.INTERNAL,
            "RefundPayment": Call.INTERNAL,
            "GetPaymentIntent": Call.READ,
            "SubmitPaymentCode": Call.WRITE,
            "ReceiveWebhook": Call.WRITE,
        },
        # Its signature is its token.
        public=frozenset({"ReceiveWebhook"}),
        classes={"ReceiveWebhook": CallClass.WEBHOOK},
    ),
    ServiceExposure(
        name="skyhigh.flight.v1.FlightService",
        cluster="flight",
        address_setting="flight_address",
        calls={
            "CreateFlight": Call.WRITE,
            "CancelFlight": Call.WRITE,
            "ListFlights": Call.READ,
            "GetFlight": Call.READ,
            "SearchFlights": Call.READ,
            "GetItinerary": Call.READ,
        },
        # Whoever looks for a flight has not met us yet.
        public=frozenset({"ListFlights", "GetFlight", "SearchFlights", "GetItinerary"}),
    ),
    ServiceExposure(
        name="skyhigh.booking.v1.BookingService",
        cluster="booking",
        address_setting="booking_address",
        calls={
            "CreateGuestSession": Call.WRITE,
            "CreateBooking": Call.WRITE,
            "GetBooking": Call.READ,
            "WatchBooking": Call.WATCH,
            "ChangeBookingSeats": Call.WRITE,
            "PayBooking": Call.WRITE,
            "CancelBooking": Call.WRITE,
        },
        public=frozenset({"CreateGuestSession"}),
        classes={"CreateGuestSession": CallClass.LOGIN},
    ),
    ServiceExposure(
        name="skyhigh.gateway.v1.GatewayAdmin",
        cluster="gateway",
        address_setting="gateway_address",
        calls={
            "ListIncidents": Call.READ,
            "ListBlocks": Call.READ,
            "LiftBlock": Call.WRITE,
            "ListLimits": Call.READ,
            "SetLimit": Call.WRITE,
        },
    ),
)

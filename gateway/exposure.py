"""The RPCs that outside clients can call: the table for Envoy's routes.

If the protos have a service or an RPC that is not in this table, rendering fails, so that none is exposed or forgotten
by accident.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum

# Enough for 500 passengers, the most of one import, with 1 KiB of JSON each; the manifest of a full 787 has 71 KB.
LARGE_BODY_BYTES = 512 * 1024


class Call(Enum):
    """How the edge treats an RPC."""

    READ = "read"
    """Changes nothing, so the edge may retry it after UNAVAILABLE."""
    WRITE = "write"
    """May change something: the edge retries it only if the service cannot have received it."""
    WATCH = "watch"
    """Streams until the client ends it."""
    INTERNAL = "internal"
    """Has no route: only services call it, on the service's own port."""


class CallClass(StrEnum):
    """A class of RPCs that have one rate limit together (gateway/limits.py)."""

    MAP = "map"
    """Seat maps, the most frequent calls."""
    HOLD = "hold"
    """RPCs that hold seats."""
    LOGIN = "login"
    """RPCs that issue a token to callers without one."""
    SEARCH = "search"
    """Reads without a token."""
    WEBHOOK = "webhook"
    """Webhooks from the payment provider."""
    READ = "read"
    WRITE = "write"
    WATCH = "watch"


@dataclass(frozen=True, slots=True)
class ServiceExposure:
    """One gRPC service behind the edge."""

    name: str
    """Full name of the proto service."""
    cluster: str
    """Name of its cluster in Envoy; the cluster `<cluster>-watch` carries its streams."""
    address_setting: str
    """The field of `GatewaySettings` with its addresses."""
    calls: dict[str, Call]
    """How the edge treats each RPC, by name."""
    public: frozenset[str] = frozenset()
    """RPCs that need no token."""
    classes: dict[str, CallClass] = field(default_factory=dict)
    """Classes of RPCs that do not have the default: read, write or watch as in `calls`, search if they need no
    token."""
    large: frozenset[str] = frozenset()
    """RPCs whose body may have `LARGE_BODY_BYTES` instead of 64 KiB."""

    def class_of(self, rpc: str) -> CallClass:
        """Returns the class with which calls of the RPC are counted."""
        if rpc in self.classes:
            return self.classes[rpc]
        return CallClass.SEARCH if rpc in self.public else CallClass(self.calls[rpc].value)


# Services of other systems, which our services call.
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
        # The signature of the webhook replaces a token.
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
        # People search for flights before they have a token.
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

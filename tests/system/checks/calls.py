"""What the contract says of each RPC.

That is its service, the roles that may call it, and the resource in its response.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from tests.system.history import History, Operation

# Roles by their letters: passenger session, booking customer, agent, operations, service, and no token.
ROLES: Final[Mapping[str, str]] = {
    "P": "passenger", "C": "customer", "A": "agent", "O": "operations", "S": "service", "-": "",
}  # fmt: skip

# Service and roles of each RPC (the tables of docs/rules.md, section 3).
_CALLS: Final = """
seat ProvisionSeats OS
seat GetSeatMap PCAOS
seat GetSeatMapJson PCAOS
seat WatchSeatMap PCAOS
seat SuggestSeats PCAS
seat HoldSeat PCAS
seat HoldSeats PCAS
seat GetHold PCAOS
seat ExtendHold PCAS
seat ChangeHoldSeats PCAS
seat ConfirmHold PAS
seat CancelHold PCAS
seat BlockSeat AO
seat UnblockSeat AO
seat ListSeatEvents AO
seat ClaimSeat S
seat ReturnSeat S
seat ReleasePassengerSeat S
seat FindPassengerSeats S
seat SyncPassengers S
seat SetWaitlistOpen S
checkin ImportManifest OS
checkin CreateSession -
checkin GetTrip PA
checkin GetEligibility PAS
checkin StartCheckIn PA
checkin GetCheckIn PAO
checkin WatchCheckIn PAO
checkin DeclareBaggage PA
checkin CancelCheckIn PA
checkin GetBoardingPass PA
checkin GetBoardingPassSvg PA
checkin GetBoardingPassPng PA
checkin ListCheckIns AO
checkin GetPassenger S
checkin ReserveLocator S
checkin FindPassengers S
waitlist JoinWaitlist PA
waitlist GetWaitlistEntry PA
waitlist AcceptOffer PA
waitlist DeclineOffer PA
waitlist LeaveWaitlist PA
waitlist ListWaitlist AO
waitlist SetWaitlistMode AO
payment CreatePaymentIntent S
payment CancelPaymentIntent S
payment RefundPayment AS
payment GetPaymentIntent PCAS
payment SubmitPaymentCode PCS
payment ReceiveWebhook -
flight CreateFlight O
flight CancelFlight O
flight ListFlights -
flight GetFlight -
flight SearchFlights -
flight GetItinerary -
booking CreateGuestSession -
booking CreateBooking CA
booking GetBooking CA
booking WatchBooking CA
booking ChangeBookingSeats CA
booking PayBooking CA
booking CancelBooking CA
gateway ListIncidents AO
gateway ListBlocks AO
gateway LiftBlock AO
"""

SERVICE_OF: Final[Mapping[str, str]] = {call: service for service, call, _ in map(str.split, _CALLS.split("\n")[1:-1])}
ROLES_OF: Final[Mapping[str, frozenset[str]]] = {
    call: frozenset(ROLES[letter] for letter in letters)
    for _, call, letters in map(str.split, _CALLS.split("\n")[1:-1])
}

# Calls whose response is a resource in its present or first state, by the field of its id.
HOLD_CALLS: Final = frozenset(
    {"HoldSeat", "HoldSeats", "GetHold", "ExtendHold", "ChangeHoldSeats", "ConfirmHold", "CancelHold"}
)
BOOKING_CALLS: Final = frozenset(
    {"CreateBooking", "GetBooking", "WatchBooking", "ChangeBookingSeats", "PayBooking", "CancelBooking"}
)
CHECK_IN_CALLS: Final = frozenset({"StartCheckIn", "GetCheckIn", "WatchCheckIn", "DeclareBaggage", "CancelCheckIn"})
ENTRY_CALLS: Final = frozenset({"JoinWaitlist", "GetWaitlistEntry", "AcceptOffer", "DeclineOffer", "LeaveWaitlist"})
INTENT_CALLS: Final = frozenset({"GetPaymentIntent", "SubmitPaymentCode", "RefundPayment"})
# Calls that change nothing, so that a repeat is not the repeat of a change.
READS: Final = frozenset(
    call for call in SERVICE_OF if call.startswith(("Get", "List", "Watch", "Search", "Suggest", "Find"))
)


def parameters(operation: Operation) -> str:
    """Returns the RPC and its parameters without the key: the request for which a key was used."""
    without_key = {name: value for name, value in operation.request.items() if name != "request_id"}
    return f"{operation.call} {json.dumps(without_key, sort_keys=True)}"


def shown(operation: Operation, calls: frozenset[str]) -> Iterator[tuple[float, dict[str, Any]]]:
    """Yields the resources in an operation's response.

    Each comes with the time at which the client received it.
    """
    if operation.call not in calls or operation.answer is None or operation.returned is None:
        return
    if "messages" in operation.answer:
        for message in operation.answer["messages"]:
            for kind in ("booking", "checkin"):
                if kind in message:
                    yield float(message["at"]), message[kind]
    elif operation.ok:
        yield operation.returned, operation.answer


def minor_units(money: Mapping[str, Any] | None) -> int:
    """Converts google.type.Money to cents; 0 if it is missing.

    All fares and fees are in USD.
    """
    if not money:
        return 0
    return int(money.get("units", 0)) * 100 + int(money.get("nanos", 0)) // 10_000_000


def changed_holds(history: History) -> set[str]:
    """Returns the holds that a change may have reached.

    A change can move passengers to other seats of the hold, which leaves no event of a seat.
    """
    return {
        str(operation.request.get("hold_id", ""))
        for operation in history.of_calls("ChangeHoldSeats")
        if operation.outcome != "refused"
    }

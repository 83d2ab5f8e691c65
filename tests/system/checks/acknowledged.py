"""No acknowledged change is lost, and whatever a response showed was true.

Each success and each read is compared with the databases: the hold with its seats, the booking with its passengers and
price, the transition to the state in the response. A final state stays the last one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from tests.system.checks.calls import (
    BOOKING_CALLS,
    CHECK_IN_CALLS,
    ENTRY_CALLS,
    HOLD_CALLS,
    INTENT_CALLS,
    changed_holds,
    minor_units,
    shown,
)
from tests.system.checks.violation import Violation
from tests.system.history import History, Operation
from tests.system.truth import BookingRow, Place, Truth

CHECK: Final = "acknowledged"

# Kinds of resources with a history: the calls that show them, the field of their id, their final states.
_HISTORIES: Final = (
    (BOOKING_CALLS, "booking_id", frozenset({"CANCELLED"})),
    (CHECK_IN_CALLS, "checkin_id", frozenset({"CANCELLED"})),
    (ENTRY_CALLS, "entry_id", frozenset({"ASSIGNED", "DECLINED", "LEFT"})),
    (INTENT_CALLS, "intent_id", frozenset({"CANCELLED", "REFUNDED"})),
)
# The effect of a successful call, whatever happened before and after it.
_BRINGS: Final[Mapping[str, tuple[str, str]]] = {
    "PayBooking": ("booking_id", "PAYMENT_PENDING"),
    "CancelCheckIn": ("checkin_id", "CANCELLED"),
    "AcceptOffer": ("entry_id", "ASSIGNED"),
    "DeclineOffer": ("entry_id", "DECLINED"),
    "LeaveWaitlist": ("entry_id", "LEFT"),
    "SubmitPaymentCode": ("intent_id", "PROCESSING"),
}
# Responses contain times in microseconds.
TIME_TOLERANCE_SECONDS: Final = 0.001


def check(history: History, truth: Truth) -> list[Violation]:
    """Returns the responses that the databases contradict."""
    found: list[Violation] = []
    states: set[tuple[str, str]] = set()
    for operation in history:
        if operation.ok:
            found += [Violation(CHECK, text, [operation]) for text in _lost(operation, truth)]
        for calls, field, final in _HISTORIES:
            for _, resource in shown(operation, calls):
                name = (str(resource.get(field, "")), str(resource.get("state", "")))
                if name in states:
                    continue
                text = _contradicted(truth, *name, final=name[1] in final)
                if text:
                    found.append(Violation(CHECK, text, [operation]))
                else:
                    states.add(name)
    return [*found, *_passengers_lost(history, truth), *_shortened(history, truth)]


def _contradicted(truth: Truth, subject: str, state: str, *, final: bool) -> str:
    steps = truth.steps.get(subject, [])
    if not any(step.to_state == state for step in steps):
        return f"{subject} was shown as {state or 'nothing'}, and never was"
    if final and steps[-1].to_state != state:
        return f"{subject} was shown as {state}, which is final, and became {steps[-1].to_state}"
    return ""


def _lost(operation: Operation, truth: Truth) -> Iterator[str]:
    answer = operation.answer or {}
    looked_up = _LOOKED_UP.get(operation.call)
    if looked_up is not None:
        yield from looked_up(operation, answer, truth)
    if operation.call in _BRINGS:
        field, state = _BRINGS[operation.call]
        steps = truth.steps.get(str(operation.request.get(field, "")), ())
        if not any(step.to_state == state for step in steps):
            yield f"it never was {state}"


def _check_in_lost(operation: Operation, answer: Mapping[str, Any], truth: Truth) -> Iterator[str]:
    row = truth.check_in.get(str(answer.get("checkin_id", "")))
    if row is None or (row.flight_id, row.passenger_id) != _traveller(operation):
        yield "the check-in is not there"


def _entry_lost(operation: Operation, answer: Mapping[str, Any], truth: Truth) -> Iterator[str]:
    entry = truth.entry.get(str(answer.get("entry_id", "")))
    if entry is None or (entry.flight_id, entry.passenger_id) != _traveller(operation):
        yield "the entry is not there"


def _seat_of_entry_lost(operation: Operation, answer: Mapping[str, Any], truth: Truth) -> Iterator[str]:
    """An offered seat was held for the passenger, and an assigned one was confirmed."""
    state = {"OFFERED": "HELD", "ASSIGNED": "CONFIRMED"}.get(str(answer.get("state", "")))
    if state is None:
        return
    hold_id, place = str(answer.get("hold_id", "")), (str(answer.get("flight_id")), str(answer.get("seat_number")))
    had = any(event.place == place and event.to_state == state for event in truth.events_of_hold.get(hold_id, ()))
    if not had:
        yield f"seat {place[1]} of {place[0]} was {answer['state']}, and never was {state} by its hold"


def _block_lost(operation: Operation, answer: Mapping[str, Any], truth: Truth) -> Iterator[str]:
    place = (str(operation.request.get("flight_id")), str(operation.request.get("seat_number")))
    if not any(event.to_state == "BLOCKED" for event in truth.ledger.get(place, ())):
        yield "the seat was never blocked"


def _flight_lost(operation: Operation, answer: Mapping[str, Any], truth: Truth) -> Iterator[str]:
    flight = truth.flight.get(str(answer.get("flight_id", "")))
    if flight is None:
        yield "the flight is not there"
    elif operation.call == "CancelFlight" and flight.state != "CANCELLED":
        yield f"the flight is {flight.state}"


def _refund_lost(operation: Operation, answer: Mapping[str, Any], truth: Truth) -> Iterator[str]:
    intent = truth.intent.get(str(operation.request.get("intent_id", "")))
    wanted = minor_units(operation.request.get("total_refund")) or minor_units(answer.get("amount"))
    if intent is None or (intent.refund_minor_units or 0) < wanted:
        yield "the refund is not there"


def _traveller(operation: Operation) -> tuple[Any, Any]:
    return operation.request.get("flight_id"), operation.request.get("passenger_id")


def _hold_lost(operation: Operation, answer: Mapping[str, Any], truth: Truth) -> Iterator[str]:
    hold_id = str(answer.get("hold_id", ""))
    hold = truth.hold.get(hold_id)
    if hold is None:
        yield f"hold {hold_id} is not there"
        return
    events = truth.events_of_hold.get(hold_id, ())
    held = {event.place for event in events if event.to_state == "HELD"}
    if not (seats := set(_places_in(answer))) <= held:
        yield f"hold {hold_id} never held {sorted(seats - held)}"

    if operation.call in ("HoldSeat", "HoldSeats"):
        owner = str(operation.request.get("owner") or operation.principal)
        if hold.owner != owner:
            yield f"hold {hold_id} is {hold.owner}'s"
    if answer.get("state") == "CONFIRMED":
        confirmed = {event.place for event in events if event.to_state == "CONFIRMED"}
        if not set(seats) <= confirmed or hold.confirm_time is None:
            yield f"hold {hold_id} was shown as confirmed, and {sorted(set(seats) - confirmed) or 'it'} never was"
    if answer.get("state") in ("CANCELLED", "EXPIRED") and hold.state != answer["state"]:
        yield f"hold {hold_id} was shown as {answer['state']}, and is {hold.state}"


def _shortened(history: History, truth: Truth) -> Iterator[Violation]:
    """A hold does not expire before the time in a response, unless a flight of it departed earlier.

    The flight may have a new departure time, or a change may have moved the hold to it.
    """
    departures: dict[str, float] = dict(truth.departure)
    for operation in history.of_calls("ImportManifest"):
        moved = (operation.request.get("flight") or {}).get("departure_time")
        if moved:
            flight_id = str(operation.request.get("flight_id", ""))
            departures[flight_id] = min(departures.get(flight_id, math.inf), _seconds(str(moved)))
    for operation in history.of_calls(*HOLD_CALLS):
        answer = operation.answer or {}
        hold = truth.hold.get(str(answer.get("hold_id", "")))
        if not operation.ok or hold is None or hold.expire_time is None or not answer.get("expire_time"):
            continue
        held = truth.events_of_hold.get(str(answer["hold_id"]), ())
        flights = {flight_id for flight_id, _ in [*_places_in(answer), *(event.place for event in held)]}
        ends = [departures[flight_id] for flight_id in flights if flight_id in departures]
        promised = min([_seconds(str(answer["expire_time"])), *ends])
        early = hold.expire_time < promised - TIME_TOLERANCE_SECONDS
        if answer.get("state") == "HELD" and early and hold.state in ("EXPIRED", "HELD"):
            text = f"hold {answer['hold_id']} was to last {promised - hold.expire_time:.3f} s longer"
            yield Violation(CHECK, text, [operation])


def _passengers_lost(history: History, truth: Truth) -> Iterator[Violation]:
    """A hold or an offer has each seat for the passenger shown, unless a change may have moved the passengers."""
    changed = changed_holds(history)
    for operation in history.of_calls("HoldSeat", "HoldSeats", *ENTRY_CALLS):
        answer = operation.answer or {}
        hold_id = str(answer.get("hold_id", ""))
        if not operation.ok or hold_id in changed:
            continue
        for place, passenger_id in _places_in(answer).items():
            # A hold no longer lists a seat that was released.
            had = truth.passenger_of.get((hold_id, *place))
            if had not in (None, passenger_id):
                text = f"hold {hold_id} has {place[1]} for {had}, not for {passenger_id}"
                yield Violation(CHECK, text, [operation])


def _places_in(answer: Mapping[str, Any]) -> dict[Place, Any]:
    """Returns the passenger of each seat of a hold, or of the seat of a waitlist entry."""
    seats = answer.get("seats", [answer] if answer.get("seat_number") else ())
    return {(str(each["flight_id"]), str(each["seat_number"])): each.get("passenger_id") for each in seats}


def _booking_lost(operation: Operation, answer: Mapping[str, Any], truth: Truth) -> Iterator[str]:
    booking_id = str(answer.get("booking_id", ""))
    booking = truth.booking.get(booking_id)
    if booking is None:
        yield f"booking {booking_id} is not there"
        return
    if minor_units(answer.get("total")) != booking.total_minor_units:
        yield f"the price is {booking.total_minor_units} cents, and was {minor_units(answer.get('total'))}"
    if answer.get("pnr") and answer["pnr"] != booking.pnr:
        yield f"the locator was {answer['pnr']}, and is {booking.pnr}"
    if operation.call == "CreateBooking":
        party = [(each.given_name, each.last_name, each.type) for each in truth.party.get(booking_id, ())]
        asked = [
            (each.get("given_name"), each.get("last_name"), each.get("type", "ADULT"))
            for each in operation.request.get("passengers", ())
        ]
        if party != asked:
            yield f"the party is {party}"
        if booking.owner != operation.principal:
            yield f"the booking is {booking.owner}'s"
    if operation.call == "ChangeBookingSeats":
        held = {
            event.place for event in truth.events_of_hold.get(booking.hold_id or "", ()) if event.to_state == "HELD"
        }
        wanted = {(each["flight_id"], each["seat_number"]) for each in operation.request.get("seats", ())}
        # After a late payment the booking gets its seats with another hold, which replaces the first one.
        if not wanted <= held and booking.state not in ("CONFIRMED", "CANCELLED"):
            yield f"its hold never held {sorted(wanted - held)}"
    if operation.call == "CancelBooking":
        yield from _cancellation_lost(answer, booking, truth)


def _cancellation_lost(answer: Mapping[str, Any], booking: BookingRow, truth: Truth) -> Iterator[str]:
    told = {each["flight_id"] for each in answer.get("flights", ()) if each.get("state") == "CANCELLED"}
    legs = truth.legs.get(booking.booking_id, ())
    cancelled = {leg.flight_id for leg in legs if leg.cancel_time is not None or booking.state == "CANCELLED"}
    if not told <= cancelled:
        yield f"the flights {sorted(told - cancelled)} were cancelled, and are booked"
    if answer.get("state") == "CANCELLED" and booking.state != "CANCELLED":
        yield f"the booking is {booking.state}"
    seated = {
        (leg.flight_id, each.passenger_id) for leg in legs if leg.flight_id in told
        for each in truth.party.get(booking.booking_id, ())
    }  # fmt: skip
    for traveller in sorted(seated & truth.seated.keys()):
        yield f"{traveller[1]} still has seat {truth.seated[traveller]} of {traveller[0]}"


def _import_lost(operation: Operation, answer: Mapping[str, Any], truth: Truth) -> Iterator[str]:
    flight_id = str(operation.request.get("flight_id", ""))
    rejected = {int(each.get("index", 0)) for each in answer.get("rejected", ())}
    booked = truth.booked_passengers
    for index, line in enumerate(operation.request.get("passengers", ())):
        passenger_id = str(line.get("passenger_id", ""))
        # The passengers of a booking leave the manifest when it is cancelled.
        if index not in rejected and passenger_id not in booked and (flight_id, passenger_id) not in truth.manifest:
            yield f"{passenger_id} is not on the manifest of {flight_id}"


def _seconds(timestamp: str) -> float:
    moment = Timestamp()
    moment.FromJsonString(timestamp)
    return moment.ToNanoseconds() / 1e9


_Lookup = Callable[[Operation, Mapping[str, Any], Truth], Iterator[str]]
_LOOKED_UP: Final[Mapping[str, _Lookup]] = {
    **dict.fromkeys(HOLD_CALLS, _hold_lost),
    **dict.fromkeys(BOOKING_CALLS - {"WatchBooking"}, _booking_lost),
    **dict.fromkeys(ENTRY_CALLS, _seat_of_entry_lost),
    "StartCheckIn": _check_in_lost,
    "JoinWaitlist": _entry_lost,
    "ImportManifest": _import_lost,
    "BlockSeat": _block_lost,
    "CreateFlight": _flight_lost,
    "CancelFlight": _flight_lost,
    "RefundPayment": _refund_lost,
}

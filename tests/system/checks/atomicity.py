"""All or nothing: a request for several seats, on several flights, has its whole effect or none.

`skyhigh verify` proves that the seats of a hold change in one transaction; it does not know the requested seats.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from tests.system.checks.calls import changed_holds, parameters
from tests.system.checks.violation import Violation
from tests.system.history import History, Operation
from tests.system.truth import Place, SeatEvent, Truth

CHECK: Final = "atomicity"
# A seat of a request: flight, seat number, passenger.
SeatOf = tuple[str, str, str]


def check(history: History, truth: Truth) -> list[Violation]:
    """Returns the requests that had a part of their effect."""
    found = [
        *_holds(history, truth),
        *_changes(history, truth),
        *_bookings(history, truth),
        *_confirmations(truth, history),
    ]
    return found


def _is_ambiguous(operation: Operation, by_key: Mapping[tuple[str, str], list[Operation]]) -> bool:
    """Returns whether a key was used for other requests too: then its effect may be theirs."""
    operations = by_key.get((operation.principal, operation.request_id or ""), [])
    return len({parameters(each) for each in operations}) > 1


def _holds(history: History, truth: Truth) -> Iterator[Violation]:
    by_key, changed = history.by_key(), changed_holds(history)
    for operation in history.of_calls("HoldSeat", "HoldSeats"):
        wanted = set(_wanted(operation))
        hold_id = str((operation.answer or {}).get("hold_id", "")) if operation.ok else ""
        if hold_id:
            answered = _seats_in(operation.answer or {})
            if answered != wanted:
                yield Violation(CHECK, f"the answer has {_text(answered)} instead of {_text(wanted)}", [operation])
            events = truth.events_of_hold.get(hold_id, [])
        elif operation.request_id is not None and not _is_ambiguous(operation, by_key):
            events = truth.events_of_request.get((operation.principal, operation.request_id), [])
            holds = [event.hold_id for event in events if event.to_state == "HELD" and event.reason == "HELD"]
            if not holds:
                continue
            hold_id = holds[0] or ""
        else:
            continue
        held = _held(events, {} if hold_id in changed else truth.passenger_of, hold_id, wanted)
        if held != wanted:
            yield Violation(CHECK, f"hold {hold_id} has {_text(held)} instead of {_text(wanted)}", [operation])


def _changes(history: History, truth: Truth) -> Iterator[Violation]:
    """A change holds the added seats and releases the removed ones, in one transaction."""
    by_key = history.by_key()
    for operation in history.of_calls("ChangeHoldSeats"):
        if operation.request_id is None or _is_ambiguous(operation, by_key):
            continue
        events = truth.events_of_request.get((operation.principal, operation.request_id), [])
        hold_id = str(operation.request.get("hold_id", ""))
        wanted: set[Place] = {(flight_id, seat_number) for flight_id, seat_number, _ in _wanted(operation)}
        taken = {event.place for event in events if event.to_state == "HELD"}
        freed = {event.place for event in events if event.from_state == "HELD" and event.to_state != "CONFIRMED"}
        before = _seats_before(truth, hold_id, events)
        # A change of passengers only does not change seats.
        if not events:
            continue
        if taken != wanted - before or freed != before - wanted:
            yield Violation(
                CHECK,
                f"hold {hold_id} had {_places(before)}, was to have {_places(wanted)}; "
                f"it took {_places(taken)} and freed {_places(freed)}",
                [operation],
            )


def _seats_before(truth: Truth, hold_id: str, events: list[SeatEvent]) -> set[Place]:
    """Returns the seats of a hold before the transaction of these events.

    The events all belong to one hold.
    """
    first = {event.place: event.version for event in reversed(events)}
    before: set[Place] = set()
    steps: dict[Place, list[SeatEvent]] = {}
    for event in truth.events_of_hold.get(hold_id, ()):
        steps.setdefault(event.place, []).append(event)
    changed = min((event.event_time or 0.0 for event in events), default=0.0)
    for place, of_seat in steps.items():
        # For a seat that the change did not touch, the time of the change tells the state before it.
        earlier = [
            event
            for event in of_seat
            if (event.version < first[place] if place in first else (event.event_time or 0.0) < changed)
        ]
        if earlier and earlier[-1].to_state == "HELD":
            before.add(place)
    return before


def _bookings(history: History, truth: Truth) -> Iterator[Violation]:
    """A booking gets all its seats in one transaction, or none.

    These are one seat on each flight for each passenger who needs one.
    """
    seen: set[str] = set()
    for operation in history.of_calls("CreateBooking"):
        if not operation.ok or operation.answer is None:
            continue
        booking_id, hold_id = str(operation.answer["booking_id"]), str(operation.answer.get("hold_id", ""))
        if booking_id in seen:
            continue
        seen.add(booking_id)
        seated = [
            each["passenger_id"] for each in operation.answer.get("passengers", ()) if each.get("type") != "INFANT"
        ]
        asked = [each for each in operation.request.get("passengers", ()) if each.get("type", "ADULT") != "INFANT"]
        flights = [each["flight_id"] for each in operation.answer.get("flights", ())]
        wanted = {(flight_id, passenger_id) for flight_id in flights for passenger_id in seated}
        got = {(each["flight_id"], each["passenger_id"]) for each in operation.answer.get("seats", ())}
        if got != wanted or len(seated) != len(asked) or not wanted:
            yield Violation(
                CHECK,
                f"booking {booking_id} of {len(asked)} passengers who need a seat on {len(flights)} flights "
                f"has {len(got)} seats",
                [operation],
            )
        events = [event for event in truth.events_of_hold.get(hold_id, ()) if event.reason == "HELD"]
        held = {(event.flight_id, event.seat_number) for event in events}
        answered = {(each["flight_id"], each["seat_number"]) for each in operation.answer.get("seats", ())}
        if held != answered or len({event.transaction for event in events}) > 1:
            yield Violation(
                CHECK,
                f"booking {booking_id} was answered {_places(answered)}, its hold took {_places(held)}",
                [operation],
            )


def _confirmations(truth: Truth, history: History) -> Iterator[Violation]:
    """A confirmation confirms all seats of the hold."""
    for hold_id, events in truth.events_of_hold.items():
        confirmed = [event for event in events if event.to_state == "CONFIRMED"]
        if not confirmed:
            continue
        versions = {event.place: event.version for event in confirmed}
        moment = min(event.event_time or 0.0 for event in confirmed)
        last: dict[Place, SeatEvent] = {}
        for event in events:
            before = (
                event.version < versions[event.place] if event.place in versions else (event.event_time or 0) < moment
            )
            if before:
                last[event.place] = event
        held = {place for place, event in last.items() if event.to_state == "HELD"}
        if held != set(versions) or len({event.transaction for event in confirmed}) > 1:
            yield Violation(
                CHECK,
                f"hold {hold_id} had {_places(held)} and confirmed {_places(set(versions))}",
                [each for each in history.of_calls("ConfirmHold") if each.request.get("hold_id") == hold_id][:2],
            )


def _wanted(operation: Operation) -> Iterator[SeatOf]:
    request = operation.request
    for each in request.get("seats", [request] if operation.call == "HoldSeat" else ()):
        yield str(each.get("flight_id", "")), str(each.get("seat_number", "")), str(each.get("passenger_id", ""))


def _seats_in(answer: Mapping[str, Any]) -> set[SeatOf]:
    return {(each["flight_id"], each["seat_number"], each["passenger_id"]) for each in answer.get("seats", ())}


def _held(
    events: Iterable[SeatEvent], passenger_of: Mapping[tuple[str, str, str], str], hold_id: str, wanted: set[SeatOf]
) -> set[SeatOf]:
    """Returns the seats that a hold got when it was created.

    A seat whose passenger is not in `passenger_of` counts as held for the passenger of the request.
    """
    passengers = {(flight_id, seat_number): passenger_id for flight_id, seat_number, passenger_id in wanted}
    return {
        # The hold no longer lists the passenger of a seat that was released.
        (*event.place, passenger_of.get((hold_id, *event.place)) or passengers.get(event.place, ""))
        for event in events
        if event.to_state == "HELD" and event.hold_id == hold_id and event.reason == "HELD"
    }


def _text(seats: set[SeatOf]) -> str:
    return ", ".join(f"{seat} of {flight} for {passenger}" for flight, seat, passenger in sorted(seats)) or "no seat"


def _places(places: set[Place]) -> str:
    return ", ".join(f"{seat} of {flight}" for flight, seat in sorted(places)) or "no seat"

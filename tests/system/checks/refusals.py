"""Refusals are true (rule 11.15).

A refused call changed nothing, or its repeat returns what it changed. Every change with a client's name in the
histories needs a call of that client that explains it: one that succeeded, one whose outcome the client does not know,
or a refused one with a key whose response is stored for its repeat. Otherwise a call that reported no change made the
change, or no call did.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from tests.system.checks.calls import SERVICE_OF
from tests.system.checks.linearizability import (
    can_cause,
    changes_seats_without_key,
    unkeyed_causes_of,
)
from tests.system.checks.violation import Violation
from tests.system.history import History, Operation
from tests.system.truth import BookingRow, Place, SeatEvent, Transition, Truth

CHECK: Final = "refusals"

# The calls by which a principal changes a booking, a check-in, an entry or an intent, by the new state.
_STEPS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "booking_id": {
        "CREATED": ("CreateBooking",),
        "PAYMENT_PENDING": ("PayBooking",),
        "CANCELLED": ("CancelBooking",),
        "CONFIRMED": ("CancelBooking",),
    },
    "checkin_id": {
        "INITIATED": ("StartCheckIn",),
        "BAGGAGE_VALIDATED": ("StartCheckIn", "DeclareBaggage"),
        "WAITING_FOR_PAYMENT": ("DeclareBaggage",),
        "COMPLETED": ("StartCheckIn", "DeclareBaggage"),
        "CANCELLED": ("CancelCheckIn",),
    },
    "entry_id": {
        "WAITING": ("JoinWaitlist",),
        "ASSIGNED": ("AcceptOffer", "DeclineOffer", "LeaveWaitlist"),
        "DECLINED": ("DeclineOffer",),
        "LEFT": ("LeaveWaitlist", "AcceptOffer"),
    },
    "intent_id": {"PROCESSING": ("SubmitPaymentCode",), "REFUNDING": ("RefundPayment",)},
}

# Calls whose repeat returns the result of the first call even without a key: they set a state and create nothing.
_REPEATABLE: Final = frozenset(
    {
        "ConfirmHold", "CancelHold", "BlockSeat", "UnblockSeat", "CancelCheckIn", "CancelBooking", "AcceptOffer",
        "DeclineOffer", "LeaveWaitlist",
    }
)  # fmt: skip
# RPCs whose request names one seat. An agent makes thousands of them, so that they are found by the seat.
_OF_ONE_SEAT: Final = frozenset({"HoldSeat", "BlockSeat", "UnblockSeat"})
LAP: Final = "INF"
DEFECT: Final = "INTERNAL"


def check(history: History, truth: Truth) -> list[Violation]:
    """Returns the changes that no call explains, with the refused calls that may have made them."""
    calls = _Calls(history, truth)
    return [*_defects(history), *_seats(calls, truth), *_resources(calls, truth)]


def _defects(history: History) -> Iterator[Violation]:
    """No call fails with INTERNAL, the reason for defects."""
    for operation in history:
        if operation.reason == DEFECT:
            yield Violation(CHECK, "it was refused with a defect of the service", [operation])


class _Calls:
    """The calls of each principal, and which of them may have changed something."""

    def __init__(self, history: History, truth: Truth) -> None:
        self.principals = {operation.principal for operation in history if operation.principal}
        self._kept = truth.kept_answers
        self.by_key = history.by_key()
        self._by_call: dict[tuple[str, str], list[Operation]] = defaultdict(list)
        self._by_name: dict[tuple[str, str, str], list[Operation]] = defaultdict(list)
        self._by_place: dict[tuple[str, str, Place], list[Operation]] = defaultdict(list)
        for operation in history:
            self._by_call[operation.principal, operation.call].append(operation)
            if operation.call in _OF_ONE_SEAT:
                place = str(operation.request.get("flight_id", "")), str(operation.request.get("seat_number", ""))
                self._by_place[operation.principal, operation.call, place].append(operation)
            for field in _STEPS:
                names = {str((operation.answer or {}).get(field, "")), str(operation.request.get(field, ""))} - {""}
                for name in names:
                    self._by_name[operation.principal, operation.call, name].append(operation)

    def of(self, principal: str, call: str) -> Sequence[Operation]:
        """Returns a principal's calls of an RPC."""
        return self._by_call.get((principal, call), ())

    def on(self, principal: str, call: str, place: Place) -> Sequence[Operation]:
        """Returns a principal's calls of an RPC that can concern a seat: those for it, if the RPC is for one seat."""
        if call in _OF_ONE_SEAT:
            return self._by_place.get((principal, call, place), ())
        return self.of(principal, call)

    def naming(self, principal: str, call: str, name: str) -> Sequence[Operation]:
        """Returns a principal's calls of an RPC that name a resource in their request or response."""
        return self._by_name.get((principal, call, name), ())

    def may_have_effect(self, operation: Operation) -> bool:
        """Returns whether the call may have changed something.

        It may, unless it was refused. A refused call may if its repeat returns what it changed.
        """
        if operation.outcome != "refused":
            return True
        if operation.code == "UNAVAILABLE" and operation.call in _REPEATABLE:
            return True
        if operation.request_id is None:
            return False
        service = SERVICE_OF.get(operation.call, "")
        return (service, operation.principal, operation.request_id) in self._kept


def _seats(calls: _Calls, truth: Truth) -> Iterator[Violation]:
    told: set[tuple[str, str | None, str | None, str]] = set()
    for event in truth.seat_events:
        if event.actor not in calls.principals:
            continue
        causes = list(_causes(event, calls))
        # A check-in may fail after its seat was confirmed. Its repeat continues with the confirmed seat.
        if any(calls.may_have_effect(each) or _goes_on(each) for each in causes):
            continue
        name = (event.actor, event.request_id, event.hold_id, event.to_state)
        if name not in told:
            told.add(name)
            yield _violation(
                f"seat {event.seat_number} of {event.flight_id} became {event.to_state} by {event.actor}", causes
            )


def _goes_on(operation: Operation) -> bool:
    return operation.call == "StartCheckIn" and operation.code == "UNAVAILABLE"


def _causes(event: SeatEvent, calls: _Calls) -> Iterator[Operation]:
    if event.request_id is not None:
        yield from calls.by_key.get((event.actor, event.request_id), ())
        return
    for call in unkeyed_causes_of(event):
        for operation in calls.on(event.actor, call, event.place):
            if changes_seats_without_key(operation) and can_cause(operation, event):
                yield operation


def _resources(calls: _Calls, truth: Truth) -> Iterator[Violation]:
    for field, steps in (
        ("booking_id", truth.booking_events),
        ("checkin_id", truth.check_in_events),
        ("entry_id", truth.entry_events),
        ("intent_id", truth.intent_events),
    ):
        for step in steps:
            if step.actor not in calls.principals:
                continue
            names = _STEPS[field].get(step.to_state, ())
            causes = [each for call in names for each in calls.naming(step.actor, call, step.subject)]
            if _on_a_lap(step, truth):
                # An infant's check-in ends with that of its adult.
                causes += calls.of(step.actor, "CancelCheckIn")
            if step.to_state == "ASSIGNED":
                causes += _confirmations(step, calls, truth)
            if any(calls.may_have_effect(each) for each in causes):
                continue
            if step.from_state is None:
                # A lost response names no resource, so the request has to match it.
                described = list(_describing(step, names, calls, truth))
                if any(calls.may_have_effect(each) for each in described):
                    continue
                if field == "booking_id" and _was_refused(step, truth):
                    continue
                causes += described
            yield _violation(f"{step.subject} became {step.to_state} by {step.actor}", causes)


def _confirmations(step: Transition, calls: _Calls, truth: Truth) -> list[Operation]:
    """Returns the calls by which a passenger confirms an offer's hold.

    These calls go to the seat service, and assign the seat.
    """
    entry = truth.entry.get(step.subject)
    return [
        each
        for call in ("ConfirmHold", "StartCheckIn")
        for each in calls.of(step.actor, call)
        if entry is not None and each.request.get("hold_id") == entry.hold_id
    ]


def _on_a_lap(step: Transition, truth: Truth) -> bool:
    check_in = truth.check_in.get(step.subject)
    return check_in is not None and check_in.seat_number == LAP and step.to_state == "CANCELLED"


def _was_refused(step: Transition, truth: Truth) -> bool:
    """Returns whether a booking was stored and then failed without seats.

    That does not count as an effect.
    """
    booking = truth.booking.get(step.subject)
    return booking is not None and booking.hold_id is None


def _describing(step: Transition, names: Iterable[str], calls: _Calls, truth: Truth) -> Iterator[Operation]:
    for call in names:
        for operation in calls.of(step.actor, call):
            if operation.ok:
                # The response would name the resource.
                continue
            booking = truth.booking.get(step.subject)
            if booking is not None:
                if _orders(operation, booking, truth):
                    yield operation
                continue
            row: Any = truth.check_in.get(step.subject) or truth.entry.get(step.subject)
            request = operation.request
            if row is not None and (request.get("flight_id"), request.get("passenger_id")) == (
                row.flight_id,
                row.passenger_id,
            ):
                yield operation


def _orders(operation: Operation, booking: BookingRow, truth: Truth) -> bool:
    if booking.request_key and operation.request_id:
        return booking.request_key == operation.request_id
    if booking.request_key or operation.request_id:
        return False
    party = [(each.given_name, each.last_name) for each in truth.party.get(booking.booking_id, ())]
    asked = [(each.get("given_name"), each.get("last_name")) for each in operation.request.get("passengers", ())]
    return party == asked


def _violation(text: str, causes: Sequence[Operation]) -> Violation:
    if causes:
        return Violation(CHECK, f"{text}, and every call that can have caused it was refused", causes[:2])
    return Violation(CHECK, f"{text}, and no call of this principal asked for it")

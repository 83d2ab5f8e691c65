"""Each seat is linearizable: what clients saw of it fits one order of its changes, and real time.

The versions of the seat history are that order (`registers.py`). A change is bounded by the calls that can have caused
it and by the responses that prove it. For each refusal and each read of a seat there must be a moment, between call and
response, at which the seat was as they say. The check uses no clock of a database.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from tests.system.checks.calls import BOOKING_CALLS, HOLD_CALLS, SERVICE_OF, shown
from tests.system.checks.registers import Read, Write, faults
from tests.system.checks.violation import Violation
from tests.system.history import History, Operation
from tests.system.truth import Place, SeatEvent, Truth

CHECK: Final = "linearizability"

_LISTS: Final = frozenset({"ListSeatEvents"})
TAKEN: Final = ("HELD", "CONFIRMED", "BLOCKED", "OFFERED")

SeatRead = tuple[Place, str, str]
"""A read's seat, the kind of what it saw, and its value."""


def check(history: History, truth: Truth) -> list[Violation]:
    """Returns what no order of a seat's changes explains."""
    evidence = _Evidence(history, truth)
    reads = evidence.reads()
    found = []
    for place, events in sorted(truth.ledger.items()):
        if [event.version for event in events] != list(range(1, len(events) + 1)):
            # `skyhigh verify` reports the gap too. Without all versions there is no order.
            found.append(Violation(CHECK, f"the ledger of {_name(place)} has a gap"))
            continue
        writes = evidence.writes(events)
        for fault in faults(writes, reads.pop(place, [])):
            found.append(Violation(CHECK, f"{_name(place)}: {fault.text}", _distinct(fault.evidence)))
    for place, unchanged in sorted(reads.items()):
        for fault in faults([], unchanged):
            found.append(Violation(CHECK, f"{_name(place)}: {fault.text}", _distinct(fault.evidence)))
    return found


class _Evidence:
    """The history's evidence of the changes and states of seats."""

    def __init__(self, history: History, truth: Truth) -> None:
        self._history = history
        self._truth = truth
        self._by_key = history.by_key()
        # A key belongs to one request at one service; the seat history contains those of the seat service.
        self._by_seat_key = {
            name: [each for each in operations if SERVICE_OF.get(each.call) == "seat"]
            for name, operations in self._by_key.items()
        }
        self._principals = {operation.principal for operation in history}
        # By hold: the first responses that showed it, showed it confirmed, and showed it ended.
        self._shown: dict[str, tuple[float, Operation]] = {}
        self._shown_confirmed: dict[str, tuple[float, Operation]] = {}
        self._shown_ended: dict[str, tuple[float, Operation]] = {}
        # By hold: the calls that asked to confirm it; by booking: those that paid.
        self._asked: dict[tuple[str, str], list[Operation]] = defaultdict(list)
        self._unkeyed: dict[tuple[str, str], list[Operation]] = defaultdict(list)
        self._listed: dict[tuple[str, str, int], tuple[float, Operation]] = {}
        self._booking_of_hold = {row.hold_id: row for row in truth.bookings if row.hold_id}
        self._created: dict[str, list[Operation]] = defaultdict(list)
        for operation in history:
            self._note(operation)

    def _note(self, operation: Operation) -> None:
        request = operation.request
        for name in ("hold_id", "booking_id", "intent_id", "checkin_id"):
            if request.get(name):
                self._asked[operation.call, str(request[name])].append(operation)
        if changes_seats_without_key(operation):
            self._unkeyed[operation.principal, operation.call].append(operation)
        for moment, hold in shown(operation, HOLD_CALLS):
            self._note_hold(str(hold.get("hold_id", "")), hold.get("state"), moment, operation)
        for moment, booking in shown(operation, BOOKING_CALLS):
            hold_id = str(booking.get("hold_id", ""))
            confirmed = "CONFIRMED" if booking.get("state") == "CONFIRMED" else None
            self._note_hold(hold_id, confirmed, moment, operation)
            if operation.call == "CreateBooking":
                self._created[hold_id].append(operation)
        for moment, listed in shown(operation, _LISTS):
            for event in listed.get("events", ()):
                version = (str(request["flight_id"]), str(event["seat_number"]), int(event["version"]))
                _earliest(self._listed, version, moment, operation)

    def _note_hold(self, hold_id: str, state: str | None, moment: float, operation: Operation) -> None:
        if hold_id:
            _earliest(self._shown, hold_id, moment, operation)
            if state == "CONFIRMED":
                _earliest(self._shown_confirmed, hold_id, moment, operation)
            if state == "CANCELLED":
                # Not EXPIRED: a lapsed hold is shown as expired before its seats are released.
                _earliest(self._shown_ended, hold_id, moment, operation)

    def writes(self, events: Sequence[SeatEvent]) -> list[Write[Operation]]:
        """Returns the bounds of a seat's changes."""
        writes = []
        begun: set[str | None] = set()
        for event in events:
            write: Write[Operation] = Write()
            first = event.to_state == "HELD" and event.hold_id not in begun
            if event.to_state == "HELD":
                begun.add(event.hold_id)
            for causes in self._causes(event, first=first):
                if causes:
                    earliest = min(causes, key=lambda each: each.invoked)
                    write.not_before(earliest.invoked, earliest)
            for moment, witness in self._witnesses(event, first=first):
                write.not_after(moment, witness)
            writes.append(write)
        return writes

    def _causes(self, event: SeatEvent, *, first: bool) -> Iterator[Sequence[Operation]]:
        """Yields sets of calls.

        Each set that is not empty contains the cause of the change.
        """
        if event.actor in self._principals:
            if event.request_id is not None:
                yield self._by_seat_key.get((event.actor, event.request_id), ())
            else:
                yield [each for each in self._unkeyed_causes(event) if can_cause(each, event)]
        booking = self._booking_of_hold.get(event.hold_id or "")
        if booking is None:
            return
        if first:
            keyed = self._by_key.get((booking.owner, booking.request_key or ""), ())
            yield keyed or self._created.get(booking.hold_id or "", ())
        elif event.to_state == "CONFIRMED":
            # Only a payment code of its owner pays a booking, and only a paid booking is confirmed.
            yield [
                *self._asked["PayBooking", booking.booking_id],
                *self._asked["SubmitPaymentCode", booking.payment_intent_id or ""],
            ]

    def _unkeyed_causes(self, event: SeatEvent) -> Iterator[Operation]:
        for call in unkeyed_causes_of(event):
            yield from self._unkeyed.get((event.actor, call), ())

    def _witnesses(self, event: SeatEvent, *, first: bool) -> Iterator[tuple[float, Operation]]:
        hold_id = event.hold_id or ""
        if event.request_id is not None:
            for operation in self._by_seat_key.get((event.actor, event.request_id), ()):
                if operation.ok and operation.returned is not None:
                    yield operation.returned, operation
        if first and hold_id in self._shown and (event.reason != "CHANGED"):
            yield self._shown[hold_id]
        if event.to_state == "CONFIRMED" and hold_id in self._shown_confirmed:
            yield self._shown_confirmed[hold_id]
        if event.from_state in ("HELD", "CONFIRMED") and event.to_state != "CONFIRMED" and hold_id in self._shown_ended:
            yield self._shown_ended[hold_id]
        listed = self._listed.get((event.flight_id, event.seat_number, event.version))
        if listed is not None:
            yield listed

    def reads(self) -> dict[Place, list[Read[Operation]]]:
        """Returns the reads of each seat."""
        found: dict[Place, list[Read[Operation]]] = defaultdict(list)
        labels = _Labels(self._truth)
        for operation in self._history:
            if operation.returned is None or operation.outcome == "unknown":
                continue
            invoked = operation.invoked
            if operation.request_id is not None:
                # A repeat gets the response of the first request.
                invoked = min(each.invoked for each in self._by_key[operation.principal, operation.request_id])
            for place, kind, value in _saw(operation):
                found[place].append(
                    Read(
                        invoked,
                        operation.returned,
                        labels.versions(place, kind, value),
                        f"{kind} {value}".strip(),
                        operation,
                    )
                )
        return found


# The RPCs by which a principal changes a seat without a key, by the seat's new state. The check-in service confirms a
# hold with its caller's token.
_CAUSES: Final = {
    "HELD": ("HoldSeat", "HoldSeats", "ChangeHoldSeats"),
    "CONFIRMED": ("ConfirmHold", "StartCheckIn"),
    "AVAILABLE": ("CancelHold", "ChangeHoldSeats", "UnblockSeat", "ConfirmHold", "StartCheckIn"),
    "OFFERED": ("CancelHold", "ChangeHoldSeats", "UnblockSeat", "ConfirmHold", "StartCheckIn"),
    "BLOCKED": ("BlockSeat",),
}


def unkeyed_causes_of(event: SeatEvent) -> tuple[str, ...]:
    """Returns the RPCs by which a principal itself makes this change."""
    return _CAUSES[event.to_state]


def changes_seats_without_key(operation: Operation) -> bool:
    """Returns whether the seat history has no key for the changes of a call."""
    return operation.request_id is None or operation.call == "StartCheckIn"


def can_cause(operation: Operation, event: SeatEvent) -> bool:
    """Returns whether a call without a key can have caused a change by its principal."""
    request = operation.request
    match operation.call:
        case "HoldSeat" | "BlockSeat" | "UnblockSeat":
            return (request.get("flight_id"), request.get("seat_number")) == event.place
        case "HoldSeats":
            return any((each.get("flight_id"), each.get("seat_number")) == event.place for each in request["seats"])
        case "ConfirmHold" | "StartCheckIn" if event.to_state != "CONFIRMED":
            # The passenger's former seat, in another hold.
            return event.reason == "MOVED"
        case _:
            return request.get("hold_id") == event.hold_id


def _saw(operation: Operation) -> Iterator[SeatRead]:
    """Yields the states of seats that a response reports."""
    answer = operation.answer or {}
    place = (str(operation.request.get("flight_id", "")), str(operation.request.get("seat_number", "")))
    match operation.call, operation.outcome, operation.reason:
        case "HoldSeat" | "HoldSeats" | "ChangeHoldSeats" | "CreateBooking" | "ChangeBookingSeats", _, "SEAT_TAKEN":
            refused = (str(answer.get("flight_id", "")), str(answer.get("seat_number", "")))
            if all(refused):
                state = str(answer.get("state", ""))
                yield refused, "state" if state else "taken", state
        case "BlockSeat", _, "SEAT_OCCUPIED":
            yield place, "occupied", ""
        case "BlockSeat", "ok", _:
            yield place, "state", "BLOCKED"
        case "UnblockSeat", "ok", _:
            yield place, "free", ""
        case "ListSeatEvents", "ok", _ if not answer.get("next_page_token") and not operation.request.get("page_token"):
            yield place, "version", str(len(answer.get("events", ())))
        case "GetHold" | "HoldSeat" | "HoldSeats" | "ExtendHold", "ok", _ if answer.get("state") == "HELD":
            for each in answer.get("seats", ()):
                yield (each["flight_id"], each["seat_number"]), "held by", str(answer["hold_id"])
        case "GetBoardingPass", "ok", _ if answer.get("seat_number", "INF") != "INF":
            seat = (str(answer["flight_id"]), str(answer["seat_number"]))
            yield seat, "seat of", str(answer["passenger_id"])
        case "StartCheckIn", "ok", _ if answer.get("seat_number", "INF") != "INF":
            seat = (str(answer["flight_id"]), str(answer["seat_number"]))
            yield seat, "seat of", str(answer["passenger_id"])


class _Labels:
    """Finds the versions of a seat with a common property."""

    def __init__(self, truth: Truth) -> None:
        self._truth = truth
        self._known: dict[Place, dict[tuple[str, str], list[int]]] = {}

    def versions(self, place: Place, kind: str, value: str) -> Sequence[int]:
        """Returns the versions in ascending order."""
        if kind == "version":
            return [int(value)]
        if place not in self._known:
            self._known[place] = self._label(place)
        return self._known[place].get((kind, value), ())

    def _label(self, place: Place) -> dict[tuple[str, str], list[int]]:
        labels: dict[tuple[str, str], list[int]] = defaultdict(list)
        steps = [(0, "AVAILABLE", "")]
        steps += [(event.version, event.to_state, event.hold_id or "") for event in self._truth.ledger.get(place, ())]
        for version, state, hold_id in steps:
            labels["state", state].append(version)
            if state in TAKEN:
                labels["taken", ""].append(version)
            if state in ("HELD", "CONFIRMED"):
                labels["occupied", ""].append(version)
            if state in ("AVAILABLE", "OFFERED"):
                labels["free", ""].append(version)
            if state == "HELD":
                labels["held by", hold_id].append(version)
            if state == "CONFIRMED":
                labels["seat of", self._truth.passenger_of.get((hold_id, *place), "")].append(version)
        return labels


def _earliest(known: dict[Any, tuple[float, Operation]], name: object, moment: float, operation: Operation) -> None:
    if name not in known or moment < known[name][0]:
        known[name] = (moment, operation)


def _distinct(operations: Iterable[Operation]) -> list[Operation]:
    return list({operation.index: operation for operation in operations}.values())


def _name(place: Place) -> str:
    return f"seat {place[1]} of {place[0]}"

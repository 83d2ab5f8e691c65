"""No principal sees or keeps what belongs to another.

Checks rules 11.12 and 11.14 as the clients saw them. A call that succeeded was one that its role may make; no passenger
or customer was shown an id or an address of another one; no seat was taken with an entitlement that had ended; at rest
no passenger of a cancelled booking keeps anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from tests.system.checks.calls import ROLES_OF
from tests.system.checks.violation import Violation
from tests.system.history import History, Operation, strings_in
from tests.system.truth import Truth

CHECK: Final = "rights"
# An entitlement that ended is gone in all services within this time, after any outage (rule 11.14).
GRACE_SECONDS: Final = 30.0
# The roles that may see everything.
_ALL_SEEING: Final = frozenset({"agent", "operations", "service"})
# Calls that name the passengers of the seats.
_NAMING: Final = frozenset({"HoldSeat", "HoldSeats", "ChangeHoldSeats", "CreateBooking"})
# Calls that take or show a seat, and need the entitlement to it.
_TAKES: Final = frozenset(
    {"HoldSeat", "HoldSeats", "ChangeHoldSeats", "ExtendHold", "ConfirmHold", "StartCheckIn", "JoinWaitlist",
     "AcceptOffer", "GetBoardingPass", "GetBoardingPassSvg", "GetBoardingPassPng", "CreateBooking"}
)  # fmt: skip


def check(history: History, truth: Truth) -> list[Violation]:
    """Returns the responses to which a principal had no right."""
    return [*_roles(history), *_leaks(history, truth), *_ended(history, truth), *_kept(truth)]


def _roles(history: History) -> Iterator[Violation]:
    for operation in history:
        roles = ROLES_OF.get(operation.call)
        if operation.ok and roles is not None and "" not in roles and operation.role not in roles:
            yield Violation(CHECK, f"{operation.role or 'no token'} may not call {operation.call}", [operation])


class _Owners:
    """The principals that may see each id, locator and address."""

    def __init__(self, history: History, truth: Truth) -> None:
        self.of: dict[str, set[str]] = {}
        self._own_bookings(truth)
        self._own_passengers(history, truth)
        self._own_seats(truth)
        for intent in truth.intents:
            self._add({intent.owner}, intent.intent_id)

    def _own_bookings(self, truth: Truth) -> None:
        for booking in truth.bookings:
            own = {booking.owner} | ({f"passenger:{booking.pnr}"} if booking.pnr else set())
            self._add(own, booking.booking_id, booking.hold_id, booking.payment_intent_id, booking.pnr)
            self._add(own, booking.contact_email)
            self._add(own, *(each.passenger_id for each in truth.party.get(booking.booking_id, ())))

    def _own_passengers(self, history: History, truth: Truth) -> None:
        for listed in truth.passengers:
            own = {f"passenger:{listed.pnr}"} | self.of.get(listed.passenger_id, set())
            self._add(own, listed.passenger_id, listed.pnr, listed.contact_email)
        for operation in history.of_calls("ImportManifest"):
            # A passenger may have had another locator before.
            for line in operation.request.get("passengers", ()):
                if line.get("passenger_id") in self.of and line.get("pnr"):
                    self._add({f"passenger:{line['pnr']}"}, str(line["passenger_id"]))

    def _own_seats(self, truth: Truth) -> None:
        for hold in truth.holds:
            self._add({hold.owner}, hold.hold_id)
        for seat in truth.hold_seats:
            # A passenger may see its seat even if another caller holds it for the passenger.
            self._add(self.of.get(seat.passenger_id, set()), seat.hold_id)
        for check_in in truth.check_ins:
            own = {f"passenger:{check_in.pnr}"} | self.of.get(check_in.passenger_id, set())
            self._add(own, check_in.checkin_id, check_in.payment_intent_id)
        for entry in truth.entries:
            self._add({entry.owner} | self.of.get(entry.passenger_id, set()), entry.entry_id)

    def _add(self, own: set[str], *names: str | None) -> None:
        for name in names:
            # If neither the history nor the state names an owner, the check cannot tell strangers.
            if name and own:
                self.of.setdefault(name, set()).update(own)


def _leaks(history: History, truth: Truth) -> Iterator[Violation]:
    owners = _Owners(history, truth).of
    for operation in history:
        if operation.role in _ALL_SEEING or operation.answer is None:
            continue
        own = {operation.principal}
        if operation.call == "CreateSession" and operation.ok:
            # The session's own principal, whose name and locator the caller knew.
            own.add(f"passenger:{str(operation.request.get('pnr', '')).strip().upper()}")
        # Refusals, and responses to callers that name their own passengers, repeat the request.
        asked = strings_in(operation.request) if not operation.ok or operation.call in _NAMING else set()
        for text in strings_in(operation.answer) - asked:
            allowed = owners.get(text)
            if allowed is not None and not allowed & own:
                yield Violation(
                    CHECK, f"{operation.principal or 'no token'} was shown {text} of {min(allowed)}", [operation]
                )
                break


def _takings(history: History) -> Iterator[Operation]:
    """Yields the calls that took a seat, without those that only show the result of an earlier call."""
    first = {name: operations[0] for name, operations in history.by_key().items()}
    accepted: set[str] = set()
    for operation in history:
        if not operation.ok or operation.call not in _TAKES:
            continue
        if operation.request_id is not None and first[operation.principal, operation.request_id] is not operation:
            # It gets the response of the first request with its key, which is checked itself.
            continue
        if operation.call == "AcceptOffer":
            entry_id = str(operation.request.get("entry_id", ""))
            if entry_id in accepted:
                continue
            accepted.add(entry_id)
        yield operation


def _ended(history: History, truth: Truth) -> Iterator[Violation]:
    """No seat is taken with an entitlement that had ended long enough before the call."""
    clock = _Clock(history)
    flights: dict[str, tuple[float, Operation]] = {}
    travellers: dict[tuple[str, str], tuple[float, Operation]] = {}
    for operation in history:
        if not operation.ok or operation.returned is None:
            continue
        if operation.call == "CancelFlight":
            flight_id = str(operation.request.get("flight_id", ""))
            flights.setdefault(flight_id, (clock.calm_after(operation.returned), operation))
        elif operation.call == "CancelBooking":
            for leg in (operation.answer or {}).get("flights", ()):
                # Services of an older commit show the state of the booking alone.
                if leg.get("state", (operation.answer or {}).get("state")) != "CANCELLED":
                    continue
                for each in (operation.answer or {}).get("passengers", ()):
                    name = (str(leg["flight_id"]), str(each["passenger_id"]))
                    travellers.setdefault(name, (clock.calm_after(operation.returned), operation))
    for operation in _takings(history):
        for flight_id, passenger_id in _used(operation, truth):
            end = travellers.get((flight_id, passenger_id)) or flights.get(flight_id)
            if end is not None and operation.invoked > end[0]:
                yield Violation(
                    CHECK,
                    f"{passenger_id or operation.principal} took a seat of {flight_id} after the end",
                    [end[1], operation],
                )
                break


def _kept(truth: Truth) -> Iterator[Violation]:
    """At rest no passenger of a cancelled booking has a seat, a check-in or a place in the waitlist."""
    gone = {
        passenger.passenger_id: booking
        for booking in truth.bookings
        if booking.state == "CANCELLED"
        for passenger in truth.party.get(booking.booking_id, ())
    }
    kept = [
        *(
            (seat.flight_id, seat.passenger_id, f"seat {seat.seat_number}")
            for seat in truth.hold_seats
            if seat.state != "RELEASED"
        ),
        *(
            (each.flight_id, each.passenger_id, f"check-in {each.checkin_id}")
            for each in truth.check_ins
            if each.state != "CANCELLED"
        ),
        *(
            (each.flight_id, each.passenger_id, f"entry {each.entry_id}")
            for each in truth.entries
            if each.state in ("WAITING", "OFFERED")
        ),
    ]
    for flight_id, passenger_id, what in kept:
        booking = gone.get(passenger_id)
        if booking is not None:
            text = f"{passenger_id} keeps {what} of {flight_id}, and booking {booking.booking_id} is cancelled"
            yield Violation(CHECK, text)


def _used(operation: Operation, truth: Truth) -> Iterator[tuple[str, str]]:
    """Yields the flights and passengers whose entitlement a response used."""
    answer: dict[str, Any] = operation.answer or {}
    for each in (answer, *answer.get("seats", ())):
        if each.get("flight_id"):
            yield str(each["flight_id"]), str(each.get("passenger_id", ""))
    for leg in answer.get("flights", ()):
        yield str(leg.get("flight_id", "")), ""
    check_in = truth.check_in.get(str(operation.request.get("checkin_id", "")))
    if check_in is not None:
        yield check_in.flight_id, check_in.passenger_id


class _Clock:
    """Tells when faults no longer excuse a delay.

    A service may be late under a fault, and until the grace period after it has passed.
    """

    def __init__(self, history: History) -> None:
        self._faults: list[tuple[float, float]] = []
        begun: dict[str, float] = {}
        for mark in history.marks:
            if mark.kind == "fault":
                begun.setdefault(mark.text, mark.at)
            elif mark.kind == "undone" and mark.text in begun:
                self._faults.append((begun.pop(mark.text), mark.at))
        self._faults += [(at, float("inf")) for at in begun.values()]
        self._faults.sort()

    def calm_after(self, moment: float) -> float:
        """Returns the end of the first GRACE_SECONDS without a fault since `moment`."""
        end = moment + GRACE_SECONDS
        for begun, mended in self._faults:
            if begun < end and mended > moment:
                end = max(end, mended + GRACE_SECONDS)
        return end

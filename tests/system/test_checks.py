"""Each check finds the violation that is planted in a small history.

It finds nothing in the history without it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import pytest

from tests.dates import flight_id
from tests.system import checks
from tests.system.checks import rights, versions, waitlist
from tests.system.history import History, Mark, Operation
from tests.system.truth import (
    BookingFlightRow,
    BookingPassengerRow,
    BookingRow,
    ChargeRow,
    CheckInRow,
    DepartureRow,
    EntryRow,
    FlightRow,
    HoldRow,
    HoldSeatRow,
    IntentRow,
    PassengerRow,
    Provider,
    RefundRow,
    SeatEvent,
    SeatRow,
    Transition,
    Truth,
    WaitlistSeatRow,
)

FLIGHT: Final = flight_id()
OTHER_FLIGHT: Final = flight_id("SH102")
CUSTOMER, STRANGER, SESSION = "customer:c", "customer:d", "passenger:ABC234"
USD_100: Final = {"currency_code": "USD", "units": "100"}
USD_20: Final = {"currency_code": "USD", "units": "20"}


@dataclass
class Story:
    """A history and the true state behind it, under construction."""

    history: History = field(default_factory=History)
    truth: Truth = field(default_factory=Truth)
    now: float = 1000.0

    def call(
        self, call: str, principal: str, request: dict[str, Any], answer: dict[str, Any] | None = None, **more: Any
    ) -> Operation:
        """Adds a call of half a second after all earlier ones; it succeeds by default."""
        self.now += 1
        operation = Operation(
            index=0,
            client=more.pop("client", principal),
            principal=principal,
            call=call,
            request=request,
            request_id=more.pop("request_id", request.get("request_id")),
            invoked=more.pop("invoked", self.now),
            returned=more.pop("returned", self.now + 0.5),
            outcome=more.pop("outcome", "ok"),
            answer=answer if answer is not None else {},
            **more,
        )
        self.history.append(operation)
        return operation

    def seat(self, number: str, *steps: str, hold_id: str = "H", passenger_id: str = "P", **more: Any) -> None:
        """Adds a seat of FLIGHT with the states that it went through."""
        flight = more.pop("flight_id", FLIGHT)
        state = "AVAILABLE"
        for version, step in enumerate(steps, start=1):
            event = SeatEvent(flight, number, version, state, step, hold_id, "service:booking", step, None, "1")
            event = replace(event, event_time=self.now + version / 10)
            self.truth.seat_events.append(replace(event, **more))
            state = step
        live = state in ("HELD", "CONFIRMED")
        ordinal = len(self.truth.seats)
        self.truth.seats.append(SeatRow(flight, number, ordinal, state, len(steps), hold_id if live else None))
        if steps:
            self.truth.hold_seats.append(
                HoldSeatRow(hold_id, flight, number, passenger_id, state if live else "RELEASED")
            )

    def steps(self, kind: list[Transition], subject: str, *states: str, actor: str = "itself") -> None:
        """Adds the history of a booking, a check-in, an entry or an intent."""
        for version, state in enumerate(states, start=1):
            kind.append(Transition(subject, version, states[version - 2] if version > 1 else None, state, actor, state))


def booked() -> Story:
    """A customer books two flights for two, pays, and reads the booking.

    Nothing is wrong.
    """
    story = Story()
    truth = story.truth
    travellers = [{"passenger_id": f"P{n}", "given_name": f"N{n}", "last_name": "L", "type": "ADULT"} for n in (1, 2)]
    seats = [
        {"flight_id": flight, "seat_number": f"{row}{letter}", "passenger_id": passenger}
        for flight, row in ((FLIGHT, 10), (OTHER_FLIGHT, 11))
        for letter, passenger in (("A", "P1"), ("B", "P2"))
    ]
    answer: dict[str, Any] = {
        "booking_id": "B",
        "state": "SEATS_RESERVED",
        "hold_id": "H",
        "passengers": travellers,
        "seats": seats,
        "flights": [{"flight_id": FLIGHT, "state": "BOOKED"}, {"flight_id": OTHER_FLIGHT, "state": "BOOKED"}],
        "total": USD_100,
    }
    request = {"itinerary_id": "I", "passengers": [{"given_name": f"N{n}", "last_name": "L"} for n in (1, 2)]}
    story.call("CreateBooking", CUSTOMER, request, answer, request_id="k1")
    for seat in seats:
        story.seat(
            seat["seat_number"], "HELD", "CONFIRMED", passenger_id=seat["passenger_id"], flight_id=seat["flight_id"]
        )
    truth.holds.append(HoldRow("H", CUSTOMER, "CONFIRMED", True, 1, 2, 1.5))
    truth.bookings.append(BookingRow("B", CUSTOMER, "CONFIRMED", "USD", 10_000, "H", "I", "ABC234", "k1"))
    for number, flight in enumerate((FLIGHT, OTHER_FLIGHT), start=1):
        truth.booking_flights.append(BookingFlightRow("B", number, flight))
        truth.flights.append(FlightRow(flight, "SCHEDULED"))
    for number in (1, 2):
        truth.booking_passengers.append(BookingPassengerRow("B", number, f"P{number}", f"N{number}", "L"))
        for flight in (FLIGHT, OTHER_FLIGHT):
            truth.passengers.append(PassengerRow(flight, f"P{number}", "ABC234", f"N{number}", "L"))
    truth.booking_events += [
        Transition("B", 1, None, "CREATED", CUSTOMER),
        Transition("B", 2, "CREATED", "SEATS_RESERVED", "booking"),
        Transition("B", 3, "SEATS_RESERVED", "PAYMENT_PENDING", CUSTOMER),
        Transition("B", 4, "PAYMENT_PENDING", "PAYMENT_PROCESSING", "booking"),
        Transition("B", 5, "PAYMENT_PROCESSING", "CONFIRMED", "booking"),
    ]
    truth.intents.append(IntentRow("I", "booking/B", CUSTOMER, "SUCCEEDED", "USD", 10_000, 0, 0))
    story.steps(truth.intent_events, "I", "REQUIRES_PAYMENT", "PROCESSING", "SUCCEEDED", actor="service:booking")
    truth.charges.append(ChargeRow("C", "I", 1, "SUCCEEDED", "ch_1"))
    truth.provider = Provider({"C": ("succeeded", 10_000)}, {}, {"C": "ch_1"})
    pending = {**answer, "state": "PAYMENT_PENDING", "payment_intent_id": "I"}
    story.call("PayBooking", CUSTOMER, {"booking_id": "B", "payment_code": "00000"}, pending, request_id="k2")
    history = [{"to_state": step.to_state} for step in truth.booking_events]
    done = {**answer, "state": "CONFIRMED", "payment_intent_id": "I", "pnr": "ABC234", "history": history}
    story.call("GetBooking", CUSTOMER, {"booking_id": "B"}, done)
    return story


def checked_in() -> Story:
    """A passenger of a confirmed booking checks in with a heavy bag.

    The passenger pays the fee, and gets the boarding pass.
    """
    story = booked()
    truth = story.truth
    start = {"checkin_id": "K", "flight_id": FLIGHT, "passenger_id": "P1", "state": "INITIATED", "seat_number": "10A"}
    story.call("StartCheckIn", SESSION, {"flight_id": FLIGHT, "passenger_id": "P1"}, start, request_id="k3")
    waiting = {**start, "state": "WAITING_FOR_PAYMENT", "fee": USD_20, "payment_intent_id": "J"}
    story.call("DeclareBaggage", SESSION, {"checkin_id": "K", "bags": [{"weight_grams": 30_000}]}, waiting)
    story.call(
        "SubmitPaymentCode",
        SESSION,
        {"intent_id": "J", "payment_code": "12345"},
        {
            "intent_id": "J",
            "state": "PROCESSING",
            "amount": USD_20,
        },
    )
    story.call("GetCheckIn", SESSION, {"checkin_id": "K"}, {**waiting, "state": "COMPLETED"})
    boarding_pass = {"flight_id": FLIGHT, "passenger_id": "P1", "seat_number": "10A", "checkin_id": "K"}
    story.call("GetBoardingPass", SESSION, {"checkin_id": "K"}, boarding_pass)
    truth.check_ins.append(CheckInRow("K", FLIGHT, "P1", "ABC234", "COMPLETED", "10A", "H", 2_000, "J", 1.0, 1))
    truth.check_in_events += [
        Transition("K", 1, None, "INITIATED", SESSION),
        Transition("K", 2, "INITIATED", "WAITING_FOR_PAYMENT", SESSION),
        Transition("K", 3, "WAITING_FOR_PAYMENT", "COMPLETED", "payment"),
    ]
    truth.intents.append(IntentRow("J", "checkin/K/1", SESSION, "SUCCEEDED", "USD", 2_000, 0, 0))
    truth.intent_events += [
        Transition("J", 1, None, "REQUIRES_PAYMENT", "service:checkin"),
        Transition("J", 2, "REQUIRES_PAYMENT", "PROCESSING", SESSION),
        Transition("J", 3, "PROCESSING", "SUCCEEDED", "provider"),
    ]
    truth.charges.append(ChargeRow("D", "J", 1, "SUCCEEDED", "ch_2"))
    truth.provider = Provider({"C": ("succeeded", 10_000), "D": ("succeeded", 2_000)}, {}, {"C": "ch_1", "D": "ch_2"})
    return story


def waited() -> Story:
    """Two passengers wait for a window seat.

    The first one gets the seat that is released.
    """
    story = Story()
    truth = story.truth
    truth.waitlist_seats.append(WaitlistSeatRow(FLIGHT, "10A", "ECONOMY", "WINDOW"))
    for number, (entry, passenger) in enumerate((("E1", "P1"), ("E2", "P2")), start=1):
        request = {"flight_id": FLIGHT, "passenger_id": passenger, "preferences": {"positions": ["WINDOW"]}}
        answer = {
            "entry_id": entry,
            "flight_id": FLIGHT,
            "passenger_id": passenger,
            "state": "WAITING",
            "position": number,
        }
        story.call("JoinWaitlist", SESSION, request, answer, request_id=f"w{number}")
        story.call("GetWaitlistEntry", SESSION, {"entry_id": entry}, answer)
        truth.entry_events.append(Transition(entry, 1, None, "WAITING", SESSION))
        truth.passengers.append(PassengerRow(FLIGHT, passenger, "ABC234"))
    first = EntryRow(
        "E1", FLIGHT, 1, "P1", SESSION, "ASSIGNED", "ECONOMY", ["WINDOW"], [], "10A", "H", 10, 30, 31, None
    )
    truth.entries += [
        first,
        EntryRow("E2", FLIGHT, 2, "P2", SESSION, "WAITING", "ECONOMY", ["WINDOW"], [], create_time=11),
    ]
    truth.entry_events.append(Transition("E1", 2, "WAITING", "ASSIGNED", "waitlist"))
    story.seat("10A", "HELD", "CONFIRMED", passenger_id="P1")
    truth.holds.append(HoldRow("H", SESSION, "CONFIRMED", False, 1, 2, 1.5))
    story.call(
        "GetWaitlistEntry",
        SESSION,
        {"entry_id": "E1"},
        {
            "entry_id": "E1",
            "flight_id": FLIGHT,
            "passenger_id": "P1",
            "state": "ASSIGNED",
            "seat_number": "10A",
            "hold_id": "H",
        },
    )
    story.call("GetWaitlistEntry", SESSION, {"entry_id": "E2"}, {"entry_id": "E2", "state": "WAITING", "position": 1})
    return story


def watched() -> Story:
    """A client watches a flight while a seat is held and confirmed.

    The client reconnects once; another client reads the map.
    """
    story = Story()
    for number, steps in (("10A", ("HELD", "CONFIRMED")), ("10B", ())):
        story.seat(number, *steps)
    story.truth.holds.append(HoldRow("H", CUSTOMER, "CONFIRMED", False, 1, 2, 1.5))
    snapshot = {"version": "1", "snapshot": {"flight_id": FLIGHT, "version": "1", "states": "AA"}, "at": 1}
    held = {"version": "2", "changes": {"10A": "HELD"}, "at": 2}
    confirmed = {"version": "3", "changes": {"10A": "CONFIRMED"}, "at": 3}
    heartbeat = {"version": "3", "heartbeat": {}, "at": 4}
    story.call("WatchSeatMap", CUSTOMER, {"flight_id": FLIGHT}, {"messages": [snapshot, held]}, outcome="unknown")
    story.call("GetSeatMap", STRANGER, {"flight_id": FLIGHT}, {"version": "2", "states": "HA"})
    watching = {"flight_id": FLIGHT, "known_version": "2"}
    story.call("WatchSeatMap", CUSTOMER, watching, {"messages": [confirmed, heartbeat]})
    story.call("GetSeatMap", STRANGER, {"flight_id": FLIGHT}, {"version": "3", "states": "CA"})
    story.history.marks.append(Mark(story.now - 60, "rest", "all is calm"))
    return story


STORIES: Final = {each.__name__: each for each in (booked, checked_in, waited, watched)}


@pytest.mark.parametrize("name", STORIES)
def test_story_without_a_fault_has_no_violation(name: str) -> None:
    story = STORIES[name]()
    assert [str(each) for each in checks.run(story.history, story.truth)] == []


def answer_of(story: Story, call: str, position: int = -1) -> dict[str, Any]:
    """Returns the response of an operation, for changes."""
    answer = [each for each in story.history if each.call == call][position].answer
    assert answer is not None
    return answer


def change(rows: list[Any], number: int = 0, /, **columns: Any) -> None:
    """Changes a row of the true state."""
    rows[number] = replace(rows[number], **columns)


def _event_after_departure(story: Story, actor: str, late: float = 5) -> None:
    """Adds a departure after all events, and an event that released a confirmed seat after it."""
    departure = story.now + 1
    story.truth.departures.append(DepartureRow(FLIGHT, departure_time=departure))
    released = SeatEvent(FLIGHT, "10A", 9, "CONFIRMED", "AVAILABLE", "H", actor, "X", None, "9", departure + late)
    story.truth.seat_events.append(released)


def _late_hold(story: Story) -> None:
    cancelled = [{"flight_id": FLIGHT, "state": "CANCELLED"}]
    operation = story.call(
        "CancelBooking",
        CUSTOMER,
        {"booking_id": "B"},
        {
            **answer_of(story, "CreateBooking"),
            "state": "CANCELLED",
            "flights": cancelled,
        },
    )
    story.now = (operation.returned or 0) + rights.GRACE_SECONDS
    boarding_pass = {"flight_id": FLIGHT, "passenger_id": "P1", "seat_number": "10A", "checkin_id": "K"}
    story.call("GetBoardingPass", SESSION, {"checkin_id": "K"}, boarding_pass)


def _end_and_go_on(story: Story) -> None:
    story.truth.check_in_events.insert(2, Transition("K", 2, "INITIATED", "CANCELLED", "itself"))
    answer_of(story, "GetCheckIn").update(state="CANCELLED")


def _refund_shown_early(story: Story) -> None:
    change(story.truth.bookings, refund_minor_units=2_000)
    answer_of(story, "GetBooking").update(refund=USD_20, refund_time="T")


def _second_booking(story: Story) -> None:
    story.truth.bookings.append(replace(story.truth.bookings[0], booking_id="B2", hold_id="H2"))
    story.truth.booking_events.append(Transition("B2", 1, None, "CREATED", "itself"))


def _repeat_with_other_parameters(story: Story) -> None:
    first = next(story.history.of_calls("PayBooking"))
    story.call("PayBooking", CUSTOMER, {**first.request, "payment_code": "11111"}, first.answer, request_id="k2")


def _unknown_charge(story: Story) -> None:
    assert story.truth.provider is not None
    charges = {**story.truth.provider.charges, "Z": ("succeeded", 500)}
    story.truth.provider = replace(story.truth.provider, charges=charges)


def _refund_twice(story: Story) -> None:
    assert story.truth.provider is not None
    refunds = {"r1": ("ch_1", 10_000), "r2": ("ch_1", 10_000)}
    story.truth.provider = replace(story.truth.provider, refunds=refunds)
    story.truth.refunds += [RefundRow(key, "C", "I", "SUCCEEDED", 10_000) for key in refunds]


def _refuse(call: str, *, keyed: bool = True) -> Callable[[Story], None]:
    def refuse(story: Story) -> None:
        operation = next(story.history.of_calls(call))
        operation.outcome, operation.code, operation.reason, operation.answer = "refused", "UNAVAILABLE", "DOWN", {}
        operation.request_id = operation.request_id if keyed else None

    return refuse


def _drop(call: str) -> Callable[[Story], None]:
    def drop(story: Story) -> None:
        story.history.operations = [each for each in story.history if each.call != call]

    return drop


def _younger_first(story: Story) -> None:
    change(story.truth.entries, 0, seat_number=None, hold_id=None, state="WAITING", match_time=None, end_time=None)
    change(story.truth.entries, 1, seat_number="10A", hold_id="H", state="ASSIGNED", match_time=30.0, end_time=31.0)


def _swap_numbers(story: Story) -> None:
    change(story.truth.entries, 0, number=2)
    change(story.truth.entries, 1, number=1)


def _stale_watch(story: Story) -> None:
    messages = answer_of(story, "WatchSeatMap")["messages"]
    del messages[:]
    messages.append({"version": "2", "heartbeat": {}, "at": 4})


# By name: the check, the story, the planted change, and a part of the finding.
PLANTED: Final[dict[str, tuple[str, Callable[[], Story], Callable[[Story], Any], str]]] = {
    "booking that is lost": ("acknowledged", booked, lambda s: s.truth.bookings.clear(), "is not there"),
    "passenger with another name": (
        "acknowledged",
        booked,
        lambda s: change(s.truth.booking_passengers, last_name="X"),
        "the party is",
    ),
    "locator that changed": (
        "acknowledged",
        booked,
        lambda s: change(s.truth.bookings, pnr="XYZ234"),
        "the locator was",
    ),
    "state that never was": (
        "acknowledged",
        booked,
        lambda s: answer_of(s, "GetBooking").update(state="EXPIRED"),
        "never was",
    ),
    "final state that did not last": (
        "acknowledged",
        checked_in,
        _end_and_go_on,
        "which is final",
    ),
    "check-in that is lost": (
        "acknowledged",
        checked_in,
        lambda s: s.truth.check_ins.clear(),
        "the check-in is not there",
    ),
    "entry of another passenger": (
        "acknowledged",
        waited,
        lambda s: change(s.truth.entries, passenger_id="P9"),
        "the entry is not there",
    ),
    "assigned seat that was never confirmed": (
        "acknowledged",
        waited,
        lambda s: s.truth.seat_events.pop(),
        "never was CONFIRMED",
    ),
    "cancelled leg that stays": (
        "acknowledged",
        booked,
        lambda s: s.call(
            "CancelBooking",
            CUSTOMER,
            {"booking_id": "B"},
            {
                **answer_of(s, "CreateBooking"),
                "state": "CONFIRMED",
                "flights": [{"flight_id": FLIGHT, "state": "CANCELLED"}],
            },
        ),
        "were cancelled, and are booked",
    ),
    "flight that is not cancelled": (
        "acknowledged",
        booked,
        lambda s: s.call(
            "CancelFlight", "operations:o", {"flight_id": FLIGHT}, {"flight_id": FLIGHT, "status": "CANCELLED"}
        ),
        "the flight is SCHEDULED",
    ),
    "imported passenger who is not on the manifest": (
        "acknowledged",
        booked,
        lambda s: s.call(
            "ImportManifest",
            "operations:o",
            {"flight_id": FLIGHT, "passengers": [{"passenger_id": "P7"}]},
            {"added": 1},
        ),
        "is not on the manifest",
    ),
    "refund that is not there": (
        "acknowledged",
        booked,
        lambda s: s.call("RefundPayment", "agent:a", {"intent_id": "I", "total_refund": USD_20}, {"amount": USD_100}),
        "the refund is not there",
    ),
    "booking with a seat too few": (
        "atomicity",
        booked,
        lambda s: answer_of(s, "CreateBooking")["seats"].pop(),
        "has 3 seats",
    ),
    "booking whose hold took one flight": (
        "atomicity",
        booked,
        lambda s: s.truth.seat_events.__delitem__(slice(4, None)),
        "its hold took",
    ),
    "booking held in two transactions": (
        "atomicity",
        booked,
        lambda s: change(s.truth.seat_events, 0, transaction="2"),
        "its hold took",
    ),
    "half a confirmation": ("atomicity", booked, lambda s: s.truth.seat_events.pop(), "and confirmed"),
    "two bookings of a key": ("idempotency", booked, _second_booking, "made 2 bookings"),
    "key for two requests": ("idempotency", booked, _repeat_with_other_parameters, "stood for two requests"),
    "key refused without cause": (
        "idempotency",
        booked,
        lambda s: s.call(
            "PayBooking",
            CUSTOMER,
            {"booking_id": "B", "payment_code": "00000"},
            request_id="k9",
            outcome="refused",
            reason="IDEMPOTENCY_KEY_REUSED",
        ),
        "never was",
    ),
    "repeat that was refused": (
        "idempotency",
        booked,
        lambda s: s.call(
            "PayBooking",
            CUSTOMER,
            next(s.history.of_calls("PayBooking")).request,
            request_id="k2",
            outcome="refused",
            code="FAILED_PRECONDITION",
            reason="PAYMENT_IN_PROGRESS",
        ),
        "the repeat of key k2 was refused",
    ),
    "defect of a service": (
        "refusals",
        booked,
        lambda s: s.call("GetBooking", CUSTOMER, {"booking_id": "B"}, outcome="refused", reason="INTERNAL"),
        "with a defect",
    ),
    "refused payment that was made": ("refusals", booked, _refuse("PayBooking"), "became PAYMENT_PENDING"),
    "refused booking that was made": ("refusals", booked, _refuse("CreateBooking", keyed=False), "became CREATED"),
    "check-in without a request": ("refusals", checked_in, _drop("StartCheckIn"), "no call of this principal"),
    "entry without a request": ("refusals", waited, _drop("JoinWaitlist"), "no call of this principal"),
    "confirmation before the payment": (
        "linearizability",
        booked,
        lambda s: setattr(next(s.history.of_calls("PayBooking")), "invoked", s.now + 50),
        "was seen before anything that can have written it was called",
    ),
    "boarding pass for another's seat": (
        "linearizability",
        checked_in,
        lambda s: answer_of(s, "GetBoardingPass").update(seat_number="10B"),
        "seat of P1",
    ),
    "seat refused that was free": (
        "linearizability",
        booked,
        lambda s: s.call(
            "CreateBooking",
            STRANGER,
            {"flight_id": FLIGHT},
            {"flight_id": FLIGHT, "seat_number": "20A"},
            outcome="refused",
            reason="SEAT_TAKEN",
        ),
        "saw taken",
    ),
    "booking that was paid before it was": (
        "lifecycles",
        booked,
        lambda s: answer_of(s, "GetBooking").update(history=[{}]),
        "which is not so",
    ),
    "watch of a check-in that goes back": (
        "lifecycles",
        checked_in,
        lambda s: s.call(
            "WatchCheckIn",
            SESSION,
            {"checkin_id": "K"},
            {
                "messages": [
                    {"checkin": {**answer_of(s, "StartCheckIn"), "state": state}, "at": s.now + 1.2}
                    for state in ("COMPLETED", "INITIATED")
                ]
            },
        ),
        "shows INITIATED after COMPLETED",
    ),
    "check-in that goes back": (
        "lifecycles",
        checked_in,
        lambda s: s.call(
            "GetCheckIn", SESSION, {"checkin_id": "K"}, {**answer_of(s, "StartCheckIn"), "state": "WAITING_FOR_PAYMENT"}
        ),
        "because of an earlier read",
    ),
    "entry that is overtaken": ("waitlist", waited, _younger_first, "had asked for it"),
    "entry out of line": ("waitlist", waited, _swap_numbers, "joined after entry"),
    "seat that was not asked for": (
        "waitlist",
        waited,
        lambda s: change(s.truth.waitlist_seats, position="AISLE"),
        "which it did not ask for",
    ),
    "position that grows": (
        "waitlist",
        waited,
        lambda s: s.call(
            "GetWaitlistEntry", SESSION, {"entry_id": "E2"}, {"entry_id": "E2", "state": "WAITING", "position": 2}
        ),
        "went from position 1 to 2",
    ),
    "position of an entry that does not wait": (
        "waitlist",
        waited,
        lambda s: answer_of(s, "GetWaitlistEntry").update(position=0),
        "has position 0",
    ),
    "watch that lost a change": (
        "watches",
        watched,
        lambda s: answer_of(s, "WatchSeatMap").update(messages=[{"version": "3", "changes": {"10B": "HELD"}, "at": 3}]),
        "do not add up",
    ),
    "watch that goes back": (
        "watches",
        watched,
        lambda s: answer_of(s, "WatchSeatMap")["messages"].append(
            {"version": "2", "changes": {"10A": "HELD"}, "at": 5}
        ),
        "came after",
    ),
    "watch that begins with changes": (
        "watches",
        watched,
        lambda s: answer_of(s, "WatchSeatMap", 0)["messages"].pop(0),
        "before a snapshot",
    ),
    "heartbeat of a change that was not sent": (
        "watches",
        watched,
        lambda s: answer_of(s, "WatchSeatMap")["messages"].pop(0),
        "do not add up",
    ),
    "watch that is late at rest": ("watches", watched, _stale_watch, "was there at rest"),
    "map that goes back": (
        "versions",
        watched,
        lambda s: s.call("GetSeatMap", STRANGER, {"flight_id": FLIGHT}, {"version": "2", "states": "HA"}),
        "and then got 2",
    ),
    "two maps of a version": (
        "versions",
        watched,
        lambda s: answer_of(s, "GetSeatMap", 0).update(states="AH"),
        "as it never was",
    ),
    "map that is newer than the last": (
        "versions",
        watched,
        lambda s: answer_of(s, "GetSeatMap").update(version="9"),
        "the last is 3",
    ),
    "unchanged that is changed": (
        "versions",
        watched,
        lambda s: s.call(
            "GetSeatMap", "agent:a", {"flight_id": FLIGHT, "known_version": "2"}, {"version": "3", "unchanged": True}
        ),
        "knew version 2",
    ),
    "call of a role that may not": (
        "rights",
        booked,
        lambda s: s.call("BlockSeat", CUSTOMER, {"flight_id": "F", "seat_number": "1A"}, {}),
        "may not call",
    ),
    "booking shown to a stranger": (
        "rights",
        booked,
        lambda s: s.call("GetBooking", STRANGER, {"booking_id": "B"}, {"booking_id": "B"}),
        "was shown",
    ),
    "passenger shown to a stranger": (
        "rights",
        booked,
        lambda s: s.call("SearchFlights", STRANGER, {}, {"itineraries": [{"name": "P2"}]}),
        "was shown",
    ),
    "seat of a cancelled booking at rest": (
        "rights",
        checked_in,
        lambda s: change(s.truth.bookings, state="CANCELLED"),
        "keeps seat 10A",
    ),
    "check-in of a cancelled booking at rest": (
        "rights",
        checked_in,
        lambda s: change(s.truth.bookings, state="CANCELLED"),
        "keeps check-in K",
    ),
    "boarding pass after the cancellation": ("rights", checked_in, _late_hold, "after the end"),
    "seat that was held after the departure": (
        "departures",
        checked_in,
        lambda s: s.truth.departures.append(DepartureRow(FLIGHT, departure_time=-10)),
        "after the departure",
    ),
    "seat that was given up after the departure": (
        "departures",
        checked_in,
        lambda s: _event_after_departure(s, "agent:a"),
        "agent:a gave up seat 10A",
    ),
    "entry of a flight that has left": (
        "departures",
        waited,
        lambda s: _event_after_departure(s, "service:booking", late=100),
        "which has left",
    ),
    "confirmed seat that the waitlist released": (
        "departures",
        checked_in,
        lambda s: change(s.truth.seat_events, -1, from_state="CONFIRMED", to_state="OFFERED", actor="service:waitlist"),
        "the waitlist released",
    ),
    "payment without a request": ("money", booked, _drop("PayBooking"), "without a SubmitPaymentCode"),
    "payment with the code that always fails": (
        "money",
        booked,
        lambda s: next(s.history.of_calls("PayBooking")).request.update(payment_code="99999"),
        "the code that always fails",
    ),
    "price that changed": (
        "money",
        booked,
        lambda s: answer_of(s, "GetBooking").update(total=USD_20),
        "the price was shown as 2000 cents",
    ),
    "booking that is confirmed and not paid": (
        "money",
        booked,
        lambda s: change(s.truth.intents, state="FAILED"),
        "was never paid",
    ),
    "price that is not the sum of the fares": (
        "money",
        booked,
        lambda s: answer_of(s, "GetBooking")["flights"].__setitem__(0, {"flight_id": FLIGHT, "fare": USD_20}),
        "the fares of its flights are 2000",
    ),
    "refund that was promised": (
        "money",
        booked,
        lambda s: answer_of(s, "GetBooking").update(refund=USD_20),
        "were to be given back",
    ),
    "refund that was shown as done": (
        "money",
        booked,
        _refund_shown_early,
        "shown as given back",
    ),
    "fee that was not paid": (
        "money",
        checked_in,
        lambda s: change(s.truth.intents, 1, state="FAILED"),
        "its fee was never paid",
    ),
    "intent of another amount": (
        "money",
        checked_in,
        lambda s: answer_of(s, "SubmitPaymentCode").update(amount=USD_100),
        "were shown otherwise",
    ),
    "charge that we do not know": ("money", booked, _unknown_charge, "which we do not know"),
    "charge that the provider does not know": (
        "money",
        booked,
        lambda s: s.truth.charges.append(ChargeRow("X", "I", 2, "SUCCEEDED")),
        "does not know it",
    ),
    "money given back twice": ("money", booked, _refund_twice, "gave 20000 cents back of 10000"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_violation_is_found(name: str) -> None:
    check, tell, plant, text = PLANTED[name]
    story = tell()
    plant(story)
    found = checks.CHECKS[check](story.history, story.truth)
    assert any(text in each.text for each in found), [str(each) for each in found]


def test_every_check_has_a_planted_violation() -> None:
    assert {check for check, *_ in PLANTED.values()} == set(checks.CHECKS)


def test_grace_begins_again_after_a_fault() -> None:
    story = checked_in()
    _late_hold(story)
    end = next(story.history.of_calls("CancelBooking")).returned or 0
    story.history.marks += [Mark(end + 20, "fault", "broker"), Mark(end + 25, "undone", "broker")]
    assert rights.check(story.history, story.truth) == []


def test_unknown_outcome_explains_a_change() -> None:
    story = booked()
    for operation in story.history.of_calls("PayBooking"):
        operation.outcome, operation.answer = "unknown", None
    assert checks.run(story.history, story.truth) == []


def overlapping(chance: random.Random) -> tuple[float, float]:
    """Draws the times of a call that overlaps others."""
    invoked = chance.uniform(0, 10)
    return invoked, invoked + chance.uniform(0.1, 3)


def test_order_of_joining_equals_a_comparison_of_pairs() -> None:
    verdicts = [0, 0]
    for seed in range(500):
        chance = random.Random(seed)
        story = Story()
        count = chance.randint(2, 5)
        numbers = list(range(1, count + 1))
        spans = sorted((overlapping(chance) for _ in numbers), key=lambda span: chance.uniform(*span))
        if chance.random() < 0.3:
            chance.shuffle(numbers)
        for number, (invoked, returned) in zip(numbers, spans, strict=True):
            answer = {"entry_id": f"E{number}", "state": "WAITING"}
            story.call("JoinWaitlist", SESSION, {}, answer, invoked=invoked, returned=returned)
            story.truth.entries.append(EntryRow(f"E{number}", FLIGHT, number, f"P{number}", SESSION, "WAITING"))
        placed = list(zip(numbers, spans, strict=True))
        wrong = any(a[1] < b[0] and number > other for number, a in placed for other, b in placed)
        assert bool(waitlist.check(story.history, story.truth)) == wrong, seed
        verdicts[wrong] += 1
    assert min(verdicts) > 50


def test_decreasing_map_versions_equal_a_comparison_of_pairs() -> None:
    verdicts = [0, 0]
    for seed in range(500):
        chance = random.Random(seed)
        story = Story()
        seen = []
        for number in range(chance.randint(4, 9)):
            invoked, returned = overlapping(chance)
            version = int(invoked) + chance.randint(0, 5)
            answer = {"version": str(version), "states": ""}
            request = {"flight_id": FLIGHT}
            story.call(
                "GetSeatMap", CUSTOMER, request, answer, invoked=invoked, returned=returned, client=str(number % 2)
            )
            seen.append((number % 2, invoked, returned, version))
        wrong = any(a[0] == b[0] and a[2] < b[1] and a[3] > b[3] for a in seen for b in seen)
        found = [each for each in versions.check(story.history, story.truth) if "and then got" in each.text]
        assert bool(found) == wrong, seed
        verdicts[wrong] += 1
    assert min(verdicts) > 50

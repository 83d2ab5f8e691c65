"""Bookings, check-ins, entries and intents are linearizable.

No state that was seen is taken back. Their histories give the order of the writes (`registers.py`). For each read there
must be a moment between call and response at which the resource had the state shown; a later read never shows an
earlier state.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from tests.system.checks.calls import BOOKING_CALLS, CHECK_IN_CALLS, ENTRY_CALLS, INTENT_CALLS, shown
from tests.system.checks.registers import Read, Write, faults
from tests.system.checks.violation import Violation
from tests.system.history import STREAMS, History, Operation
from tests.system.truth import Transition, Truth

CHECK: Final = "lifecycles"

# The calls that read a resource from its database, and the field of its id. Calls that change it are not reads, because
# a repeat gets the response of the first request.
_READINGS: Final = (
    (BOOKING_CALLS & {"GetBooking", "WatchBooking"}, "booking_id"),
    (CHECK_IN_CALLS & {"GetCheckIn", "WatchCheckIn"}, "checkin_id"),
    (ENTRY_CALLS & {"GetWaitlistEntry"}, "entry_id"),
    (INTENT_CALLS & {"GetPaymentIntent"}, "intent_id"),
)
# The calls that cause a transition, and whose success proves it.
_MAKES: Final = {
    ("CreateBooking", "SEATS_RESERVED"): "booking_id",
    ("PayBooking", "PAYMENT_PENDING"): "booking_id",
    ("StartCheckIn", "INITIATED"): "checkin_id",
    ("CancelCheckIn", "CANCELLED"): "checkin_id",
    ("JoinWaitlist", "WAITING"): "entry_id",
    ("AcceptOffer", "ASSIGNED"): "entry_id",
    ("DeclineOffer", "DECLINED"): "entry_id",
    ("LeaveWaitlist", "LEFT"): "entry_id",
}


def check(history: History, truth: Truth) -> list[Violation]:
    """Returns the reads that no order of the transitions explains."""
    made, asked = _made(history)
    reads = _reads(history, truth)
    found = list(_streams_out_of_order(history, truth))
    for subject, of_subject in sorted(reads.items()):
        steps = truth.steps.get(subject, [])
        writes = [_write(step, made, asked) for step in steps]
        for fault in faults(writes, of_subject):
            found.append(Violation(CHECK, f"{subject}: {fault.text}", fault.evidence))
    return found


def _streams_out_of_order(history: History, truth: Truth) -> Iterator[Violation]:
    """The messages of a stream show the states in their order.

    States between two messages may be missing.
    """
    for calls, field in _READINGS:
        for operation in history.of_calls(*(calls & STREAMS)):
            numbers: dict[str, int] = {}
            for _, resource in shown(operation, calls):
                subject, state = str(resource.get(field, "")), str(resource.get("state", ""))
                states = [step.to_state for step in truth.steps.get(subject, ())]
                at = numbers.get(subject, 0)
                if state in states[at:]:
                    numbers[subject] = states.index(state, at)
                elif state in states:
                    yield Violation(CHECK, f"a watch of {subject} shows {state} after {states[at]}", [operation])
                    break


def _write(
    step: Transition,
    made: dict[tuple[str, str], tuple[float, Operation]],
    asked: dict[tuple[str, str], tuple[float, Operation]],
) -> Write[Operation]:
    write: Write[Operation] = Write()
    name = (step.subject, step.to_state)
    if name in made:
        write.not_after(*made[name])
    if name in asked:
        write.not_before(*asked[name])
    return write


def _made(
    history: History,
) -> tuple[dict[tuple[str, str], tuple[float, Operation]], dict[tuple[str, str], tuple[float, Operation]]]:
    """Returns the bounds of each transition.

    They are the first response that proves it, and the first call without which it could not happen. Only for
    transitions that happen once per resource and only by these calls.
    """
    made: dict[tuple[str, str], tuple[float, Operation]] = {}
    asked: dict[tuple[str, str], tuple[float, Operation]] = {}
    for operation in history:
        for (call, state), field in _MAKES.items():
            if operation.call != call:
                continue
            subject = str((operation.answer or {}).get(field) or operation.request.get(field) or "")
            name = (subject, state)
            if (
                operation.ok
                and operation.returned is not None
                and (name not in made or operation.returned < made[name][0])
            ):
                made[name] = (operation.returned, operation)
            if call == "PayBooking" and (name not in asked or operation.invoked < asked[name][0]):
                asked[name] = (operation.invoked, operation)
    return made, asked


def _reads(history: History, truth: Truth) -> dict[str, list[Read[Operation]]]:
    versions: dict[tuple[str, str], list[int]] = defaultdict(list)
    for subject, steps in truth.steps.items():
        for number, step in enumerate(steps, start=1):
            versions[subject, step.to_state].append(number)
    found: dict[str, list[Read[Operation]]] = defaultdict(list)
    for operation in history:
        for calls, field in _READINGS:
            for moment, resource in shown(operation, calls):
                subject, state = str(resource.get(field, "")), str(resource.get("state", ""))
                # `acknowledged.py` reports a state that the resource never had.
                if (subject, state) in versions:
                    seen = versions[subject, state]
                    if "history" in resource:
                        seen = [len(resource["history"])]
                    found[subject].append(Read(operation.invoked, moment, seen, state, operation))
    return found

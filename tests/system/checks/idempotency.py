"""A key has one effect, and its repeats get the first response.

A key belongs to its principal and to one service. `skyhigh verify` proves by the seat history that a request changes a
seat at most once. This check counts all resources that were created with one key, and compares the responses of its
repeats.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from tests.system.checks.calls import READS, SERVICE_OF, parameters
from tests.system.checks.violation import Violation
from tests.system.history import STREAMS, History, Operation
from tests.system.truth import Truth

CHECK: Final = "idempotency"
# Refused before the key was looked up: the service is down, the caller exceeds a limit, or the token has expired.
_NOT_LOOKED_AT: Final = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED", "PERMISSION_DENIED"})
REUSED: Final = "IDEMPOTENCY_KEY_REUSED"


def check(history: History, truth: Truth) -> list[Violation]:
    """Returns the keys with two responses or two effects.

    Also those that were refused as reused without cause.
    """
    return [*_answers(history), *_effects(history, truth)]


def _answers(history: History) -> Iterator[Violation]:
    groups: dict[tuple[str, str, str], list[Operation]] = defaultdict(list)
    for (principal, key), operations in history.by_key().items():
        for operation in operations:
            if operation.call not in READS and operation.call not in STREAMS:
                groups[principal, SERVICE_OF.get(operation.call, ""), key].append(operation)
    for (principal, _, key), operations in groups.items():
        done = [operation for operation in operations if operation.ok]
        asked = {parameters(operation) for operation in operations}
        if len({parameters(operation) for operation in done}) > 1:
            yield Violation(CHECK, f"key {key} of {principal} stood for two requests", _differing(done, parameters))
        elif any(operation.answer != done[0].answer for operation in done):
            yield Violation(
                CHECK,
                f"the repeats of key {key} of {principal} got two answers",
                _differing(done, lambda each: each.answer),
            )
        yield from _refused_repeats(key, operations)
        reused = [operation for operation in operations if operation.reason == REUSED]
        if reused and len(asked) == 1:
            yield Violation(CHECK, f"key {key} of {principal} was refused as reused, and never was", reused[:1])


def _refused_repeats(key: str, operations: Sequence[Operation]) -> Iterator[Violation]:
    """The repeat of a request that had succeeded succeeds.

    Excepted is a repeat that was refused before its key was looked up.
    """
    first = min((each for each in operations if each.ok), key=lambda each: each.end, default=None)
    for operation in operations:
        if (
            first is not None
            and operation.outcome == "refused"
            and operation.invoked > first.end
            and parameters(operation) == parameters(first)
            and operation.code not in _NOT_LOOKED_AT
        ):
            yield Violation(CHECK, f"the repeat of key {key} was refused", [first, operation])


def _effects(history: History, truth: Truth) -> Iterator[Violation]:
    by_key = history.by_key()
    for (actor, key), events in truth.events_of_request.items():
        made = {event.hold_id for event in events if event.to_state == "HELD" and event.reason == "HELD"}
        if len(made) > 1:
            yield Violation(CHECK, f"key {key} of {actor} made {len(made)} holds", by_key.get((actor, key), ()))
        if len({event.transaction for event in events}) > 1:
            yield Violation(
                CHECK, f"key {key} of {actor} changed seats in two transactions", by_key.get((actor, key), ())
            )
    bookings: dict[tuple[str, str], set[str]] = defaultdict(set)
    for booking in truth.bookings:
        # A refused booking is stored too, but its key may be used for another try.
        if booking.request_key and booking.hold_id:
            bookings[booking.owner, booking.request_key].add(booking.booking_id)
    for (owner, key), made_bookings in bookings.items():
        if len(made_bookings) > 1:
            yield Violation(
                CHECK, f"key {key} of {owner} made {len(made_bookings)} bookings", by_key.get((owner, key), ())
            )


def _differing(operations: Sequence[Operation], said: object) -> list[Operation]:
    assert callable(said)
    other = next(operation for operation in operations if said(operation) != said(operations[0]))
    return [operations[0], other]

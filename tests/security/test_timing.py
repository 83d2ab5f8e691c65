"""The response time reveals nothing (attacks 1 and 14).

An attacker guesses from it no better than by chance. The area under the curve (AUC) is the probability that a random
sample of one kind took longer than one of the other: 0.5 if time reveals nothing. With few samples, chance alone causes
deviations of more than 0.05; SKYHIGH_TEST_ROUNDS sets a larger number.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import pytest
from skyhigh.checkin.v1 import checkin_service_pb2 as checkin
from standardwebhooks.webhooks import Webhook

from payment_service.webhooks import Delivery, Signatures
from services.auth import Role
from services.errors import Unauthenticated
from tests.callers import Refused, a_few_at_once, refused
from tests.checkin.airport import new_pnr
from tests.payment.rules import SECRET
from tests.security.belongings import Belongings, missing
from tests.security.system import RPCS, System

MOST_AUC: Final = 0.55
# Samples of each kind; an hour allows 10,000.
SAMPLES: Final = int(os.environ.get("SKYHIGH_TEST_ROUNDS", "150"))
# Tolerated deviation in standard deviations: chance exceeds it once in a hundred thousand runs.
SIGMAS: Final = 4.5
AT_ONCE: Final = 16


def auc(first: Sequence[float], second: Sequence[float]) -> float:
    """Returns the probability that the second kind takes longer.

    It compares one sample of each; ties count half.
    """
    ranked = sorted([(value, 0) for value in first] + [(value, 1) for value in second])
    ranks, position = [0.0, 0.0], 0
    while position < len(ranked):
        end = position
        while end < len(ranked) and ranked[end][0] == ranked[position][0]:
            end += 1
        for _, kind in ranked[position:end]:
            ranks[kind] += (position + 1 + end) / 2
        position = end
    return (ranks[1] - len(second) * (len(second) + 1) / 2) / (len(first) * len(second))


def tells_nothing(first: Sequence[float], second: Sequence[float]) -> None:
    """Fails if the times differ by kind."""
    chance = math.sqrt((len(first) + len(second) + 1) / (12 * len(first) * len(second)))
    found = auc(first, second)
    assert abs(found - 0.5) <= max(MOST_AUC - 0.5, SIGMAS * chance), f"AUC {found:.3f} of {len(first)} samples each"


def test_a_timing_difference_is_detected() -> None:
    """Otherwise a measure that never finds a difference would pass."""
    assert auc([1, 2, 3], [4, 5, 6]) == 1
    assert auc([1, 2], [1, 2]) == 0.5
    some = random.Random(1)
    tells_nothing([some.gauss(1, 0.1) for _ in range(200)], [some.gauss(1, 0.1) for _ in range(200)])
    with pytest.raises(AssertionError, match="AUC"):
        tells_nothing([some.gauss(1, 0.1) for _ in range(200)], [some.gauss(1.1, 0.1) for _ in range(200)])


async def sampled(kinds: Sequence[Callable[[], Awaitable[object]]], *, at_once: int = 1) -> list[list[float]]:
    """Measures both kinds in seconds, in random order, so that disturbances affect both equally."""
    turns = [kind for kind in range(len(kinds)) for _ in range(SAMPLES)]
    random.shuffle(turns)
    taken: list[list[float]] = [[] for _ in kinds]

    async def one(kind: int) -> None:
        started = time.perf_counter()
        await kinds[kind]()
        taken[kind].append(time.perf_counter() - started)

    await a_few_at_once(map(one, turns), at_once=at_once)
    return taken


async def test_login_time_does_not_depend_on_the_wrong_half(system: System, belongings: Belongings) -> None:
    pnr = belongings.values[Role.PASSENGER]["pnr"]
    anybody = system.callers["checkin"].anybody("")

    async def guess(locator: str) -> Refused:
        with refused("NOT_FOUND", "TRIP_NOT_FOUND") as refusal:
            await anybody.CreateSession(checkin.CreateSessionRequest(pnr=locator, last_name="Wrong"))
        return refusal

    right, wrong = await sampled([lambda: guess(pnr), lambda: guess(new_pnr())], at_once=AT_ONCE)
    tells_nothing(right, wrong)


@pytest.mark.parametrize(
    ("name", "key", "role"),
    [("GetHold", "hold_id", Role.PASSENGER), ("GetBooking", "booking_id", Role.CUSTOMER)],
)
async def test_response_time_does_not_depend_on_foreign_data(
    system: System, belongings: Belongings, name: str, key: str, role: Role
) -> None:
    rpc, token = RPCS[name], belongings.stranger[role]
    # The requests are built before the measurement, because a new id takes longer to build than a known one.
    foreign = iter([rpc.request(**{key: belongings.values[role][key]}) for _ in range(SAMPLES)])
    missed = iter([rpc.request(**{key: missing(key)}) for _ in range(SAMPLES)])
    there, nothing = await sampled(
        [lambda: system.ask(rpc, next(foreign), token), lambda: system.ask(rpc, next(missed), token)]
    )
    tells_nothing(there, nothing)


def test_signature_check_time_does_not_depend_on_the_match() -> None:
    signatures = Signatures([SECRET])
    body, now = b'{"type": "charge.succeeded"}', int(time.time())
    right = Webhook(SECRET).sign("evt_1", datetime.fromtimestamp(now, UTC), body.decode())
    nearly, far = right[:-2] + ("A=" if not right.endswith("A=") else "B="), "v1," + "A" * (len(right) - 3)
    deliveries = {kind: Delivery(body, "evt_1", str(now), signature) for kind, signature in enumerate((nearly, far))}
    taken: list[list[float]] = [[], []]
    turns = [0, 1] * (SAMPLES * 10)
    random.shuffle(turns)
    for kind in turns:
        started = time.perf_counter()
        with pytest.raises(Unauthenticated):
            signatures.check(deliveries[kind])
        taken[kind].append(time.perf_counter() - started)
    tells_nothing(*taken)

"""The fast check of one object agrees with a search through all orders.

The tests compare thousands of histories.
"""

from __future__ import annotations

import random
from functools import cache
from math import inf

import pytest

from tests.system.checks.registers import Read, Write, faults

Operations = tuple[list[Write[int]], list[Read[int]]]


def is_linearizable(writes: list[Write[int]], reads: list[Read[int]]) -> bool:
    """Searches for an order of all operations that fits real time (Wing and Gong).

    The versions come in order, and each read comes at a version that it can have seen.
    """
    spans = [(write.invoked, write.returned) for write in writes] + [(read.invoked, read.returned) for read in reads]

    @cache
    def rest_fits(done: frozenset[int], version: int) -> bool:
        left = [n for n in range(len(spans)) if n not in done]
        if not left:
            return True
        # An operation that returned before another was called comes before it.
        first_return = min(spans[n][1] for n in left)
        for n in left:
            if spans[n][0] > first_return:
                continue
            if n < len(writes):
                if n == version and rest_fits(done | {n}, version + 1):
                    return True
            elif version in reads[n - len(writes)].versions and rest_fits(done | {n}, version):
                return True
        return False

    return rest_fits(frozenset(), 0)


def history(seed: int) -> Operations:
    """Returns a random history that is nearly right.

    A few of its operations have wrong times or states.
    """
    chance = random.Random(seed)
    count = chance.randint(1, 4)
    moments = sorted(chance.uniform(0, 10) for _ in range(count))
    states = [chance.randint(0, 2) for _ in range(count + 1)]
    width = chance.choice((0.5, 2.0, 5.0))
    writes = []
    for moment in moments:
        bounds: Write[int] = Write()
        if chance.random() < 0.8:
            bounds.invoked = moment - chance.uniform(0, width)
        if chance.random() < 0.8:
            bounds.returned = moment + chance.uniform(0, width)
        writes.append(bounds)
    reads = []
    for number in range(chance.randint(1, 5)):
        at = chance.uniform(0, 10)
        version = sum(moment <= at for moment in moments)
        if chance.random() < 0.3:
            version = chance.randint(0, count)
        seen = [n for n, state in enumerate(states) if state == states[version]] if chance.random() < 0.6 else [version]
        reads.append(Read(at - chance.uniform(0, width), at + chance.uniform(0, width), seen, "a state", number))
    if chance.random() < 0.2:
        wrong = chance.choice(writes)
        shift = chance.uniform(-3, 3)
        wrong.invoked, wrong.returned = wrong.invoked + shift, wrong.returned + shift
    return writes, reads


def test_verdict_equals_a_search_through_all_orders() -> None:
    verdicts = [0, 0]
    for seed in range(3_000):
        writes, reads = history(seed)
        right = is_linearizable(writes, reads)
        assert (not list(faults(writes, reads))) == right, seed
        verdicts[right] += 1
    # Both verdicts must be frequent, or agreement would prove little.
    assert min(verdicts) > 500


def test_twenty_thousand_operations_on_one_object_are_checked() -> None:
    # A check that compares all pairs would exceed the time limit of a test.
    writes: list[Write[int]] = [Write(n - 0.6, n + 0.6) for n in range(10_000)]
    reads = [Read(n + 0.1, n + 0.9, range(n % 2, 10_001, 2), "a state", n) for n in range(10_000)]
    assert not list(faults(writes, reads))


@pytest.mark.parametrize(
    ("writes", "reads", "text"),
    [
        ([Write(5, 6), Write(1, 2)], [], "version 2 was done before the call of version 1"),
        ([Write(5, 4)], [], "version 1 was seen before anything that can have written it was called"),
        ([Write(1, 2)], [Read(3, 4, [0], "nothing", 0)], "saw nothing, which is not so in version 1"),
        ([Write(5, 6)], [Read(3, 4, [1], "it", 0)], "saw it, which is not so in version 0"),
        (
            [Write(1, 9)],
            [Read(2, 3, [1], "it", 0), Read(4, 5, [0], "nothing", 1)],
            "at least 1 because of an earlier read",
        ),
        ([Write(1, 2)], [Read(0, inf, [], "what never was", 0)], "saw what never was"),
    ],
)
def test_planted_fault_is_found_and_named(writes: list[Write[int]], reads: list[Read[int]], text: str) -> None:
    (fault,) = faults(writes, reads)
    assert text in fault.text


def test_an_unreturned_write_may_take_effect_any_time() -> None:
    assert not list(faults([Write(1, inf), Write(2, 3)], [Read(0, 2.5, [1], "it", 0)]))

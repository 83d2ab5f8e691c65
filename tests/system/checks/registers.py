"""Linearizability of an object whose writes have versions 1..n.

The check needs O(n log n), because the order of writes is known. The writes come from a history, so each of them
happened; only the time is unknown. A write is bounded by the calls that can have caused it and by the responses that
prove it; a read by its call and its response. A read also names the versions that it can have seen. The object is
linearizable if and only if the checks below find nothing: sort the operations by version, the write first, then the
reads by their invocation; that order contradicts real time only in these ways.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from typing import Generic, TypeVar

Evidence = TypeVar("Evidence")


@dataclass(slots=True)
class Write(Generic[Evidence]):
    """The write of one version, between `invoked` and `returned`."""

    invoked: float = -inf
    returned: float = inf
    cause: Evidence | None = None
    """The evidence for `invoked`."""
    witness: Evidence | None = None
    """The evidence for `returned`."""

    def not_before(self, moment: float, cause: Evidence) -> None:
        """Raises the lower bound."""
        if moment > self.invoked:
            self.invoked, self.cause = moment, cause

    def not_after(self, moment: float, witness: Evidence) -> None:
        """Lowers the upper bound."""
        if moment < self.returned:
            self.returned, self.witness = moment, witness


@dataclass(slots=True)
class Read(Generic[Evidence]):
    """A read of one of several versions; 0 is the initial one."""

    invoked: float
    returned: float
    versions: Sequence[int]
    """The versions with what the read saw, ascending."""
    what: str
    evidence: Evidence


@dataclass(slots=True)
class Fault(Generic[Evidence]):
    """A reason why an object is not linearizable."""

    text: str
    evidence: list[Evidence]


def faults(writes: Sequence[Write[Evidence]], reads: Sequence[Read[Evidence]]) -> Iterator[Fault[Evidence]]:
    """Yields the contradictions to linearizability; `writes[0]` is version 1."""
    yield from _writes_out_of_order(writes)
    yield from _misplaced_reads(writes, reads)


def _writes_out_of_order(writes: Sequence[Write[Evidence]]) -> Iterator[Fault[Evidence]]:
    latest = 0
    for index, write in enumerate(writes):
        if write.invoked > write.returned:
            yield Fault(
                f"version {index + 1} was seen before anything that can have written it was called",
                _known(write.witness, write.cause),
            )
        if writes[latest].invoked > write.returned and latest != index:
            yield Fault(
                f"version {index + 1} was done before the call of version {latest + 1}, which came first",
                _known(writes[latest].cause, write.witness),
            )
        if write.invoked >= writes[latest].invoked:
            latest = index


def _misplaced_reads(writes: Sequence[Write[Evidence]], reads: Sequence[Read[Evidence]]) -> Iterator[Fault[Evidence]]:
    # begun[v]: the time of the last call among the writes up to v; a read before that cannot have seen v.
    begun = [-inf, *accumulate((write.invoked for write in writes), max)]
    # done[v]: the time at which the first version after v certainly existed; a later read cannot have seen v.
    done = [*reversed(list(accumulate((write.returned for write in reversed(writes)), min))), inf]
    # The reads that have returned, by their return time, with the lowest possible version of each.
    pending: list[tuple[float, int]] = []
    floor = 0
    for read in sorted(reads, key=lambda each: each.invoked):
        while pending and pending[0][0] < read.invoked:
            floor = max(floor, heapq.heappop(pending)[1])
        lowest = bisect_left(done, read.invoked)
        # The last version that had begun when the read returned.
        highest = bisect_right(begun, read.returned) - 1
        at = bisect_left(read.versions, max(lowest, floor))
        if at < len(read.versions) and read.versions[at] <= highest:
            heapq.heappush(pending, (read.returned, read.versions[at]))
            continue
        between = f"versions {lowest} to {highest}" if lowest != highest else f"version {lowest}"
        if floor > lowest:
            between += f", at least {floor} because of an earlier read"
        yield Fault(f"saw {read.what}, which is not so in {between}", [read.evidence])


def _known(*evidence: Evidence | None) -> list[Evidence]:
    return [each for each in evidence if each is not None]

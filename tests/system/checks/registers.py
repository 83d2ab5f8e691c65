"""Linearizability of an object whose writes have versions 1..n: in O(n log n), because the order of writes is known.

The writes are those of a ledger, so every one of them happened; what is not known is when. A write is bounded by the
calls that can have caused it and by the answers that prove it; a read by its call and its answer, and it names the
versions that it can have seen. The object is linearizable iff the checks below find nothing: order the operations by
version, the write first, then the reads by their invocation; that order contradicts real time only in these ways.
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
    """The write of one version: not before `invoked`, not after `returned`."""

    invoked: float = -inf
    returned: float = inf
    cause: Evidence | None = None
    """What was invoked then."""
    witness: Evidence | None = None
    """What returned then."""

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
    """A read that saw one of some versions, of which 0 is the beginning."""

    invoked: float
    returned: float
    versions: Sequence[int]
    """The versions that have what it saw, ascending."""
    what: str
    evidence: Evidence


@dataclass(slots=True)
class Fault(Generic[Evidence]):
    """Why an object is not linearizable."""

    text: str
    evidence: list[Evidence]


def faults(writes: Sequence[Write[Evidence]], reads: Sequence[Read[Evidence]]) -> Iterator[Fault[Evidence]]:
    """Yields what contradicts linearizability; `writes[0]` is version 1."""
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
    # begun[v]: when the last call of the versions up to v was made; before that no read can have seen v.
    begun = [-inf, *accumulate((write.invoked for write in writes), max)]
    # done[v]: when the first of the versions after v was certainly there; a later read can't have seen v.
    done = [*reversed(list(accumulate((write.returned for write in reversed(writes)), min))), inf]
    # The reads that have returned, by their return; the highest version that they needed.
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

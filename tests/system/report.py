"""The result of a run in words and figures."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.system.checks.violation import Violation
from tests.system.faults.play import Played
from tests.system.history import History, Operation

SHOWN_VIOLATIONS: Final = 12
SHOWN_OPERATIONS: Final = 14
SHOWN_REASONS: Final = 4


@dataclass
class Outcome:
    """The result of a run."""

    seed: int
    replay: str
    """The command that plays the same seed again."""
    history: History
    play_seconds: float
    rest_seconds: float | None
    """None if the system did not come to rest."""
    unrest: str = ""
    violations: list[Violation] = field(default_factory=list)
    verify_code: int = 0
    verify_text: str = ""
    faults: list[Played] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether the run found nothing."""
        broken = any(each.error for each in self.faults)
        return self.rest_seconds is not None and not self.violations and self.verify_code == 0 and not broken


def lines(outcome: Outcome) -> Iterator[str]:
    """Yields the report line by line."""
    history = outcome.history
    rate = len(history) / outcome.play_seconds if outcome.play_seconds else 0
    yield f"seed {outcome.seed}: {len(history)} operations in {outcome.play_seconds:.1f} s, {rate:.0f} operations/s"
    yield ""
    yield from _by_call(history.operations)
    yield ""
    if outcome.faults:
        yield f"{len(outcome.faults)} faults:"
        yield from (f"  {_fault(each)}" for each in outcome.faults)
    if outcome.rest_seconds is None:
        yield f"the system did not come to rest: {outcome.unrest}"
    else:
        yield f"at rest {outcome.rest_seconds:.1f} s after the last call"
    yield from _violations(outcome)
    yield from _verified(outcome)
    if not outcome.good:
        yield f"play this seed again: {outcome.replay}"


def _fault(played: Played) -> str:
    if played.error:
        return f"{played.planned}: FAILED: {played.error}"
    return f"{played.planned}: skipped: {played.skipped}" if played.skipped else str(played.planned)


def _by_call(operations: Sequence[Operation]) -> Iterator[str]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for operation in operations:
        counts[operation.call][operation.outcome] += 1
        if not operation.ok:
            reasons[operation.call][operation.reason or operation.code or "no end"] += 1
    yield f"{'CALL':<20} {'OK':>6} {'REFUSED':>8} {'UNKNOWN':>8}  MOST FREQUENT REASONS"
    for call, outcomes in sorted(counts.items(), key=lambda each: -each[1].total()):
        told = ", ".join(f"{reason} {count}" for reason, count in reasons[call].most_common(SHOWN_REASONS))
        yield f"{call:<20} {outcomes['ok']:>6} {outcomes['refused']:>8} {outcomes['unknown']:>8}  {told}"


def _violations(outcome: Outcome) -> Iterator[str]:
    by_check = Counter(violation.check for violation in outcome.violations)
    yield f"{len(outcome.violations)} violations in the history"
    yield from (f"  {check}: {count}" for check, count in by_check.most_common())
    for violation in outcome.violations[:SHOWN_VIOLATIONS]:
        yield ""
        yield f"{violation.check}: {violation.text}"
        shown = violation.operations or ()
        yield from (f"    {operation}" for operation in shown[:SHOWN_OPERATIONS])
        if len(shown) > SHOWN_OPERATIONS:
            yield f"    … and {len(shown) - SHOWN_OPERATIONS} operations more"


def _verified(outcome: Outcome) -> Iterator[str]:
    if outcome.verify_code == 0:
        yield "skyhigh verify: " + (outcome.verify_text.strip().splitlines() or ["nothing"])[-1]
        return
    yield f"skyhigh verify ended with {outcome.verify_code}:"
    # Its table of invariants and its figures each end with an empty line; then come the violations.
    yield from (f"  {line}" for line in outcome.verify_text.strip().split("\n\n")[-1].splitlines())

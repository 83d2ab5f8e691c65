"""`make bench`: prints each measure beside its baseline and puts the figures into docs/performance.md.

A benchmark is no test: whatever the figures are, it succeeds. It fails only where something could not be measured.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from rich.console import Console

from bench import bookings, expiry, history, holds, maps, neighbours, report, scale, search, seats_mix, waitlist
from bench.plan import Plan
from bench.report import Measure
from bench.stack import BenchStack, running

MEASURES: Final[Mapping[str, Callable[[BenchStack, Plan], Awaitable[list[Measure]]]]] = {
    "P1": holds.unary_holds,
    "P2": holds.many_seats_per_call,
    "P3": maps.reads,
    "P4": maps.reads_through_gateway,
    "P5": waitlist.release_to_assigned,
    "P6": expiry.mass_expiry,
    "P8": maps.reads_without_redis,
    "P9": scale.many_flights,
    "P11": search.searches,
    "P12": search.searches_without_redis,
    "P13": bookings.bookings,
    "P14": seats_mix.seats_mix,
    "P15": neighbours.neighbours,
    "P18": history.owner_with_a_past,
}
# What a measure needs besides the servers and the seat service. Nothing else runs, because it would take CPU of the two
# cores.
EVERYTHING: Final = frozenset({"checkin", "waitlist", "payment", "flight", "booking", "limits", "gateway"})
ORDERS: Final = frozenset({"flight", "booking", "payment", "checkin", "waitlist", "limits", "gateway", "mock-provider"})
NEEDS: Final = {
    "P4": EVERYTHING,
    "P15": EVERYTHING,
    "P5": frozenset({"waitlist", "checkin"}),
    "P11": frozenset({"flight"}),
    "P12": frozenset({"flight"}),
    "P13": ORDERS,
    "P14": frozenset({"flight", "checkin"}),
}
# The width of the table, in characters, if the output is no terminal.
PAGE_WIDTH: Final = 150
DOCUMENT: Final = Path(__file__).resolve().parents[1] / "docs" / "performance.md"


def main() -> int:
    """Runs the command; returns its exit code."""
    arguments = _arguments()
    command = "python -m bench " + " ".join(sys.argv[1:])
    try:
        return asyncio.run(_run(arguments, command.strip()))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("bench: told to end; nothing is left running", file=sys.stderr)
        return 130


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", type=_ids, default=list(MEASURES), metavar="P1,P3", help="measures to take")
    parser.add_argument("--rounds", type=_within(1, 50), default=5, help="how often both sides take turns (5)")
    parser.add_argument("--seconds", type=_within(1, 60), default=4, help="length of each side's turn (4)")
    parser.add_argument("--output", type=Path, default=DOCUMENT, help="document whose figures are replaced")
    parser.add_argument("--print-only", action="store_true", help="leave the document as it is")
    return parser.parse_args()


def _ids(text: str) -> list[str]:
    ids = [part.strip().upper() for part in text.split(",")]
    if unknown := set(ids) - set(MEASURES):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(MEASURES)}")
    return ids


def _within(low: int, high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"a number from {low} to {high} is wanted")
        return int(text)

    return number


async def _run(arguments: argparse.Namespace, command: str) -> int:
    running_task = asyncio.current_task()
    assert running_task is not None
    # SIGTERM cancels the task, so that the servers are still stopped and their data removed.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running_task.cancel)
    console = Console(width=None if sys.stdout.isatty() else PAGE_WIDTH)
    plan = Plan(rounds=arguments.rounds, seconds=arguments.seconds)
    taken: list[Measure] = []
    failed = False
    for needed in dict.fromkeys(NEEDS.get(name, frozenset()) for name in arguments.only):
        ids = [name for name in arguments.only if NEEDS.get(name, frozenset()) == needed]
        with console.status("starting private servers") as status:
            async with running(needed) as stack:
                for name in ids:
                    status.update(f"measuring {name}: {plan.rounds} rounds")
                    try:
                        taken += await MEASURES[name](stack, plan)
                    # Any error: if a measure fails, the others can still be taken.
                    except Exception as error:
                        failed = True
                        console.print(f"{name} could not be measured: {error!r}", markup=False)
    report.show(taken, console)
    if taken and not arguments.print_only:
        report.write(taken, arguments.output, command)
        console.print(f"written to {arguments.output}", markup=False)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

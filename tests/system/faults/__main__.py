"""`python -m tests.system.faults --seed N --seconds 60`: plays faults without load, and shows that the stack recovers.

After each fault it prints how long the stack took to serve again. The exit code is 1 if the stack does not.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from deploy.local import environment
from tests.system.faults.play import Played, play
from tests.system.faults.probe import NotServing, probing
from tests.system.faults.schedule import KINDS, Kind, schedule
from tests.system.faults.stack import REPOSITORY, StackError, running

RECOVERY_SECONDS: Final = 180


def main() -> int:
    """Reads the arguments and plays."""
    parser = argparse.ArgumentParser(prog="python -m tests.system.faults", description=__doc__.partition("\n")[2])
    parser.add_argument("--seed", type=int, required=True, help="decides which faults happen when")
    parser.add_argument("--seconds", type=float, default=60, help="the length of the schedule")
    parser.add_argument("--only", metavar="REGEX", default="", help="only kinds of faults whose name has a match")
    parser.add_argument("--checkout", type=Path, default=REPOSITORY, help="whose code runs; needs its .venv")
    parser.add_argument("--folder", type=Path, help="where logs stay  [default: a new one below /var/tmp]")
    parser.add_argument("--list", action="store_true", help="print the schedule and play nothing")
    arguments = parser.parse_args()
    kinds = [kind for kind in KINDS if re.search(arguments.only, kind.name)]
    if not kinds:
        parser.error(f"no kind of faults has a name that matches {arguments.only!r}")
    environment.clean()
    # A shell starts a background process with SIGINT ignored, and then nothing could end the run properly.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return asyncio.run(_main(arguments, kinds))
    except StackError as error:
        _say(f"faults: {error}")
        return 1


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def _main(arguments: argparse.Namespace, kinds: list[Kind]) -> int:
    planned = schedule(arguments.seed, arguments.seconds, kinds)
    if arguments.list:
        for each in planned:
            _say(str(each))
        return 0
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="skyhigh-faults-", dir="/var/tmp"))
    _say(f"seed {arguments.seed}: {len(planned)} faults in {arguments.seconds:g} s; logs in {folder}")
    began = time.monotonic()
    faults: list[Played] = []
    unrecovered: list[str] = []
    async with running(folder, arguments.seed, checkout=arguments.checkout) as stack, probing(stack) as probe:
        _say(
            f"the stack is ready after {time.monotonic() - began:.1f} s and serves after "
            f"{await probe.seconds_to_serve(patience_seconds=RECOVERY_SECONDS):.1f} s more"
        )

        shown = 0

        async def show() -> None:
            nonlocal shown
            group, shown = faults[shown:], len(faults)
            try:
                recovery = f"serves after {await probe.seconds_to_serve(patience_seconds=RECOVERY_SECONDS):5.2f} s"
            except NotServing as reason:
                recovery = f"DOES NOT SERVE after {RECOVERY_SECONDS} s: {reason}"
                unrecovered.append(recovery)
            for each in group:
                _say(_line(each, recovery))

        await play(stack, planned, played=faults, after_group=show)
        code, output = await stack.skyhigh("verify")
        _say(f"verify: {output.strip().splitlines()[-1] if output.strip() else ''}")
        if code:
            _say(output)
    failed = [each for each in faults if each.error]
    _say(
        f"{len(faults)} faults, {sum(bool(each.skipped) for each in faults)} skipped, {len(failed)} failed, "
        f"{len(unrecovered)} times no recovery, verify {'passed' if not code else 'FAILED'}"
    )
    return 1 if failed or unrecovered or code else 0


def _line(played: Played, recovery: str) -> str:
    assert played.ended is not None
    took = f"{played.ended - played.began:5.1f} s"
    outcome = recovery
    if played.skipped:
        outcome = f"skipped: {played.skipped}"
    elif played.error:
        outcome = f"FAILED: {played.error}; {recovery}"
    return f"{took}  {played.planned.kind:26} {outcome}  {played.planned.fault}"


if __name__ == "__main__":
    sys.exit(main())

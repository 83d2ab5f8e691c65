"""`skyhigh up`, `down`, `restart`: the processes of the local stack."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from operations import logs
from operations.stack import fail, home, named_stack, report_of, usable_home

if TYPE_CHECKING:
    from deploy.local.report import Report
    from deploy.local.stack import Stack
    from deploy.local.supervisor import Status

START_SECONDS: Final = 150
STOP_SECONDS: Final = 90
# A supervisor writes its first report about a second after Python has started.
REPORT_SECONDS: Final = 30
# On a fresh database the flight service first has to provision the seats of two days.
SCHEDULE_SECONDS: Final = 120
JOURNEY_DAYS: Final = 2
# If a process has died this often before it was ready, another try would not help.
HOPELESS_RESTARTS: Final = 2
# How a service ends when another try would fail too: with 2 if a setting is wrong, with 3 if a worker cannot start.
HOPELESS_ENDS: Final = ("ended with code 2", "ended with code 3")
# If `last_end` begins with one of these, only the log of the process says why it ended.
ENDED: Final = ("ended", "was killed")
POLL_SECONDS: Final = 0.1
WAITING_SECONDS: Final = 10
LOCK: Final = "up.lock"


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (up, down, restart):
        app.command()(command)


def up(
    journey: Annotated[bool, typer.Option(help="Load the demo airline and prove the stack by journeys.")] = True,
) -> None:
    """Start the local stack, load the demo airline, prove it by whole journeys, print where everything is.

    On a running stack it restarts the processes whose source was edited since they started.
    """
    began = time.monotonic()
    stack = named_stack()
    usable_home(stack)
    try:
        with _alone(stack):
            report = _running(stack) or _start(stack)
            _follow(report, [process.name for process in report.processes])
            print(f"All processes are ready after {time.monotonic() - began:.1f} s.")
            if journey:
                _prove(report)
    except KeyboardInterrupt:
        fail("interrupted. The stack goes on starting: `make up` follows it, `make down` stops it")
    _print_addresses(stack, report)
    print(f"Done in {time.monotonic() - began:.1f} s.")


def down() -> None:
    """Stop the local stack. Its data stay."""
    report = report_of()
    if report is None or not report.is_alive:
        report = _starting_elsewhere() or report
    if report is None or not report.is_alive:
        _end_leftovers(report)
        print("No stack runs.")
        return
    os.kill(report.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while report.is_alive:
        if time.monotonic() > deadline:
            fail(
                f"the supervisor, pid {report.pid}, did not end within {STOP_SECONDS} s; see `skyhigh logs supervisor`"
            )
        time.sleep(POLL_SECONDS)
    print("Stopped.")


def restart(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="Processes, as `skyhigh status` names them.")],
) -> None:
    """Restart processes of the local stack; the others go on."""
    report = report_of()
    if report is None or not report.is_alive:
        fail(f"no stack runs in {home()}: `make up` starts one")
    known = [process.name for process in report.processes]
    for name in names:
        if name not in known:
            fail(f"there is no process {name!r}; there are {', '.join(known)}")
    _restart(report, names)


def _running(stack: Stack) -> Report | None:
    """Restarts the edited processes of a running stack and returns its report.

    Returns None if no stack runs. Also stops the stack, and returns None, if its TLS setting differs or the source of
    its supervisor was edited.
    """
    report = report_of()
    if report is None or not report.is_alive:
        report = _starting_elsewhere()
    if report is None:
        return None
    if ("SKYHIGH_CA" in report.addresses) != stack.tls:
        print(f"The stack in {stack.home} runs {'without' if stack.tls else 'with'} TLS: it is started again.")
    elif reason := _edited_since(report.sources):
        print(f"The supervisor is older than {reason}: the whole stack is started again.")
    else:
        _warn_of_other_settings(report, stack)
        print(f"The stack in {stack.home} runs already.")
        edited = {process.name: reason for process in report.processes if (reason := _edited_since(process.sources))}
        for name, reason in edited.items():
            print(f"  {name:<13} is restarted: {reason} was edited")
        if edited:
            _restart(report, edited)
        return report_of() or report
    down()
    return None


def _edited_since(digests: Mapping[str, str]) -> str:
    """Returns the newest file of a source part that was edited; empty if none was."""
    from deploy.local import sources

    return next((sources.newest_file(part) for part in sources.edited(digests)), "")


def _restart(report: Report, names: Collection[str]) -> None:
    from deploy.local.orders import Orders

    began = time.monotonic()
    before = {process.name: process.pid for process in report.processes}
    Orders(home()).restart(report, list(names))
    _follow(report, names, before=before)
    print(f"Restarted in {time.monotonic() - began:.1f} s.")


@contextmanager
def _alone(stack: Stack) -> Iterator[None]:
    """Waits until no other `skyhigh up` of this home runs. Others wait during the block."""
    from deploy.local.home import holder_of, lock

    path = stack.home / LOCK
    with lock(path, wait=False) as first:
        if first:
            yield
            return
    print(f"Another `make up` starts this stack, pid {holder_of(path)}: waiting for it.", flush=True)
    with lock(path, wait=True):
        yield


def _starting_elsewhere() -> Report | None:
    """Waits for the report of a supervisor that has just started; None if none runs."""
    from deploy.local.home import lock

    path = home() / "supervisor.lock"
    deadline = time.monotonic() + REPORT_SECONDS
    while path.exists() and time.monotonic() < deadline:
        with lock(path, wait=False) as free:
            if free:
                return None
        report = report_of()
        if report is not None and report.is_alive:
            return report
        time.sleep(POLL_SECONDS)
    return None


def _start(stack: Stack) -> Report:
    from deploy.local import ports
    from deploy.local.process_table import processes_of
    from deploy.local.servers.programs import MissingServerError

    try:
        processes = processes_of(stack)
    except MissingServerError as error:
        fail(f"{error}; `make setup` says what is missing")
    _end_leftovers(report_of())
    if conflicts := ports.conflicts(processes):
        fail(
            f"the stack cannot have these ports: {'; '.join(conflicts)}. "
            "Set the variables to free ones, or SKYHIGH_PORT_BASE for all"
        )
    log = stack.home / "logs" / "supervisor.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        supervisor = subprocess.Popen(
            [sys.executable, "-P", "-m", "deploy.local"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    print(f"Starting the stack in {stack.home}:", flush=True)
    while True:
        report = report_of()
        if report is not None and report.pid == supervisor.pid:
            return report
        if supervisor.poll() is not None:
            fail(f"the stack did not start: {_supervisor_cause()}")
        time.sleep(POLL_SECONDS)


def _follow(report: Report, names: Collection[str], *, before: Mapping[str, int | None] | None = None) -> None:
    """Prints each change of these processes until all are ready.

    Ends the command if a process cannot become ready, or is not after START_SECONDS. `before` has the old pids of
    processes that are being restarted.
    """
    from deploy.local.home import fault
    from deploy.local.ports import obstacle

    replaced = before or {}
    shown: dict[str, tuple[str, int]] = {}
    restarts = {process.name: process.restarts for process in report.processes}
    began = spoke = time.monotonic()
    while True:
        # `report_of` returns None if the file is missing or damaged; this round then uses the last report again.
        report = report_of() or report
        chosen = [process for process in report.processes if process.name in names]
        for process in chosen:
            now = (str(process.state), process.restarts)
            if process.name in replaced and process.pid == replaced[process.name]:
                continue
            if shown.get(process.name) != now and process.state in ("ready", "died"):
                _show(process, time.monotonic() - began)
                spoke = time.monotonic()
            shown[process.name] = now
        unready = [p for p in chosen if p.state != "ready" or (p.name in replaced and p.pid == replaced[p.name])]
        if not unready:
            return
        for process in unready:
            tries = process.restarts - restarts.get(process.name, 0)
            if process.state == "died" and (disk := fault(home())):
                _give_up(f"{process.name} died: {disk}", f"skyhigh logs {process.name}")
            if process.state == "died" and (tries >= HOPELESS_RESTARTS or process.last_end in HOPELESS_ENDS):
                why = logs.cause(process.name) if process.last_end.startswith(ENDED) else ""
                _give_up(f"{process.name} {process.last_end}", f"skyhigh logs {process.name}", why)
        if not report.is_alive:
            _give_up("the supervisor ended", "skyhigh logs supervisor", _supervisor_cause())
        blocking = next((p for p in unready if p.trouble), unready[0])
        if time.monotonic() - began > START_SECONDS:
            reason = f"{blocking.name} is not ready after {START_SECONDS} s"
            _give_up(reason, f"skyhigh logs {blocking.name}", blocking.trouble or logs.cause(blocking.name))
        if time.monotonic() - spoke > WAITING_SECONDS:
            reason = "; ".join(filter(None, (blocking.trouble, obstacle(set(blocking.ports.values())))))
            trouble = f": {reason}" if reason else ""
            print(
                f"  {blocking.name:<13} {blocking.state} for {time.time() - blocking.since:.0f} s{trouble}", flush=True
            )
            spoke = time.monotonic()
        time.sleep(POLL_SECONDS)


def _give_up(what: str, more: str, why: str = "") -> NoReturn:
    fail(f"{what}{f': {why}' if why else ''}. `{more}` has the rest; `make down` stops the other processes")


def _supervisor_cause() -> str:
    # Each line of this log begins with its time, which ends in "Z ".
    return logs.cause("supervisor").partition("Z ")[2] or logs.cause("supervisor")


def _show(process: Status, seconds: float) -> None:
    detail = f"port {process.port}" if process.state == "ready" else process.last_end
    print(f"  {process.name:<13} {process.state:<6} {detail:<12} {seconds:5.1f} s", flush=True)


def _prove(report: Report) -> None:
    """Loads the demo airline and makes the journeys; ends the command if one fails."""
    # Imported here, because the import takes a while and the other commands do not need these modules.
    from operations import demo, flights, journeys

    asyncio.run(demo.load_all())
    # The journeys use flights of today and tomorrow. The flight service adds those of the other days afterwards.
    if days := min(JOURNEY_DAYS, int(report.given.get("SKYHIGH_FLIGHT_HORIZON_DAYS", JOURNEY_DAYS))):
        asyncio.run(flights.rolled(days, within_seconds=SCHEDULE_SECONDS))
    journeys.journey()


def _print_addresses(stack: Stack, report: Report) -> None:
    gateway = report.addresses["SKYHIGH_GATEWAY_URL"]
    authority = report.addresses.get("SKYHIGH_CA")
    mails = report.addresses.get("SKYHIGH_MOCK_MAIL_URL", "at the given mail server")
    print(f"""
  gateway     {gateway}{f"     curl --cacert {authority}" if authority is not None else ""}
  mails       {mails}
  addresses   .venv/bin/skyhigh env
  processes   .venv/bin/skyhigh status
  logs        .venv/bin/skyhigh logs [NAME] [-f]     {stack.home / "logs"}
  database    .venv/bin/skyhigh psql
  a token     .venv/bin/skyhigh token --role agent
  stop        make down
""")


def _warn_of_other_settings(report: Report, stack: Stack) -> None:
    names = sorted(report.given.keys() | stack.given.keys())
    changed = [name for name in names if report.given.get(name) != stack.given.get(name)]
    if changed:
        print(f"It runs with other values of {', '.join(changed)}: `make down` first to change them.", file=sys.stderr)


def _end_leftovers(report: Report | None) -> None:
    from deploy.local.leftovers import end_leftovers

    if report is None or not report.is_of_this_boot:
        return
    if ended := end_leftovers(report.processes):
        print(f"Ended {len(ended)} processes that a killed supervisor had left.")

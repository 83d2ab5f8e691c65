"""Starts, follows, restarts and stops the processes of the local stack."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NoReturn

from operations import log_files
from operations.local_stack import home, report_of
from operations.terminal import fail

if TYPE_CHECKING:
    from deploy.local.report import Report
    from deploy.local.stack import Stack
    from deploy.local.supervisor import Status

START_SECONDS: Final = 150
STOP_SECONDS: Final = 90
# A supervisor writes its first report about a second after Python has started.
REPORT_SECONDS: Final = 30
# If a process has died this often before it was ready, another try would not help.
HOPELESS_RESTARTS: Final = 2
# How a service ends when another try would fail too: with 2 if a setting is wrong, with 3 if a worker cannot start.
HOPELESS_ENDS: Final = ("ended with code 2", "ended with code 3")
# If `last_end` begins with one of these, only the log of the process says why it ended.
ENDED: Final = ("ended", "was killed")
POLL_SECONDS: Final = 0.1
WAITING_SECONDS: Final = 10
LOCK: Final = "up.lock"


def start(stack: Stack) -> Report:
    """Starts the stack, or continues with a running one, and waits until all its processes are ready.

    Restarts the edited processes of a running stack. Returns its report. Ends the command if a process cannot become
    ready.
    """
    with _alone(stack):
        report = _running(stack) or _start(stack)
        _follow(report, [process.name for process in report.processes])
    return report


def stop() -> None:
    """Stops the stack of this home, and processes that a killed supervisor left. Its data is kept."""
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
        print(f"The stack in {stack.home} runs {'without' if stack.tls else 'with'} TLS: it is restarted.")
    elif reason := _edited_since(report.sources):
        print(f"{reason} was edited after the supervisor had started: the whole stack is restarted.")
    else:
        _warn_of_other_settings(report, stack)
        print(f"The stack in {stack.home} is already running.")
        edited = {process.name: reason for process in report.processes if (reason := _edited_since(process.sources))}
        for name, reason in edited.items():
            print(f"  {name:<13} is restarted: {reason} was edited")
        if edited:
            restart(report, edited)
        return report_of() or report
    stop()
    return None


def _edited_since(digests: Mapping[str, str]) -> str:
    """Returns the newest file of a source part that was edited; empty if none was."""
    from deploy.local import sources

    return next((sources.newest_file(part) for part in sources.edited(digests)), "")


def restart(report: Report, names: Collection[str]) -> None:
    """Restarts processes of a running stack and waits until they are ready."""
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
    print(f"Another `make up`, pid {holder_of(path)}, is starting this stack: waiting for it.", flush=True)
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
        fail(f"{error}; `make setup` names the missing packages")
    _end_leftovers(report_of())
    if conflicts := ports.conflicts(processes):
        fail(
            f"the stack cannot use these ports: {'; '.join(conflicts)}. "
            "Set the variables to free ports, or set SKYHIGH_PORT_BASE to move all ports"
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
                why = log_files.cause(process.name) if process.last_end.startswith(ENDED) else ""
                _give_up(f"{process.name} {process.last_end}", f"skyhigh logs {process.name}", why)
        if not report.is_alive:
            _give_up("the supervisor ended", "skyhigh logs supervisor", _supervisor_cause())
        blocking = next((p for p in unready if p.trouble), unready[0])
        if time.monotonic() - began > START_SECONDS:
            reason = f"{blocking.name} is not ready after {START_SECONDS} s"
            _give_up(reason, f"skyhigh logs {blocking.name}", blocking.trouble or log_files.cause(blocking.name))
        if time.monotonic() - spoke > WAITING_SECONDS:
            reason = "; ".join(filter(None, (blocking.trouble, obstacle(set(blocking.ports.values())))))
            trouble = f": {reason}" if reason else ""
            print(
                f"  {blocking.name:<13} {blocking.state} for {time.time() - blocking.since:.0f} s{trouble}", flush=True
            )
            spoke = time.monotonic()
        time.sleep(POLL_SECONDS)


def _give_up(what: str, more: str, why: str = "") -> NoReturn:
    fail(f"{what}{f': {why}' if why else ''}. `{more}` prints more; `make down` stops the other processes")


def _supervisor_cause() -> str:
    # Each line of this log begins with its time, which ends in "Z ".
    return log_files.cause("supervisor").partition("Z ")[2] or log_files.cause("supervisor")


def _show(process: Status, seconds: float) -> None:
    detail = f"port {process.port}" if process.state == "ready" else process.last_end
    print(f"  {process.name:<13} {process.state:<6} {detail:<12} {seconds:5.1f} s", flush=True)


def _warn_of_other_settings(report: Report, stack: Stack) -> None:
    names = sorted(report.given.keys() | stack.given.keys())
    changed = [name for name in names if report.given.get(name) != stack.given.get(name)]
    if changed:
        print(
            f"The stack runs with other values of {', '.join(changed)}. To change them, run `make down` first.",
            file=sys.stderr,
        )


def _end_leftovers(report: Report | None) -> None:
    from deploy.local.leftovers import end_leftovers

    if report is None or not report.is_of_this_boot:
        return
    if ended := end_leftovers(report.processes):
        print(f"Ended {len(ended)} processes that a killed supervisor had left.")

"""`skyhigh up`, `down`, `clean`, `status`, `logs`, `psql`, `env`: the local stack."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

if TYPE_CHECKING:
    from deploy.local.report import Report
    from deploy.local.stack import Stack
    from deploy.local.supervisor import Status

START_SECONDS: Final = 150
STOP_SECONDS: Final = 90
# On a fresh database the flight service has to have the seats of two days made first.
SCHEDULE_SECONDS: Final = 120
JOURNEY_DAYS: Final = 2
# A process that died this often before it was ever ready has a reason that waiting does not cure.
HOPELESS_RESTARTS: Final = 3
POLL_SECONDS: Final = 0.1
LOG_TAIL_LINES: Final = 25
# What `clean` may remove: a home may have been pointed at a folder with other things in it.
OWN_FOLDERS: Final = ("logs", "keys", "gateway")
OWN_FILES: Final = ("stack.json", "secrets.json", "supervisor.lock", "boardingpass.png")


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(up)
    app.command()(down)
    app.command()(clean)
    app.command()(status)
    app.command()(logs)
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})(
        psql
    )
    app.command()(env)


def environment() -> dict[str, str]:
    """The addresses of this home's stack: what `skyhigh env` prints.

    A variable that is set wins, so that the commands also serve a stack that was not started here. Ends the command
    where there is no stack.
    """
    from deploy.local.stack import address_names

    report = _report()
    known = report.addresses if report is not None else {}
    addresses = {name: value for name in address_names() if (value := os.environ.get(name) or known.get(name))}
    if not addresses:
        fail(f"no stack was started in {_home()}: `make up` starts one")
    return addresses


def address_of(variable: str) -> str:
    """One of the addresses. Ends the command where it is unknown."""
    address = environment().get(variable)
    return address if address is not None else fail(f"{variable} is not known")


def fail(reason: str) -> NoReturn:
    """Ends the command with code 1 and a line that says why."""
    print(f"skyhigh: {reason}", file=sys.stderr)
    raise typer.Exit(1)


def up(
    journey: Annotated[bool, typer.Option(help="Load the demo airline and prove the stack by journeys.")] = True,
) -> None:
    """Start the local stack, load the demo airline, prove it by whole journeys, say where everything is."""
    began = time.monotonic()
    stack = _stack()
    report = _report()
    if report is not None and report.is_alive and _speaks_tls(report) != stack.tls:
        print(f"The stack in {stack.home} runs {'without' if stack.tls else 'with'} TLS: it is started anew.")
        down()
    if report is not None and report.is_alive:
        _warn_of_other_settings(report, stack)
        print(f"The stack in {stack.home} runs already.")
    else:
        report = _start(stack)
    _follow(report, stack.home)
    print(f"All processes are ready after {time.monotonic() - began:.1f} s.")
    if journey:
        _prove(report)
    _print_addresses(stack, report)
    print(f"Done in {time.monotonic() - began:.1f} s.")


def down() -> None:
    """Stop the local stack. Its data stay."""
    report = _report()
    if report is None or not report.is_alive:
        _end_leftovers(report)
        print("No stack runs.")
        return
    os.kill(report.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while report.is_alive:
        if time.monotonic() > deadline:
            fail(f"the supervisor, pid {report.pid}, did not end within {STOP_SECONDS} s; see `skyhigh logs`")
        time.sleep(POLL_SECONDS)
    print("Stopped.")


def clean() -> None:
    """Stop the local stack and forget its data, keys and logs."""
    down()
    stack = _stack()
    stack.servers.remove()
    for folder in OWN_FOLDERS:
        shutil.rmtree(stack.home / folder, ignore_errors=True)
    for file in OWN_FILES:
        (stack.home / file).unlink(missing_ok=True)
    if stack.home.exists() and not any(stack.home.iterdir()):
        stack.home.rmdir()
    print(f"Forgot {stack.home}.")


def status() -> None:
    """Show the processes of the local stack. Ends with 1 unless all are ready."""
    report = _report()
    if report is None or not report.is_alive:
        _end_unless_alive(report)
    assert report is not None
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("PROCESS", "STATE", "PID", "PORT", "UPTIME", "RESTARTS", "LAST END"):
        table.add_column(column, justify="right" if column in ("PID", "PORT", "UPTIME", "RESTARTS") else "left")
    for process in report.processes:
        table.add_row(
            process.name,
            f"[{'green' if process.state == 'ready' else 'red'}]{process.state}[/]",
            str(process.pid or "-"),
            str(process.port),
            _duration(time.time() - process.since) if process.state == "ready" else "-",
            str(process.restarts),
            process.last_end or "-",
        )
    Console().print(table)
    if any(process.state != "ready" for process in report.processes):
        raise typer.Exit(1)


def logs(
    name: Annotated[str | None, typer.Argument(help="One process, or `supervisor`; all where left out.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many lines of each.")] = LOG_TAIL_LINES,
) -> None:
    """Print the end of the logs."""
    folder = _home() / "logs"
    known = sorted(path.stem for path in folder.glob("*.log"))
    if not known:
        fail(f"there are no logs in {folder}")
    if name is not None and name not in known:
        fail(f"there is no log of {name!r}; there are {', '.join(known)}")
    chosen = [name] if name is not None else known
    for line in _log_lines([folder / f"{one}.log" for one in chosen], lines, follow=follow):
        print(line, flush=follow)


def psql(context: typer.Context) -> None:
    """Open psql on the stack's database as the owner of all schemas. Arguments are psql's."""
    from urllib.parse import parse_qsl, unquote, urlsplit

    from deploy.local.servers import postgres_programs

    url = urlsplit(address_of("SKYHIGH_DATABASE_URL"))
    # Not as an argument: everybody on the machine could read the password, and -d would replace all of it.
    variables = {
        "PGHOST": url.hostname or "",
        "PGPORT": str(url.port or 5432),
        "PGUSER": unquote(url.username or ""),
        "PGPASSWORD": unquote(url.password or ""),
        "PGDATABASE": url.path.removeprefix("/"),
        **{f"PG{name.upper()}": value for name, value in parse_qsl(url.query)},
    }
    folder = postgres_programs()
    program = str(folder / "psql") if folder is not None else "psql"
    try:
        os.execvpe(program, [program, *context.args], os.environ | variables)  # noqa: S606
    except FileNotFoundError:
        fail("psql is not installed")


def env() -> None:
    """Print the stack's addresses as KEY=value lines."""
    for name, value in environment().items():
        print(f"{name}={value}")


def _home() -> Path:
    from deploy.local.stack import home_of

    return home_of()


def _stack() -> Stack:
    from deploy.local.stack import Stack

    try:
        return Stack.from_environment()
    except ValueError as error:
        fail(str(error))


def _report() -> Report | None:
    from deploy.local.report import Report

    return Report.read(_home())


def _start(stack: Stack) -> Report:
    from deploy.local.process import port_is_free
    from deploy.local.servers import MissingServerError

    _end_leftovers(_report())
    try:
        processes = stack.processes()
    except MissingServerError as error:
        fail(f"{error}; `make setup` says what is missing")
    variables = {port: f"SKYHIGH_{name.upper()}_PORT" for name, port in stack.ports.items()}
    taken = [process.port for process in processes if not port_is_free(process.port)]
    if taken:
        settings = ", ".join(f"{variables[port]}={port}" for port in taken)
        fail(
            f"another program listens on these ports: {settings}. "
            "Set the variables to free ones, or SKYHIGH_PORT_BASE for all"
        )
    log = stack.home / "logs" / "supervisor.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "deploy.local"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    print(f"Starting the stack in {stack.home}:", flush=True)
    while True:
        report = _report()
        if report is not None and report.pid == supervisor.pid:
            return report
        if supervisor.poll() is not None:
            _print_tail(log, 5)
            fail("the stack did not start")
        time.sleep(POLL_SECONDS)


def _follow(report: Report, home: Path) -> None:
    """Shows each change of a process until all are ready; ends the command where one will not be."""
    from deploy.local.report import Report

    shown: dict[str, tuple[str, int]] = {}
    deadline = time.monotonic() + START_SECONDS
    while True:
        for process in report.processes:
            now = (str(process.state), process.restarts)
            if shown.get(process.name) != now and process.state in ("ready", "died"):
                _show(process)
            shown[process.name] = now
        hopeless = [p.name for p in report.processes if p.state != "ready" and p.restarts >= HOPELESS_RESTARTS]
        unready = [p.name for p in report.processes if p.state != "ready"]
        if not unready:
            return
        if hopeless or time.monotonic() > deadline or not report.is_alive:
            for name in hopeless or (unready[:1] if report.is_alive else ["supervisor"]):
                print(f"The end of {home / 'logs' / name}.log:", file=sys.stderr)
                _print_tail(home / "logs" / f"{name}.log", LOG_TAIL_LINES)
            fail(f"not ready: {', '.join(hopeless or unready)}. `make down` stops the rest")
        time.sleep(POLL_SECONDS)
        report = Report.read(home) or report


def _show(process: Status) -> None:
    detail = f"port {process.port}" if process.state == "ready" else process.last_end
    print(f"  {process.name:<13} {process.state:<6} {detail}", flush=True)


def _prove(report: Report) -> None:
    """Loads the demo airline and makes the journeys; ends the command where something is not as it must be."""
    # They import this module.
    from operations import demo, flights, journeys

    asyncio.run(demo.load_all())
    # Journeys are made today and tomorrow; the other days follow by themselves.
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


def _speaks_tls(report: Report) -> bool:
    return "SKYHIGH_CA" in report.addresses


def _warn_of_other_settings(report: Report, stack: Stack) -> None:
    names = sorted(report.given.keys() | stack.given.keys())
    changed = [name for name in names if report.given.get(name) != stack.given.get(name)]
    if changed:
        print(f"It runs with other values of {', '.join(changed)}: `make down` first to change them.", file=sys.stderr)


def _end_leftovers(report: Report | None) -> None:
    from deploy.local.supervisor import end_leftovers

    if report is not None:
        end_leftovers(report.processes)


def _print_tail(path: Path, lines: int) -> None:
    for line in _log_lines([path], lines, follow=False):
        print(f"  {line}", file=sys.stderr)


def _log_lines(paths: list[Path], lines: int, *, follow: bool) -> Iterator[str]:
    """The last lines of each file, then, where asked to follow, what is added; more than one file is named."""
    alone = len(paths) == 1
    with contextlib.ExitStack() as stack:
        files = {path: stack.enter_context(path.open(errors="replace")) for path in paths if path.exists()}
        for path, file in files.items():
            for line in deque(file, maxlen=lines):
                yield _named(path, line, alone=alone)
        while follow:
            time.sleep(POLL_SECONDS)
            for path, file in files.items():
                for line in file:
                    yield _named(path, line, alone=alone)


def _named(path: Path, line: str, *, alone: bool) -> str:
    return line.rstrip() if alone else f"{path.stem:<13} {line.rstrip()}"


def _end_unless_alive(report: Report | None) -> NoReturn:
    if report is None:
        fail(f"no stack was started in {_home()}: `make up` starts one")
    fail(f"the stack in {_home()} is stopped: `make up` starts it")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"

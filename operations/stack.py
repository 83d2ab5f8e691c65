"""`skyhigh clean`, `status`, `psql`, `env`: the local stack and its addresses."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import typer

if TYPE_CHECKING:
    from deploy.local.report import Report
    from deploy.local.stack import Stack
    from deploy.local.supervisor import Status

# Besides the servers' data, `clean` removes only these, because SKYHIGH_HOME may be a folder with other files in it.
OWN_FOLDERS: Final = ("logs", "keys", "gateway", "orders")
OWN_FILES: Final = ("stack.json", "secrets.json", "supervisor.lock", "up.lock", "boardingpass.png")


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(clean)
    app.command()(status)
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})(
        psql
    )
    app.command()(env)


def environment() -> dict[str, str]:
    """Returns the addresses of this home's stack, as `skyhigh env` prints them.

    A variable of the environment takes precedence, so that the commands also work with a stack that was not started
    here. Ends the command if no address is known.
    """
    from deploy.local.addresses import address_names

    report = report_of()
    known = report.addresses if report is not None else {}
    addresses = {name: value for name in address_names() if (value := os.environ.get(name) or known.get(name))}
    if not addresses:
        fail(f"no stack was started in {home()}: `make up` starts one")
    return addresses


def address_of(variable: str) -> str:
    """Returns one of the addresses. Ends the command if it is unknown."""
    address = environment().get(variable)
    return address if address is not None else fail(f"{variable} is not known")


def fail(reason: str) -> NoReturn:
    """Ends the command with code 1 and a line that says why."""
    print(f"skyhigh: {reason}", file=sys.stderr)
    raise typer.Exit(1)


def clean() -> None:
    """Stop the local stack and forget its data, keys and logs."""
    from operations.start import down

    down()
    stack = named_stack()
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
    report = report_of()
    if report is None or not report.is_alive:
        _end_unless_alive(report)
    assert report is not None
    from rich.console import Console
    from rich.table import Table

    silent = _silent(report.processes)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("PROCESS", "STATE", "PID", "PORT", "UPTIME", "RESTARTS", "TROUBLE OR LAST END"):
        table.add_column(column, justify="right" if column in ("PID", "PORT", "UPTIME", "RESTARTS") else "left")
    for process in report.processes:
        well = process.state == "ready" and process.name not in silent
        table.add_row(
            process.name,
            f"[{'green' if well else 'red'}]{'partly' if process.name in silent else process.state}[/]",
            str(process.pid or "-"),
            str(process.port),
            _duration(time.time() - process.since) if process.state == "ready" else "-",
            str(process.restarts),
            silent.get(process.name) or process.trouble or process.last_end or "-",
        )
    Console().print(table)
    if silent or any(process.state != "ready" for process in report.processes):
        raise typer.Exit(1)


def psql(context: typer.Context) -> None:
    """Open psql on the stack's database as the owner of all schemas. Arguments are psql's."""
    from urllib.parse import parse_qsl, unquote, urlsplit

    from deploy.local.servers.programs import postgres_programs

    url = urlsplit(address_of("SKYHIGH_DATABASE_URL"))
    # In variables and not as a URL argument: other users of the machine can read arguments, and so the password. A `-d`
    # of the caller would also replace the whole URL; now it replaces only PGDATABASE.
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


def home() -> Path:
    """Returns the folder of the stack's data."""
    from deploy.local.home import home_of

    return home_of()


def named_stack() -> Stack:
    """Returns the stack that the environment describes. Ends the command if a setting is wrong."""
    from deploy.local.stack import Stack

    try:
        return Stack.from_environment()
    except ValueError as error:
        fail(str(error))


def usable_home(stack: Stack) -> None:
    """Creates the folder of the stack's data. Ends the command if a stack cannot use it."""
    from deploy.local.home import UnusableHomeError, ensure_home

    try:
        ensure_home(stack.home)
    except UnusableHomeError as error:
        fail(str(error))


def report_of() -> Report | None:
    """Returns the last report of this home's supervisor, or None."""
    from deploy.local.report import Report

    return Report.read(home())


def _silent(processes: Sequence[Status]) -> dict[str, str]:
    """Returns the ready processes that do not listen on all their ports.

    The keys are their names; the values name the missing ports. A worker that dies again and again is an example.
    """
    from deploy.local.ports import listened_on

    heard = listened_on({port for process in processes for port in process.ports.values()})
    missing = {
        process.name: [name for name, port in process.ports.items() if port not in heard]
        for process in processes
        if process.state == "ready"
    }
    return {name: f"does not listen on {', '.join(ports)}" for name, ports in missing.items() if ports}


def _end_unless_alive(report: Report | None) -> NoReturn:
    if report is None:
        fail(f"no stack was started in {home()}: `make up` starts one")
    fail(f"the stack in {home()} is stopped: `make up` starts it")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"

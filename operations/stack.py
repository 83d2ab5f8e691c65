"""`skyhigh clean`, `status`, `psql`, `env`: the local stack, and where its parts are."""

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

# What `clean` may remove: a home may have been pointed at a folder with other things in it.
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
    """The addresses of this home's stack: what `skyhigh env` prints.

    A variable that is set wins, so that the commands also serve a stack that was not started here. Ends the command
    where there is no stack.
    """
    from deploy.local.stack import address_names

    report = report_of()
    known = report.addresses if report is not None else {}
    addresses = {name: value for name in address_names() if (value := os.environ.get(name) or known.get(name))}
    if not addresses:
        fail(f"no stack was started in {home()}: `make up` starts one")
    return addresses


def address_of(variable: str) -> str:
    """One of the addresses. Ends the command where it is unknown."""
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


def home() -> Path:
    """The folder of the stack's data."""
    from deploy.local.stack import home_of

    return home_of()


def named_stack() -> Stack:
    """The stack that the environment asks for. Ends the command if a setting is wrong."""
    from deploy.local.stack import Stack

    try:
        return Stack.from_environment()
    except ValueError as error:
        fail(str(error))


def usable_home(stack: Stack) -> None:
    """Makes the folder of the stack's data. Ends the command if it cannot hold a stack."""
    from deploy.local.home import UnusableHomeError, ensure_home

    try:
        ensure_home(stack.home)
    except UnusableHomeError as error:
        fail(str(error))


def report_of() -> Report | None:
    """The last report of this home's supervisor, or None."""
    from deploy.local.report import Report

    return Report.read(home())


def _silent(processes: Sequence[Status]) -> dict[str, str]:
    """Returns, by their names, the ready processes of which a part no longer listens, such as a worker that dies."""
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

"""`skyhigh up`, `down`, `restart`, `clean`, `status`, `psql`, `env`: the local stack."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from operations import supervision
from operations.local_stack import address_of, environment, home, named_stack, report_of, usable_home
from operations.terminal import fail

if TYPE_CHECKING:
    from deploy.local.report import Report
    from deploy.local.stack import Stack
    from deploy.local.supervisor import Status

# On a fresh database the flight service first has to provision the seats of two days.
SCHEDULE_SECONDS: Final = 120
JOURNEY_DAYS: Final = 2
# Besides the servers' data, `clean` removes only these, because SKYHIGH_HOME may be a folder with other files in it.
OWN_FOLDERS: Final = ("logs", "keys", "gateway", "orders")
OWN_FILES: Final = ("stack.json", "secrets.json", "supervisor.lock", "up.lock", "boardingpass.png")


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (up, down, restart):
        app.command()(command)
    app.command()(clean)
    app.command()(status)
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})(
        psql
    )
    app.command()(env)


def up(
    journey: Annotated[bool, typer.Option(help="Load the demo airline and test the stack by the journeys.")] = True,
) -> None:
    """Start the local stack, load the demo airline, test it by the journeys, and print all addresses.

    On a running stack, restart the processes whose source was edited since they started.
    """
    began = time.monotonic()
    stack = named_stack()
    usable_home(stack)
    try:
        report = supervision.start(stack)
        print(f"All processes are ready after {time.monotonic() - began:.1f} s.")
        if journey:
            _prove(report)
    except KeyboardInterrupt:
        fail("interrupted. The stack continues to start: `make up` follows it, `make down` stops it")
    _print_addresses(stack, report)
    print(f"Done in {time.monotonic() - began:.1f} s.")


def down() -> None:
    """Stop the local stack. Its data is kept."""
    supervision.stop()


def restart(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="Processes, as `skyhigh status` names them.")],
) -> None:
    """Restart processes of the local stack; the others continue."""
    report = report_of()
    if report is None or not report.is_alive:
        fail(f"no stack runs in {home()}: `make up` starts one")
    known = [process.name for process in report.processes]
    for name in names:
        if name not in known:
            fail(f"there is no process {name!r}; the processes are {', '.join(known)}")
    supervision.restart(report, names)


def clean() -> None:
    """Stop the local stack and delete its data, keys and logs."""
    supervision.stop()
    stack = named_stack()
    stack.servers.remove()
    for folder in OWN_FOLDERS:
        shutil.rmtree(stack.home / folder, ignore_errors=True)
    for file in OWN_FILES:
        (stack.home / file).unlink(missing_ok=True)
    if stack.home.exists() and not any(stack.home.iterdir()):
        stack.home.rmdir()
    print(f"Deleted the data in {stack.home}.")


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
    for column in ("PROCESS", "STATE", "PID", "PORT", "UPTIME", "RESTARTS", "PROBLEM OR LAST EXIT"):
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
    """Open psql on the stack's database as the owner of all schemas. All arguments are passed to psql."""
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


def _prove(report: Report) -> None:
    """Loads the demo airline and makes the journeys; ends the command if one fails."""
    # Imported here, because the import takes a while and the other commands do not need these modules.
    from operations import journeys, schedule
    from operations.demo import loading

    asyncio.run(loading.load_all())
    # The journeys use flights of today and tomorrow. The flight service adds those of the other days afterwards.
    if days := min(JOURNEY_DAYS, int(report.given.get("SKYHIGH_FLIGHT_HORIZON_DAYS", JOURNEY_DAYS))):
        asyncio.run(schedule.wait_for_schedule(days, within_seconds=SCHEDULE_SECONDS))
    journeys.prove()


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

"""`skyhigh verify`: checks a live system for the invariants of docs/rules.md section 11."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from operations.local_stack import environment
from operations.verify.check import check
from operations.verify.figures import Lateness, lateness, money
from operations.verify.finding import Finding, text_of

if TYPE_CHECKING:
    from rich.console import Console

CONNECT_TIMEOUT_SECONDS: Final = 5
CACHE_TIMEOUT_SECONDS: Final = 2
VIOLATED: Final = 1
NOT_CHECKED: Final = 2


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(verify)


def verify(
    watch: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=1, help="Check again at this interval, until Ctrl-C.")
    ] = None,
) -> None:
    """Check the invariants on the live database and cache. Changes nothing.

    Ends with 0 if all invariants hold, with 1 if one is violated, with 2 if one could not be checked.
    """
    try:
        addresses = environment()
    except typer.Exit:
        raise typer.Exit(NOT_CHECKED) from None
    worst = 0
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            code = asyncio.run(_verify(addresses, brief=watch is not None))
            worst = code if worst == 0 or code == VIOLATED else worst
            if watch is None:
                break
            time.sleep(watch)
    raise typer.Exit(worst)


async def _verify(addresses: Mapping[str, str], *, brief: bool) -> int:
    """Checks once and prints the findings. Returns the exit code."""
    import asyncpg
    from redis.asyncio import Redis
    from rich.console import Console

    console = Console()
    if "SKYHIGH_DATABASE_URL" not in addresses:
        console.print("not checked: SKYHIGH_DATABASE_URL is not set", style="yellow")
        return NOT_CHECKED
    redis = (
        Redis.from_url(
            addresses["SKYHIGH_REDIS_URL"],
            socket_timeout=CACHE_TIMEOUT_SECONDS,
            socket_connect_timeout=CACHE_TIMEOUT_SECONDS,
        )
        if "SKYHIGH_REDIS_URL" in addresses
        else None
    )
    try:
        connection = await asyncpg.connect(addresses["SKYHIGH_DATABASE_URL"], timeout=CONNECT_TIMEOUT_SECONDS)
        try:
            findings = await check(connection, redis)
            late = await lateness(connection)
            taken = await money(connection)
        finally:
            await connection.close()
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        console.print(f"not checked: the database is unreachable: {error or repr(error)}", style="yellow", markup=False)
        return NOT_CHECKED
    finally:
        if redis is not None:
            await redis.aclose()
    _print(console, findings, [*_lines(late), *map(str, taken)], brief=brief)
    if any(finding.violations for finding in findings):
        return VIOLATED
    return NOT_CHECKED if any(finding.not_checked for finding in findings) else 0


def _print(console: Console, findings: Sequence[Finding], figures: Sequence[str], *, brief: bool) -> None:
    if brief:
        console.print(f"{datetime.now().astimezone():%H:%M:%S} ", end="", highlight=False)
    else:
        _print_table(console, findings, figures)
    violated = [finding for finding in findings if finding.violations]
    not_checked = [finding for finding in findings if finding.not_checked]
    for finding in violated:
        console.print(f"{finding.number} {finding.name}: {finding.violations}", style="red", markup=False)
        for offender in finding.samples:
            console.print(f"    {text_of(offender)}", markup=False, highlight=False, soft_wrap=True)
        if finding.violations > len(finding.samples):
            console.print(f"    … and {finding.violations - len(finding.samples)} more", highlight=False)
    for finding in not_checked:
        console.print(f"{finding.number} not checked: {finding.not_checked}", style="yellow", markup=False)
    if not violated and not not_checked:
        took = sum(finding.milliseconds for finding in findings)
        console.print(f"All {len(findings)} invariants hold ({took:.0f} ms).", style="green", highlight=False)


def _print_table(console: Console, findings: Sequence[Finding], figures: Sequence[str]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("NO", "VIOLATIONS", "MS"):
        table.add_column(column, justify="right")
    table.add_column("INVARIANT")
    for finding in findings:
        table.add_row(str(finding.number), _verdict(finding), f"{finding.milliseconds:.0f}", finding.name)
    console.print(table)
    console.print()
    for figure in figures:
        console.print(figure, highlight=False, soft_wrap=True)
    if figures:
        console.print()


def _lines(late: Lateness) -> Iterator[str]:
    """Yields the lateness as one line, if any hold has expired."""
    if late.expired:
        yield (
            f"holds expired: {late.expired}; after their expire time p50 {late.p50_seconds:.2f} s, "
            f"p99 {late.p99_seconds:.2f} s, p99.9 {late.p999_seconds:.2f} s; later than 5 s: {late.later_than_5_s:.2%}"
        )


def _verdict(finding: Finding) -> str:
    if finding.not_checked:
        return "[yellow]not checked[/]"
    return f"[red]{finding.violations}[/]" if finding.violations else "0"

"""`skyhigh verify`: checks a live system for the invariants of docs/rules.md section 11."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias, cast

import typer

from operations.invariants import INVARIANTS, Invariant
from operations.invariants.payments import MONEY_OF_INTENTS, MONEY_SCHEMAS
from operations.stack import environment
from services.money import Amount, text_of

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from rich.console import Console

    from seat_service.maps.seat_map import Snapshot
    from services.db import Conn

SAMPLES: Final = 5
# A statement may have to read millions of ledger rows. One that takes longer than this is stuck.
STATEMENT_TIMEOUT_SECONDS: Final = 120
CONNECT_TIMEOUT_SECONDS: Final = 5
CACHE_TIMEOUT_SECONDS: Final = 2
KEYS_PER_SCAN: Final = 500
# How late a cached map may be (SEAT-12).
CACHE_GRACE_SECONDS: Final = 1.0
USED_LAYOUTS: Final = (3, "the file of each used cabin layout has the content that its flights were given")
CACHED_MAPS: Final = (11, "the cached maps are those of the database, at most a second late")

VIOLATED: Final = 1
NOT_CHECKED: Final = 2

Offender: TypeAlias = Mapping[str, Any]
Offenders: TypeAlias = tuple[int, list[Offender]]
"""The number of offenders, and the first few of them."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of the check of one invariant."""

    number: int
    """3 means rule 11.3."""
    name: str
    violations: int
    samples: Sequence[Offender]
    """The first few offenders: their ids and the values that disagree."""
    milliseconds: float
    not_checked: str | None = None
    """Why the invariant could not be checked; None if it was."""

    def __str__(self) -> str:
        found = self.not_checked or f"{self.violations} violations"
        return "\n    ".join([f"{self.number} {self.name}: {found}", *map(_offender, self.samples)])


@dataclass(frozen=True, slots=True)
class Lateness:
    """How long after their `expire_time` the holds were expired (SEAT-10)."""

    expired: int
    p50_seconds: float = 0
    p99_seconds: float = 0
    p999_seconds: float = 0
    later_than_5_s: float = 0
    """A share, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Money:
    """The money taken in one currency, and its fares, fees and refunds, in minor units."""

    currency: str
    taken: int
    fares: int
    fees: int
    given_back: int

    def __str__(self) -> str:
        return (
            f"money: {self._text(self.taken)} in = {self._text(self.fares)} fares + {self._text(self.fees)} fees "
            f"+ {self._text(self.given_back)} given back"
        )

    def _text(self, minor_units: int) -> str:
        return text_of(Amount(self.currency, minor_units))


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(verify)


def verify(
    watch: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=1, help="Look again so often, until Ctrl-C.")
    ] = None,
) -> None:
    """Prove on the live database and cache that what must always hold does. Changes nothing.

    Ends with 0 where all holds, with 1 where something is violated, with 2 where something could not be checked.
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


async def check(
    connection: Conn,
    redis: Redis | None,
    *,
    invariants: Sequence[Invariant] = INVARIANTS,
    service_runs: bool = True,
) -> list[Finding]:
    """Checks the invariants by SQL in one snapshot, then the layouts and the cached maps.

    `connection` must be able to read all schemas and should be in no transaction. Without `redis` the cached maps are
    reported as not checked. With `service_runs` False, the cached maps and the invariants that hold only while the
    services run are left out.
    """
    findings: list[Finding] = []
    async with one_moment(connection):
        schemas = {row["nspname"] for row in await connection.fetch("SELECT nspname FROM pg_namespace")}
        for invariant in invariants:
            # An invariant is left out if the database lacks the schema of one of its services.
            if schemas.issuperset(invariant.schemas) and (service_runs or not invariant.needs_service):
                findings.append(await _finding(invariant.number, invariant.name, _offenders(connection, invariant)))
    if not schemas.isdisjoint({"seat"}):
        findings.append(await _finding(*USED_LAYOUTS, _faulty_layouts(connection)))
    if service_runs:
        findings.append(await _finding(*CACHED_MAPS, _stale_maps(connection, redis)))
    return findings


@contextlib.asynccontextmanager
async def one_moment(connection: Conn) -> AsyncIterator[None]:
    """Opens one read-only snapshot for the block, with a long statement timeout."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        await connection.execute(
            f"""
            SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT_SECONDS}s';
            SET LOCAL work_mem = '64MB';
            SET LOCAL jit = off;
            """
        )
        yield


async def lateness(connection: Conn) -> Lateness:
    """Measures how late holds were expired, over all expired holds of the database."""
    async with one_moment(connection):
        row = await connection.fetchrow(
            """
            SELECT count(*) AS expired,
                   percentile_cont(ARRAY[0.5, 0.99, 0.999]) WITHIN GROUP (ORDER BY late) AS percentiles,
                   avg((late > 5)::int)::float8 AS later_than_5_s
            FROM (
                SELECT extract(epoch FROM end_time - expire_time)::float8 AS late
                FROM seat.holds WHERE state = 'EXPIRED'
            ) AS expired_holds
            """
        )
    assert row is not None
    if not row["expired"]:
        return Lateness(0)
    p50, p99, p999 = row["percentiles"]
    return Lateness(row["expired"], p50, p99, p999, row["later_than_5_s"])


async def money(connection: Conn) -> list[Money]:
    """Adds up the money that was ever taken, by currency.

    Returns an empty list if the database lacks the schema of a service that handles money.
    """
    async with one_moment(connection):
        schemas = {row["nspname"] for row in await connection.fetch("SELECT nspname FROM pg_namespace")}
        if not schemas.issuperset(MONEY_SCHEMAS):
            return []
        rows = await connection.fetch(
            f"""
            SELECT currency, sum(taken)::bigint AS taken, sum(fare)::bigint AS fares, sum(fee)::bigint AS fees,
                   sum(given_back)::bigint AS given_back
            FROM ({MONEY_OF_INTENTS}) AS money GROUP BY currency HAVING sum(taken) > 0 ORDER BY currency
            """  # noqa: S608
        )
    return [Money(**row) for row in rows]


async def _finding(number: int, name: str, offenders: Coroutine[Any, Any, Offenders]) -> Finding:
    import asyncpg
    from redis.exceptions import RedisError

    began = time.perf_counter()
    violations, samples, not_checked = 0, list[Offender](), None
    try:
        violations, samples = await offenders
    # A database or cache that is down, slow or not set up raises one of these. Any other error is a defect of ours.
    except (asyncpg.PostgresError, asyncpg.InterfaceError, RedisError, OSError, TimeoutError) as error:
        not_checked = f"{type(error).__name__}: {error}"
    return Finding(number, name, violations, samples, (time.perf_counter() - began) * 1000, not_checked)


async def _offenders(connection: Conn, invariant: Invariant) -> Offenders:
    # A savepoint: the error of one invariant would otherwise abort the transaction in which all others are checked.
    async with connection.transaction():
        rows = await connection.fetch(
            f"SELECT offender.*, count(*) OVER () AS violations FROM ({invariant.offenders}) AS offender LIMIT $1",  # noqa: S608
            SAMPLES,
        )
    violations: int = rows[0]["violations"] if rows else 0
    return violations, [{name: value for name, value in row.items() if name != "violations"} for row in rows]


async def _faulty_layouts(connection: Conn) -> Offenders:
    """Compares the layout files with the digests that were stored at their first use."""
    from seat_service.layouts.cabin_layouts import LayoutError, read_layouts
    from seat_service.layouts.layout_register import faults

    rows = await connection.fetch(
        """
        SELECT layout_id, digest
        FROM seat.layouts FULL JOIN (SELECT DISTINCT layout_id FROM seat.flights) AS used USING (layout_id)
        """
    )
    try:
        found = faults({row["layout_id"]: row["digest"] for row in rows}, read_layouts())
    except LayoutError as error:
        return 1, [{"fault": str(error)}]
    offenders: list[Offender] = [{"layout_id": layout_id, "fault": fault} for layout_id, fault in sorted(found.items())]
    return len(offenders), offenders[:SAMPLES]


async def _stale_maps(connection: Conn, redis: Redis | None) -> Offenders:
    """Compares every cached map with the database, and those that differ once more.

    The second comparison follows after CACHE_GRACE_SECONDS, because the cache may get a change that late.
    Raises OSError without `redis`.
    """
    from seat_service.maps.seat_map import CACHE_PREFIX
    from services.cache import prefix_in

    if redis is None:
        raise OSError("no cache was given")
    suspects: dict[bytes, Snapshot | None] = {}
    keys: list[bytes] = []
    # The pattern ends with the brace, because the keys of the generation counters continue after it. It has the current
    # epoch, because no service returns a map of an earlier one (docs/decisions/0029).
    prefix = prefix_in(CACHE_PREFIX, await connection.fetchval("SELECT epoch FROM seat.map_cache"))
    async for key in redis.scan_iter(match=f"{prefix}:{{*}}", count=KEYS_PER_SCAN):
        keys.append(key)
        if len(keys) == KEYS_PER_SCAN:
            suspects |= await _differing(connection, redis, keys)
            keys = []
    suspects |= await _differing(connection, redis, keys)
    if not suspects:
        return 0, []
    await asyncio.sleep(CACHE_GRACE_SECONDS)
    stale: list[Offender] = []
    suspected = sorted(suspects)
    for first in range(0, len(suspected), KEYS_PER_SCAN):
        cached, truth = await _maps(connection, redis, suspected[first : first + KEYS_PER_SCAN])
        stale += [
            {
                "key": key.decode(errors="replace"),
                "cached_version": _version(value),
                "true_version": now.version if now is not None else None,
            }
            for key, value, now in zip(suspected[first:], cached, truth, strict=False)
            if value is not None and value != _as_cached(now) and not _moved_on(value, since=suspects[key], until=now)
        ]
    return len(stale), stale[:SAMPLES]


async def _differing(connection: Conn, redis: Redis, keys: Sequence[bytes]) -> dict[bytes, Snapshot | None]:
    cached, truth = await _maps(connection, redis, keys)
    return {
        key: now
        for key, value, now in zip(keys, cached, truth, strict=True)
        if value is not None and value != _as_cached(now)
    }


async def _maps(
    connection: Conn, redis: Redis, keys: Sequence[bytes]
) -> tuple[list[bytes | None], list[Snapshot | None]]:
    """Reads the cached map of each key, then its map in the database."""
    from seat_service.maps.seat_map import load

    if not keys:
        return [], []
    cached = cast("list[bytes | None]", await redis.mget(list(keys)))
    flight_ids = [key.partition(b":{")[2][:-1].decode(errors="replace") for key in keys]
    async with connection.transaction(readonly=True):
        await connection.execute("SET LOCAL search_path = seat")
        truth = {snapshot.flight_id: snapshot for snapshot in await load(connection, flight_ids)}
    return cached, [truth.get(flight_id) for flight_id in flight_ids]


def _as_cached(truth: Snapshot | None) -> bytes | None:
    if truth is None:
        return None
    value = truth.compact()
    return b"%d %b" % (value.version, value.body)


def _version(value: bytes) -> int | None:
    text = value.partition(b" ")[0]
    return int(text) if text.isdigit() else None


def _moved_on(value: bytes, *, since: Snapshot | None, until: Snapshot | None) -> bool:
    """Returns True if the cached map was current at the first comparison.

    `since` is the map in the database then, and `until` is the map now, which must be newer than the cached one.
    """
    version = _version(value)
    return since is not None and until is not None and version is not None and since.version <= version < until.version


async def _verify(addresses: Mapping[str, str], *, brief: bool) -> int:
    """Checks once and prints the findings. Returns the exit code."""
    import asyncpg
    from redis.asyncio import Redis
    from rich.console import Console

    console = Console()
    if "SKYHIGH_DATABASE_URL" not in addresses:
        console.print("not checked: SKYHIGH_DATABASE_URL is not known", style="yellow")
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
        console.print(f"not checked, the database is away: {error or repr(error)}", style="yellow", markup=False)
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
            console.print(f"    {_offender(offender)}", markup=False, highlight=False, soft_wrap=True)
        if finding.violations > len(finding.samples):
            console.print(f"    … and {finding.violations - len(finding.samples)} more", highlight=False)
    for finding in not_checked:
        console.print(f"{finding.number} not checked: {finding.not_checked}", style="yellow", markup=False)
    if not violated and not not_checked:
        took = sum(finding.milliseconds for finding in findings)
        console.print(f"All {len(findings)} hold ({took:.0f} ms).", style="green", highlight=False)


def _print_table(console: Console, findings: Sequence[Finding], figures: Sequence[str]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("NO", "VIOLATIONS", "MS"):
        table.add_column(column, justify="right")
    table.add_column("WHAT ALWAYS HOLDS")
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
            f"holds expired: {late.expired}; after their end p50 {late.p50_seconds:.2f} s, "
            f"p99 {late.p99_seconds:.2f} s, p99.9 {late.p999_seconds:.2f} s; later than 5 s: {late.later_than_5_s:.2%}"
        )


def _verdict(finding: Finding) -> str:
    if finding.not_checked:
        return "[yellow]not checked[/]"
    return f"[red]{finding.violations}[/]" if finding.violations else "0"


def _offender(offender: Offender) -> str:
    return "  ".join(f"{name}={_value(value)}" for name, value in offender.items() if value is not None)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_value, value))
    return value.isoformat() if isinstance(value, datetime) else str(value)

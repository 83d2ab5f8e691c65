"""A whole stack for one run of the tester.

Every part is a process, and the connections between them are proxied. `running` starts it, from this checkout or from
that of an older commit, and ends all of it. `attached` finds a stack that `make up` started; it has no proxies, so the
faults that need one are not played on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import signal
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from deploy.local import environment, proc
from deploy.local.leftovers import end_leftovers
from deploy.local.mocks import MOCKS
from deploy.local.port_table import PORTS, free_port_base
from deploy.local.process import LOOPBACK
from deploy.local.report import Report
from deploy.local.secrets import Secrets, SigningKeys
from deploy.local.servers.private import ServerPorts, Servers
from deploy.local.services import SERVICES
from deploy.local.supervisor import Status
from tests.callers import AUDIENCE, ISSUER
from tests.system.faults.proxy import Proxy, listening

REPOSITORY: Final = Path(__file__).resolve().parents[3]
HOST: Final = Path(__file__).with_name("host.py")
# A busy machine needs ten times as long to start a stack.
START_SECONDS: Final = 600
STOP_SECONDS: Final = 120
MOST_WORKERS: Final = 20
# The name of clients outside the stack in the names of proxies.
CLIENTS: Final = "clients"
FOREIGN_SETTINGS: Final = ("SKYHIGH_", "PG")

# A minute of a run corresponds to hours in production. Deadlines stay longer than the longest fault that a caller must
# survive: a payment that fails because its provider was down for its whole deadline is not a defect.
SHORT_TTLS: Final[Mapping[str, str]] = {
    "SKYHIGH_CHECK_IN_HOLD_TTL_SECONDS": "8",
    "SKYHIGH_BOOKING_HOLD_TTL_SECONDS": "20",
    "SKYHIGH_OFFER_WINDOW_SECONDS": "2",
    "SKYHIGH_WAITLIST_OFFER_SECONDS": "5",
    "SKYHIGH_WAITLIST_SWEEP_INTERVAL_SECONDS": "1",
    "SKYHIGH_PAYMENT_DEADLINE_SECONDS": "20",
    "SKYHIGH_PAYMENT_ATTEMPT_SECONDS": "3",
    "SKYHIGH_PAYMENT_BACKOFF_SECONDS": "0.2",
    "SKYHIGH_PAYMENT_BACKOFF_LIMIT_SECONDS": "1",
    "SKYHIGH_PAYMENT_PATIENCE_SECONDS": "30",
    "SKYHIGH_RECONCILE_SECONDS": "2",
    "SKYHIGH_DRAIN_NOTICE_SECONDS": "1.2",
    # All principals of a run share one address.
    "SKYHIGH_RATE_LIMITS": "off",
    "SKYHIGH_SEAT_LAPSES_ALLOWED": "1000000",
    "SKYHIGH_SEAT_LAPSES_ALLOWED_PER_ADDRESS": "1000000",
    "SKYHIGH_SEAT_HELD_SEATS_LIMIT_PER_ADDRESS": "1000000",
    "SKYHIGH_CHECKIN_LOGIN_TRIES_PER_ADDRESS": "30000",
    "SKYHIGH_LOG_LEVEL": "warning",
    # tests/callers.py signs tokens with these claims.
    "SKYHIGH_TOKEN_ISSUER": ISSUER,
    "SKYHIGH_TOKEN_AUDIENCE": AUDIENCE,
}


class StackError(Exception):
    """The stack could not be started, or did not carry out an order."""


class Host:
    """The running host.py of a stack: takes orders until it is closed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Future[str]] = {}
        self._reading: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """The pid of the host."""
        return self._process.pid

    async def wires(self) -> dict[str, list[int]]:
        """Returns, before the first order, the ports to which each process of the stack connects."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise StackError("the host of the stack ended at once; see its host.log")
        self._reading = asyncio.create_task(self._read())
        wires: dict[str, list[int]] = json.loads(line)["wires"]
        return wires

    async def order(self, what: str, **content: Any) -> None:
        """Sends an order and waits until it is carried out.

        Raises StackError if it failed.
        """
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"number": number, "do": what, **content}).encode() + b"\n")
            await self._process.stdin.drain()
            error = await answer
        except ConnectionError as closed:
            raise StackError(f"{what}: the host of the stack has ended") from closed
        finally:
            del self._answers[number]
        if error:
            raise StackError(f"{what} {content.get('name', '')}: {error}")

    async def close(self) -> None:
        """Lets the host end all processes and itself; kills it if it does not."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        if self._reading is not None:
            await self._reading

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            answer = json.loads(line)
            waiting = self._answers.get(answer["number"])
            if waiting is not None and not waiting.done():
                waiting.set_result(answer["error"])
        for waiting in self._answers.values():
            if not waiting.done():
                waiting.set_result("the host of the stack has ended")


@dataclass(slots=True)
class RunningStack:
    """A running stack: the addresses of its parts, and their processes."""

    home: Path
    """Its SKYHIGH_HOME: data, keys and logs."""
    checkout: Path
    """The checkout whose code runs."""
    environment: Mapping[str, str]
    """What `skyhigh env` prints: the parts themselves, for checks and faults."""
    given: Mapping[str, str]
    """Its settings."""
    addresses: Mapping[str, str]
    """The same as `environment`, with the clients' proxies in front of the gateway and the services."""
    host: Host | None = None
    """None for a stack that was attached."""
    proxies: dict[str, Proxy] = field(default_factory=dict)
    """By client and server, such as `booking>postgres`, `checkin>seat.1` and `clients>gateway`."""

    @property
    def keys(self) -> SigningKeys:
        """The keys that sign tokens for the stack."""
        return SigningKeys(self.home / "keys")

    def token(self, role: str, subject: str, **claims: Any) -> str:
        """Returns a token that the stack accepts for an hour."""
        from deploy.local.stack import AUDIENCE as DEFAULT_AUDIENCE
        from deploy.local.stack import ISSUER as DEFAULT_ISSUER

        now = int(time.time())
        own = {
            "iss": self.given.get("SKYHIGH_TOKEN_ISSUER", DEFAULT_ISSUER),
            "aud": self.given.get("SKYHIGH_TOKEN_AUDIENCE", DEFAULT_AUDIENCE),
        }
        return self.keys.sign({**own, "sub": subject, "role": role, "iat": now, "exp": now + 3600, **claims})

    @property
    def database_url(self) -> str:
        """The database URL of the owner of all schemas, without a proxy."""
        return self.environment["SKYHIGH_DATABASE_URL"]

    @property
    def superuser_database_url(self) -> str:
        """The database URL of Postgres' superuser."""
        parts = urlsplit(self.database_url)
        password = Secrets(self.home / "secrets.json")["postgres/postgres"]
        return urlunsplit(parts._replace(netloc=f"postgres:{password}@{parts.hostname}:{parts.port}"))

    def processes(self) -> dict[str, Status]:
        """Returns the supervisor's status of each process."""
        report = Report.read(self.home)
        if report is None:
            raise StackError(f"no stack was started in {self.home}")
        return {status.name: status for status in report.processes}

    def has(self, process: str) -> bool:
        """Returns whether the stack has a process with this name."""
        return process in self.processes()

    def unready(self) -> list[str]:
        """Returns the processes that are not ready now."""
        return [name for name, status in self.processes().items() if status.state != "ready"]

    def leader(self, process: str) -> int:
        """Returns the pid of a process. Raises StackError if it does not run."""
        pid = self.processes()[process].pid
        if pid is None or proc.find(pid) is None:
            raise StackError(f"{process} does not run")
        return pid

    def members(self, process: str) -> list[int]:
        """Returns the pids of a process and its descendants, such as workers and database backends."""
        return [member.pid for member in proc.members(self.leader(process))]

    def workers(self, service: str) -> list[int]:
        """Returns the pids of a service's workers that are alive now."""
        leader = self.leader(service)
        children = Path(f"/proc/{leader}/task/{leader}/children").read_text()
        return [int(pid) for pid in children.split()]

    def send(self, pids: Iterable[int], number: signal.Signals) -> None:
        """Sends a signal to processes that may have ended."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def wires(self, pattern: str) -> list[Proxy]:
        """Returns the proxies whose whole name matches a regular expression, in the order of their names."""
        return [self.proxies[name] for name in sorted(self.proxies) if re.fullmatch(pattern, name)]

    async def order(self, what: str, **content: Any) -> None:
        """Orders the host to stop, start or configure a process."""
        if self.host is None:
            raise StackError(f"{what}: a stack that was attached takes no orders")
        await self.host.order(what, **content)

    async def restart(self, process: str) -> None:
        """Ends a process gracefully and starts it again; returns when it is ready."""
        await self.order("stop", name=process)
        await self.order("start", name=process)

    async def skyhigh(self, *arguments: str) -> tuple[int, str]:
        """Runs the `skyhigh` command of its checkout.

        Returns its exit code and its output.
        """
        process = await asyncio.create_subprocess_exec(
            str(self.checkout / ".venv" / "bin" / "skyhigh"),
            *arguments,
            env=_environment(self.given),
            cwd=self.checkout,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode(errors="replace")


@asynccontextmanager
async def running(
    folder: Path,
    seed: int,
    *,
    settings: Mapping[str, str] = SHORT_TTLS,
    checkout: Path = REPOSITORY,
    wired: bool = True,
    keep_data: bool = False,
) -> AsyncIterator[RunningStack]:
    """Starts a stack in a folder within the block, and ends it, however the block ends.

    The port base is SKYHIGH_PORT_BASE or a free one. The seed decides the random numbers of the proxies and of the
    payment provider. `checkout` needs a `.venv` that `make setup` made. Logs stay in the folder; data stay if
    `keep_data`.
    """
    home = _made(folder)
    base = int(os.environ.get("SKYHIGH_PORT_BASE") or free_port_base())
    given = {
        "SKYHIGH_MOCK_PROVIDER_SEED": str(seed),
        **settings,
        "SKYHIGH_HOME": str(home),
        "SKYHIGH_PORT_BASE": str(base),
    }
    async with AsyncExitStack() as ending:
        host = await _start_host(home, checkout, given)
        ending.push_async_callback(_stop, host, home, base, keep_data)
        wires = await host.wires()
        proxies = {}
        if wired:
            for name, ports in _through(wires, base).items():
                generator = random.Random(f"{seed} {name}")
                proxies[name] = await ending.enter_async_context(listening(Proxy(name, ports, generator)))
            replaced = {
                client: {str(port): proxies[f"{client}>{server_name(port, base)}"].port for port in ports}
                for client, ports in wires.items()
            }
            await host.order("wire", ports=replaced)
        try:
            async with asyncio.timeout(START_SECONDS):
                await host.order("start all")
        except TimeoutError as error:
            raise StackError(f"the stack did not start within {START_SECONDS} s; see {home / 'logs'}") from error
        report = Report.read(home)
        assert report is not None
        yield RunningStack(
            home=home,
            checkout=checkout,
            environment=report.addresses,
            given=given,
            addresses=_clients_view(report.addresses, proxies),
            host=host,
            proxies=proxies,
        )


def attached(home: Path, *, checkout: Path = REPOSITORY) -> RunningStack:
    """Returns the stack that `make up` started in a folder."""
    report = Report.read(home.absolute())
    if report is None or not report.is_alive:
        raise StackError(f"no stack runs in {home}")
    given = {**report.given, "SKYHIGH_HOME": str(home.absolute())}
    return RunningStack(home.absolute(), checkout, report.addresses, given, report.addresses)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder.absolute()


async def _start_host(home: Path, checkout: Path, given: Mapping[str, str]) -> Host:
    with (home / "host.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            str(checkout / ".venv" / "bin" / "python"),
            "-P",
            str(HOST),
            env=_environment(given),
            cwd=checkout,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            # Ctrl-C reaches only the tester, which then ends the stack properly.
            start_new_session=True,
        )
    return Host(process)


async def _stop(host: Host, home: Path, base: int, keep_data: bool) -> None:
    await host.close()
    report = Report.read(home)
    # Processes are left only if the host was killed.
    if report is not None and report.is_of_this_boot:
        end_leftovers(report.processes)
    if not keep_data:
        _servers(home, base).remove()


def _servers(home: Path, base: int) -> Servers:
    ports = {name: base + offset for name, (_, offset) in PORTS.items()}
    return Servers(
        home,
        ServerPorts(
            postgres=ports["postgres"],
            redis=ports["redis"],
            amqp=ports["amqp"],
            amqp_distribution=ports["amqp_distribution"],
            epmd=ports["epmd"],
        ),
        Secrets(home / "secrets.json"),
        services=[service.name for service in SERVICES],
    )


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    """Returns this process's environment with the settings of the stack instead of its own."""
    own = {name: value for name, value in environment.inherited().items() if not name.startswith(FOREIGN_SETTINGS)}
    return own | dict(given)


def _through(wires: Mapping[str, Iterable[int]], base: int) -> dict[str, int]:
    """Returns the server's port of each proxy, by the proxy's name."""
    between = {f"{client}>{server_name(port, base)}": port for client, ports in wires.items() for port in ports}
    servers = {"gateway": "gateway"} | {service.label: service.label for service in SERVICES}
    return between | {f"{CLIENTS}>{name}": base + PORTS[port_name][1] for name, port_name in servers.items()}


def server_name(port: int, base: int) -> str:
    """Returns what listens on a port: a process, or a worker such as `seat.0`."""
    offset = port - base
    for service in SERVICES:
        worker = offset - PORTS[f"{service.label}_worker"][1]
        if 0 <= worker < MOST_WORKERS:
            return f"{service.label}.{worker}"
    mocks = {f"mock_{mock.name}": f"mock-{mock.name}" for mock in MOCKS}
    processes = {"amqp": "rabbitmq"} | mocks
    for name, (_, each) in PORTS.items():
        if each == offset:
            return processes.get(name, name)
    raise StackError(f"port {port} is of no part of a stack with port base {base}")


def _clients_view(addresses: Mapping[str, str], proxies: Mapping[str, Proxy]) -> dict[str, str]:
    """Returns addresses in which clients reach the gateway and the services through their proxies."""
    through = {
        f"{LOOPBACK}:{proxy.server_port}": f"{LOOPBACK}:{proxy.port}"
        for name, proxy in proxies.items()
        if name.startswith(f"{CLIENTS}>")
    }
    seen = dict(addresses)
    for name, value in addresses.items():
        location = urlsplit(value).netloc if "//" in value else value
        if location in through:
            seen[name] = value.replace(location, through[location])
    return seen

"""The local stack: its processes, their ports and their settings."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import os
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from deploy.local import environment, ports
from deploy.local.certificates import Authority
from deploy.local.process import LOOPBACK, Process, answers_http, port_is_free, serves_grpc
from deploy.local.secrets import Secrets, SigningKeys
from deploy.local.servers.envoy import envoy
from deploy.local.servers.postgres import provision_schemas
from deploy.local.servers.private import ServerPorts, Servers
from deploy.local.servers.rabbitmq import EXCHANGES
from services.identity import VARIABLES, Identity

ISSUER: Final = "https://skyhigh.example/demo"
AUDIENCE: Final = "skyhigh"
# These URLs give access to every schema and every queue, so no service may inherit them.
OWNERS_VARIABLES: Final = frozenset({"SKYHIGH_DATABASE_URL", "SKYHIGH_AMQP_URL"})
# With TLS each service has a certificate of its name. These two are for Envoy and for the `skyhigh` command.
EDGE: Final = "edge"
OPERATIONS: Final = "operations"
# The source of each Python process of ours, besides its own package.
SHARED_SOURCES: Final = ("services", "gen")
MOST_PROCESSES: Final = 64
EDGE_TLS_VARIABLES: Final = ("SKYHIGH_GATEWAY_TLS_CERTIFICATE", "SKYHIGH_GATEWAY_TLS_KEY")


class GivenServerError(Exception):
    """A server that was given by URL cannot be used as it is."""


@dataclass(frozen=True, slots=True)
class Service:
    """A service of ours. Its row gives it a role, schema, broker user, ports, process and address."""

    name: str
    """Also the name of its role, schema and broker user; in capitals, part of the names of its variables."""
    number: int
    """Its number among the services; its ports are computed from it."""
    module: str
    health: str
    """The name for which grpc.health.v1 must report SERVING before the gateway starts."""
    processes: int = 1
    """How many processes it has if SKYHIGH_<NAME>_PROCESSES is not set."""
    calls: tuple[str, ...] = ()
    """Services that it calls. It gets their addresses, and a token for its calls."""
    reads: tuple[str, ...] = ()
    """Services of which it calls only RPCs that need no token. It gets their addresses."""
    settings: tuple[str, ...] = ()
    """The names of the settings that it gets from `Stack.values`."""
    alias: str = ""
    """The name of its process and ports, if another part has its own name."""

    @property
    def label(self) -> str:
        """The name of its process and ports."""
        return self.alias or self.name


SERVICES: Final = (
    # A rush reaches the seat service, so it has a process for each of two cores. One process is enough for each other
    # service, and starts sooner.
    Service(
        "seat",
        number=1,
        module="seat_service",
        health="skyhigh.seat.v1.SeatService",
        processes=2,
        reads=("flight",),
    ),
    Service(
        "checkin",
        number=2,
        module="checkin_service",
        health="skyhigh.checkin.v1.CheckInService",
        calls=("seat", "payment"),
        reads=("flight",),
        settings=("SKYHIGH_SESSION_KEY", "SKYHIGH_WEIGHT_ADDRESS", "SKYHIGH_SMTP_ADDRESS"),
    ),
    Service(
        "waitlist",
        number=3,
        module="waitlist_service",
        health="skyhigh.waitlist.v1.WaitlistService",
        calls=("seat", "checkin"),
        reads=("flight",),
        settings=("SKYHIGH_SMTP_ADDRESS",),
    ),
    Service(
        "payment",
        number=4,
        module="payment_service",
        health="skyhigh.payment.v1.PaymentService",
        settings=("SKYHIGH_PAYMENT_PROVIDER_URL", "SKYHIGH_PAYMENT_WEBHOOK_SECRETS"),
    ),
    Service("flight", number=5, module="flight_service", health="skyhigh.flight.v1.FlightService", calls=("seat",)),
    Service(
        "booking",
        number=6,
        module="booking_service",
        health="skyhigh.booking.v1.BookingService",
        calls=("seat", "flight", "payment", "checkin"),
        settings=("SKYHIGH_SESSION_KEY", "SKYHIGH_SMTP_ADDRESS"),
    ),
    # Envoy is the gateway. It calls this service for rate limits and blocks.
    Service(
        "gateway",
        number=7,
        module="gateway.guard",
        health="skyhigh.gateway.v1.GatewayAdmin",
        settings=("SKYHIGH_RATE_LIMITS",),
        alias="limits",
    ),
)


@dataclass(frozen=True, slots=True)
class Mock:
    """A mock of an external system. It is left out if the real system is given."""

    name: str
    number: int
    """Its number among the mocks; its port is computed from it."""
    module: str
    real: str
    """The setting with the address of the real system."""
    control_number: int
    """The number of its control port, where HTTP calls read and change its behaviour."""
    control_url: str
    """The variable in which `skyhigh env` prints the URL of that port."""
    settings: tuple[str, ...] = ()
    """The names of the settings that it gets from `Stack.values`."""


MOCKS: Final = (
    Mock(
        "weight",
        number=1,
        module="deploy.mocks.weight",
        real="SKYHIGH_WEIGHT_ADDRESS",
        control_number=5,
        control_url="SKYHIGH_MOCK_WEIGHT_CONTROL_URL",
    ),
    Mock(
        "provider",
        number=2,
        module="deploy.mocks.payment_provider",
        real="SKYHIGH_PAYMENT_PROVIDER_URL",
        control_number=2,
        control_url="SKYHIGH_MOCK_PROVIDER_URL",
        settings=(
            "SKYHIGH_MOCK_PROVIDER_WEBHOOK_URL",
            "SKYHIGH_MOCK_PROVIDER_WEBHOOK_SECRET",
            "SKYHIGH_MOCK_PROVIDER_WEBHOOK_AUTHORITY",
        ),
    ),
    Mock(
        "mail",
        number=3,
        module="deploy.mocks.mail",
        real="SKYHIGH_SMTP_ADDRESS",
        control_number=4,
        control_url="SKYHIGH_MOCK_MAIL_URL",
    ),
)

# Name: (default, offset from SKYHIGH_PORT_BASE). SKYHIGH_<NAME>_PORT sets one port alone. The private servers do not
# use the standard ports, because servers of the machine may have them, nor the range of outgoing connections.
PORTS: Final[Mapping[str, tuple[int, int]]] = (
    {
        "gateway": (8080, 0),
        "gateway_admin": (9901, 1),
        "postgres": (17432, 10),
        "redis": (17379, 11),
        "amqp": (17672, 12),
        "amqp_distribution": (17673, 13),
        "epmd": (17369, 14),
    }
    | {
        name: port
        for service in SERVICES
        for name, port in {
            service.label: (50050 + service.number, 50 + service.number),
            # Each further process of a service takes the next port: there is room for twenty.
            f"{service.label}_worker": (18000 + 20 * service.number, 100 + 20 * service.number),
            f"{service.label}_metrics": (18400 + 20 * service.number, 300 + 20 * service.number),
        }.items()
    }
    | {
        name: (50060 + number, 60 + number)
        for mock in MOCKS
        # If both numbers are equal, the mock's own name replaces the name of the control port.
        for number, name in {mock.control_number: f"mock_{mock.name}_control", mock.number: f"mock_{mock.name}"}.items()
    }
)
# All ports of a stack are less than this above its base.
PORT_SPAN: Final = 500
# Bases for which all ports are below the range that the kernel gives to outgoing connections.
FREE_BASES: Final = (20_000, 32_000 - PORT_SPAN)


@dataclass(frozen=True)
class Stack:
    """One local stack, as the environment describes it."""

    home: Path
    """Data, keys and logs."""
    ports: Mapping[str, int]
    given: Mapping[str, str]
    """The `SKYHIGH_…` variables of the caller. They take precedence over all values below."""
    tls: bool = False
    """True if the gateway serves TLS and the services mutual TLS, with certificates of `authority`."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Stack:
        """Reads the `SKYHIGH_…` variables. Raises ValueError with the name of a wrong one."""
        given = {name: value for name, value in environment.items() if name.startswith("SKYHIGH_") and value}
        base = _port_of(given, "SKYHIGH_PORT_BASE", highest=65535 - PORT_SPAN)
        ports = {
            name: _port_of(given, _port_variable(name)) or (base + offset if base else default)
            for name, (default, offset) in PORTS.items()
        }
        for service in SERVICES:
            _processes_of(service, given)
        speaks_tls = given.get("SKYHIGH_TLS", "0")
        if speaks_tls not in ("0", "1"):
            raise ValueError(f"SKYHIGH_TLS: {speaks_tls!r} is neither 1 nor 0")
        if foreign := [name for name in (*VARIABLES, *EDGE_TLS_VARIABLES) if name in given]:
            raise ValueError(f"{foreign[0]}: a local stack makes its own certificates, with SKYHIGH_TLS=1")
        return cls(home=home_of(environment), ports=ports, given=given, tls=speaks_tls == "1")

    @cached_property
    def secrets(self) -> Secrets:
        """The passwords of the stack."""
        return Secrets(self.home / "secrets.json")

    @cached_property
    def servers(self) -> Servers:
        """The private servers of the stack, including those that it does not use."""
        return Servers(
            folder=self.home,
            ports=ServerPorts(
                postgres=self.ports["postgres"],
                redis=self.ports["redis"],
                amqp=self.ports["amqp"],
                amqp_distribution=self.ports["amqp_distribution"],
                epmd=self.ports["epmd"],
            ),
            secrets=self.secrets,
            services=[service.name for service in SERVICES],
        )

    @property
    def signing_keys(self) -> SigningKeys:
        """The keys that sign the demo tokens."""
        return SigningKeys(self.home / "keys")

    @property
    def authority(self) -> Authority:
        """The authority that signs the certificates, if the stack uses TLS."""
        return Authority(self.home / "keys" / "tls")

    def identity_of(self, name: str) -> Identity | None:
        """Returns the certificate of a service, of EDGE or of OPERATIONS; None without TLS."""
        return self.authority.identity(name) if self.tls else None

    def ensure_certificates(self) -> None:
        """Issues the certificates that are missing or expire soon; does nothing without TLS."""
        if self.tls:
            self.authority.ensure([*(service.name for service in SERVICES), EDGE, OPERATIONS])

    @property
    def addresses(self) -> dict[str, str]:
        """The variables that `skyhigh env` prints."""
        shown = self.identity_of(OPERATIONS)
        known = {
            "SKYHIGH_GATEWAY_URL": f"{'https' if self.tls else 'http'}://{LOOPBACK}:{self.ports['gateway']}",
            "SKYHIGH_DATABASE_URL": self.given.get("SKYHIGH_DATABASE_URL") or self.servers.database_url(),
            "SKYHIGH_AMQP_URL": self.given.get("SKYHIGH_AMQP_URL") or self.servers.amqp_url(),
            "SKYHIGH_REDIS_URL": self.given.get("SKYHIGH_REDIS_URL") or self.servers.redis_url,
            **{_address(service.name): f"{LOOPBACK}:{self.ports[service.label]}" for service in SERVICES},
            **{mock.control_url: f"http://{LOOPBACK}:{self._control_port(mock)}" for mock in self._mocks},
            **({} if shown is None else dict(zip(CERTIFICATE_NAMES, _paths(shown), strict=True))),
        }
        return {name: known[name] for name in address_names() if name in known}

    @property
    def tokens(self) -> dict[str, str]:
        """The settings for the tokens that the stack trusts: keys, issuer and audience."""
        return {
            "SKYHIGH_JWKS": self.given.get("SKYHIGH_JWKS") or str(self.signing_keys.jwks),
            "SKYHIGH_TOKEN_ISSUER": self.given.get("SKYHIGH_TOKEN_ISSUER") or ISSUER,
            "SKYHIGH_TOKEN_AUDIENCE": self.given.get("SKYHIGH_TOKEN_AUDIENCE") or AUDIENCE,
        }

    @property
    def values(self) -> dict[str, str]:
        """The settings that only some services and mocks get."""
        webhook_key = base64.b64encode(bytes.fromhex(self.secrets["webhooks"])).decode()
        webhook_secrets = self.given.get("SKYHIGH_PAYMENT_WEBHOOK_SECRETS") or f"whsec_{webhook_key}"
        return {
            "SKYHIGH_SESSION_KEY": str(self.signing_keys.session_key),
            "SKYHIGH_RATE_LIMITS": self.given.get("SKYHIGH_RATE_LIMITS", "on"),
            "SKYHIGH_WEIGHT_ADDRESS": f"{LOOPBACK}:{self.ports['mock_weight']}",
            "SKYHIGH_SMTP_ADDRESS": f"{LOOPBACK}:{self.ports['mock_mail']}",
            "SKYHIGH_PAYMENT_PROVIDER_URL": f"http://{LOOPBACK}:{self.ports['mock_provider']}",
            "SKYHIGH_PAYMENT_WEBHOOK_SECRETS": webhook_secrets,
            "SKYHIGH_MOCK_PROVIDER_WEBHOOK_URL": f"{self.addresses['SKYHIGH_GATEWAY_URL']}/v1/payments/webhook",
            "SKYHIGH_MOCK_PROVIDER_WEBHOOK_SECRET": webhook_secrets.split(",")[0].strip(),
            **({"SKYHIGH_MOCK_PROVIDER_WEBHOOK_AUTHORITY": str(self.authority.certificate)} if self.tls else {}),
        }

    def processes(self) -> list[Process]:
        """Returns the table of processes. Raises MissingServerError if a server is not installed."""
        own: list[Process] = []
        if "SKYHIGH_DATABASE_URL" not in self.given:
            own.append(self.servers.postgres.process())
        if "SKYHIGH_REDIS_URL" not in self.given:
            own.append(self.servers.redis.process())
        if "SKYHIGH_AMQP_URL" not in self.given:
            own += [self.servers.rabbitmq.epmd(), self.servers.rabbitmq.process()]
        # Services do not wait for the broker, which starts slowly: they connect later, as after a lost connection.
        truth = tuple(process.name for process in own if process.name == "postgres")
        services = [self._service(service, after=truth) for service in SERVICES]
        mocks = [self._mock(mock) for mock in self._mocks]
        table = [*own, *mocks, *services, self._gateway(after=tuple(process.name for process in services))]
        return [dataclasses.replace(process, ports=self._ports_of(process.name)) for process in table]

    def _ports_of(self, process: str) -> dict[str, int]:
        """Returns all ports on which a process listens, by the variables that set them.

        The port of a second worker has `+ 1` behind the variable.
        """
        servers = {"rabbitmq": ("amqp", "amqp_distribution"), "gateway": ("gateway", "gateway_admin")}
        mocks = {f"mock-{mock.name}": (f"mock_{mock.name}", f"mock_{mock.name}_control") for mock in MOCKS}
        names = {**servers, **mocks}.get(process, (process,))
        known = {_port_variable(name): self.ports[name] for name in names if name in self.ports}
        for service in SERVICES:
            if service.label == process:
                for index in range(_processes_of(service, self.given)):
                    for kind in ("worker", "metrics"):
                        name = f"{service.label}_{kind}"
                        known[_port_variable(name) + (f" + {index}" if index else "")] = self.ports[name] + index
        return known

    @staticmethod
    def port_conflicts(processes: Sequence[Process]) -> list[str]:
        """Returns the ports on which these processes cannot listen, each with the cause."""
        wanted = {name: port for process in processes for name, port in process.ports.items()}
        conflicts = [f"{' and '.join(names)} are both {wanted[names[0]]}" for names in ports.shared(wanted)]
        taken = ports.listened_on(set(wanted.values()))
        for name, port in wanted.items():
            if port in taken:
                program = taken[port].program or "a program of another user or container"
                conflicts.append(f"{name}={port} ({program} listens there)")
        return conflicts

    async def provision_given_servers(self) -> None:
        """Prepares servers that were given by URL like the private ones.

        Leaves out a service whose own database URL is given. Raises GivenServerError if a server cannot be prepared.
        """
        for variable, provision in (
            ("SKYHIGH_DATABASE_URL", self._provision_database),
            ("SKYHIGH_AMQP_URL", self._provision_broker),
        ):
            if variable not in self.given:
                continue
            try:
                await provision(self.given[variable])
            # Drivers raise many errors for servers that are down or refuse a call. Each of them ends this start.
            except Exception as error:
                raise GivenServerError(f"the server of {variable} could not be prepared: {error}") from error

    async def _provision_database(self, url: str) -> None:
        import asyncpg

        own_urls = {service.name: f"SKYHIGH_{service.name.upper()}_DATABASE_URL" for service in SERVICES}
        passwords = {
            name: self.secrets[f"postgres/{name}"] for name, variable in own_urls.items() if variable not in self.given
        }
        if not passwords:
            return
        connection = await asyncpg.connect(url, timeout=10)
        try:
            await provision_schemas(connection, passwords)
        except asyncpg.InsufficientPrivilegeError as error:
            raise GivenServerError(
                f"{error}. Its user must own the database and may create roles, or each service needs a URL "
                f"of its own: {', '.join(own_urls.values())}"
            ) from error
        finally:
            await connection.close()

    async def _provision_broker(self, url: str) -> None:
        import aio_pika

        async with await aio_pika.connect(url, timeout=10) as broker:
            channel = await broker.channel()
            for exchange in EXCHANGES:
                await channel.declare_exchange(exchange, aio_pika.ExchangeType.TOPIC, durable=True)

    def _service(self, service: Service, *, after: tuple[str, ...]) -> Process:
        prefix = f"SKYHIGH_{service.name.upper()}_"
        port = self.ports[service.label]
        keys = self.signing_keys
        settings = {
            f"{prefix}DATABASE_URL": self._database_url_of(service),
            # With a given URL all services use its user: only RabbitMQ's management port could create a user for each,
            # and the URL does not name that port.
            f"{prefix}AMQP_URL": self.given.get("SKYHIGH_AMQP_URL") or self.servers.amqp_url(service.name),
            "SKYHIGH_REDIS_URL": self.addresses["SKYHIGH_REDIS_URL"],
            f"{prefix}LISTEN": f"{LOOPBACK}:{port}",
            f"{prefix}WORKER_PORT": str(self.ports[f"{service.label}_worker"]),
            f"{prefix}METRICS_PORT": str(self.ports[f"{service.label}_metrics"]),
            f"{prefix}PROCESSES": str(service.processes),
            "SKYHIGH_PAGE_TOKEN_KEY": self.secrets["page tokens"],
            **self.tokens,
            **({f"{prefix}TOKEN_FILE": str(keys.token_file(service.name))} if service.calls else {}),
            **{name: self.values[name] for name in service.settings},
            **self._shown(service.name),
        }

        async def prepare() -> None:
            keys.ensure()
            self.ensure_certificates()
            if service.calls:
                trusted = self.tokens
                keys.write_service_token(
                    service.name,
                    issuer=trusted["SKYHIGH_TOKEN_ISSUER"],
                    audience=trusted["SKYHIGH_TOKEN_AUDIENCE"],
                )

        return Process(
            name=service.label,
            command=[sys.executable, "-m", service.module],
            ready=serves_grpc(
                port,
                service.health,
                *(self.ports[f"{service.label}_worker"] + index for index in range(self._processes(service))),
                identity=self.identity_of(OPERATIONS),
            ),
            port=port,
            # These replace the given addresses of services, which may be those of another stack (`skyhigh env`).
            environment=self._given_or(settings) | self._addresses_of(*service.calls, *service.reads),
            hidden=OWNERS_VARIABLES,
            sources=(service.module.partition(".")[0], *SHARED_SOURCES),
            after=after,
            stop_seconds=30,
            prepare=prepare,
        )

    def _shown(self, name: str) -> dict[str, str]:
        """Returns the settings for mutual TLS with the certificate of this name."""
        identity = self.identity_of(name)
        return {} if identity is None else dict(zip(VARIABLES, _paths(identity), strict=True))

    def _given_or(self, settings: Mapping[str, str]) -> dict[str, str]:
        return {name: self.given.get(name, value) for name, value in settings.items()}

    @property
    def _mocks(self) -> list[Mock]:
        return [mock for mock in MOCKS if mock.real not in self.given]

    def _mock(self, mock: Mock) -> Process:
        """Returns the process of a mock.

        It waits for no process, and no process waits for it: a service must work while the mock is down.
        """
        prefix = f"SKYHIGH_MOCK_{mock.name.upper()}_"
        port, control_port = self.ports[f"mock_{mock.name}"], self._control_port(mock)
        settings = {
            f"{prefix}LISTEN": f"{LOOPBACK}:{port}",
            **({f"{prefix}CONTROL": f"{LOOPBACK}:{control_port}"} if control_port != port else {}),
            **{name: self.values[name] for name in mock.settings if name in self.values},
        }
        return Process(
            name=f"mock-{mock.name}",
            command=[sys.executable, "-m", mock.module],
            ready=answers_http(control_port, "/behaviour"),
            port=port,
            environment=self._given_or(settings),
            hidden=OWNERS_VARIABLES,
            sources=("deploy/mocks", *SHARED_SOURCES),
        )

    def _control_port(self, mock: Mock) -> int:
        return self.ports.get(f"mock_{mock.name}_control", self.ports[f"mock_{mock.name}"])

    def _database_url_of(self, service: Service) -> str:
        url = self.given.get("SKYHIGH_DATABASE_URL")
        if url is None:
            return self.servers.database_url(service.name)
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        password = self.secrets[f"postgres/{service.name}"]
        return parts._replace(netloc=f"{service.name}:{password}@{host}").geturl()

    def _addresses_of(self, *services: str) -> dict[str, str]:
        """Returns the addresses of each process of these services, by variable.

        If all processes had one address, a caller would keep its connection to one of them and never use the others.
        """
        return {
            _address(service.name): ",".join(
                f"{LOOPBACK}:{self.ports[f'{service.label}_worker'] + index}"
                for index in range(self._processes(service))
            )
            for service in SERVICES
            if service.name in services
        }

    def _processes(self, service: Service) -> int:
        return _processes_of(service, self.given)

    def _gateway(self, *, after: tuple[str, ...]) -> Process:
        folder = self.home / "gateway"
        keys = self.signing_keys
        variables = self.tokens | {
            "SKYHIGH_RATE_LIMITS": self.values["SKYHIGH_RATE_LIMITS"],
            **self._given_or({"SKYHIGH_GATEWAY_TOKEN_FILE": str(keys.token_file("gateway"))}),
            "SKYHIGH_GATEWAY_PORT": str(self.ports["gateway"]),
            "SKYHIGH_GATEWAY_ADMIN_PORT": str(self.ports["gateway_admin"]),
            **self._addresses_of(*(service.name for service in SERVICES)),
            **self._shown(EDGE),
            # One certificate for clients and services is enough here. In production a public authority signs the one
            # that clients see.
            **dict(zip(EDGE_TLS_VARIABLES, self._shown(EDGE).values(), strict=False)),
        }

        async def prepare() -> None:
            keys.ensure()
            self.ensure_certificates()
            trusted = self.tokens
            keys.write_service_token(
                "gateway", issuer=trusted["SKYHIGH_TOKEN_ISSUER"], audience=trusted["SKYHIGH_TOKEN_AUDIENCE"]
            )
            await _run(sys.executable, "-m", "gateway.render", "--output", str(folder), variables=variables)

        gateway = envoy(folder / "envoy.yaml", port=self.ports["gateway"], identity=self.identity_of(OPERATIONS))
        return dataclasses.replace(
            gateway, after=after, hidden=OWNERS_VARIABLES, sources=("gateway", "gen"), prepare=prepare
        )


async def _run(*command: str, variables: Mapping[str, str]) -> None:
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**environment.inherited(), **variables},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(output.decode(errors="replace").strip())


# Only with TLS: the certificate and key of a caller from outside the stack, and the authority that it trusts.
CERTIFICATE_NAMES: Final = ("SKYHIGH_CLIENT_CERTIFICATE", "SKYHIGH_CLIENT_KEY", "SKYHIGH_CA")


def _paths(identity: Identity) -> tuple[str, ...]:
    return tuple(map(str, (identity.certificate, identity.key, identity.authority)))


def free_port_base() -> int:
    """Returns a SKYHIGH_PORT_BASE at which all ports of a stack are free now. Raises RuntimeError if it finds none."""
    for _ in range(50):
        base = random.SystemRandom().randrange(*FREE_BASES)
        if all(port_is_free(base + offset) for _, offset in PORTS.values()):
            return base
    raise RuntimeError(f"no free ports between {FREE_BASES[0]} and {FREE_BASES[1] + PORT_SPAN}")


def address_names() -> list[str]:
    """Returns the variables with the addresses and certificates of a stack."""
    return [
        "SKYHIGH_GATEWAY_URL",
        "SKYHIGH_DATABASE_URL",
        "SKYHIGH_AMQP_URL",
        "SKYHIGH_REDIS_URL",
        *(_address(service.name) for service in SERVICES),
        *(mock.control_url for mock in MOCKS),
        *CERTIFICATE_NAMES,
    ]


def _address(service: str) -> str:
    return f"SKYHIGH_{service.upper()}_ADDRESS"


def home_of(environment: Mapping[str, str] = os.environ) -> Path:
    """Returns the folder of the stack: SKYHIGH_HOME, or `.skyhigh` in the repository."""
    given = environment.get("SKYHIGH_HOME")
    return Path(given).absolute() if given else Path(__file__).resolve().parents[2] / ".skyhigh"


def _port_variable(name: str) -> str:
    return f"SKYHIGH_{name.upper()}_PORT"


def _processes_of(service: Service, given: Mapping[str, str]) -> int:
    name = f"SKYHIGH_{service.name.upper()}_PROCESSES"
    value = given.get(name, str(service.processes))
    if not value.isdecimal() or not 1 <= int(value) <= MOST_PROCESSES:
        raise ValueError(f"{name}: {value!r} is no number between 1 and {MOST_PROCESSES}")
    return int(value)


def _port_of(given: Mapping[str, str], name: str, *, highest: int = 65535) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if not value.isdecimal() or not 1024 <= int(value) <= highest:
        raise ValueError(f"{name}: {value!r} is no port between 1024 and {highest}")
    return int(value)

"""The local stack: which processes it has, on which ports, with which settings."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from deploy.local.process import LOOPBACK, Probe, Process, answers_http, serves_grpc
from deploy.local.secrets import Secrets, SigningKeys
from deploy.local.servers import EXCHANGES, ServerPorts, Servers, envoy, provision_schemas

ISSUER: Final = "https://skyhigh.example/demo"
AUDIENCE: Final = "skyhigh"
# They open every schema and every queue: no business of a service.
OWNERS_VARIABLES: Final = frozenset({"SKYHIGH_DATABASE_URL", "SKYHIGH_AMQP_URL"})


class GivenServerError(Exception):
    """A server that was given by URL cannot be used as it is."""


@dataclass(frozen=True, slots=True)
class Service:
    """A service of ours. One row here and it is in the stack: role, schema, broker user, ports, process, address."""

    name: str
    """Its role, schema and broker user; in capitals, its variables' prefix."""
    number: int
    """Its place among the services, which its ports follow from."""
    module: str
    health: str
    """What grpc.health.v1 is asked about before the gateway starts."""
    calls: tuple[str, ...] = ()
    """The services that it calls, with a token of its own."""
    processes: int = 1
    """Workers; SKYHIGH_<NAME>_PROCESSES sets another number."""


SERVICES: Final = (
    # Nine of ten calls are for seats; one worker for each of two cores.
    Service("seat", number=1, module="seat_service", health="skyhigh.seat.v1.SeatService", processes=2),
    Service(
        "checkin",
        number=2,
        module="checkin_service",
        health="skyhigh.checkin.v1.CheckInService",
        calls=("seat", "payment"),
    ),
    Service(
        "waitlist",
        number=3,
        module="waitlist_service",
        health="skyhigh.waitlist.v1.WaitlistService",
        calls=("seat", "checkin"),
    ),
    Service("payment", number=4, module="payment_service", health="skyhigh.payment.v1.PaymentService"),
)

# Name: (default, offset from SKYHIGH_PORT_BASE). SKYHIGH_<NAME>_PORT sets one alone. Our own servers keep away from
# the standard ports, which may be the machine's, and from the range that the kernel gives to outgoing connections.
PORTS: Final[Mapping[str, tuple[int, int]]] = {
    "gateway": (8080, 0),
    "gateway_admin": (9901, 1),
    "postgres": (17432, 10),
    "redis": (17379, 11),
    "amqp": (17672, 12),
    "amqp_distribution": (17673, 13),
    "epmd": (17369, 14),
    "mock_weight": (50061, 61),
    "mock_provider": (50062, 62),
    "mock_mail": (50063, 63),
    "mock_mail_control": (50064, 64),
    "mock_weight_control": (50065, 65),
} | {
    name: port
    for service in SERVICES
    for name, port in {
        service.name: (50050 + service.number, 50 + service.number),
        # Each process of a service takes the next: twenty of each.
        f"{service.name}_worker": (18000 + 20 * service.number, 100 + 20 * service.number),
        f"{service.name}_metrics": (18400 + 20 * service.number, 300 + 20 * service.number),
    }.items()
}
# Where the mocks are told how to behave: the variable that says so, and the port.
MOCK_URLS: Final[Mapping[str, str]] = {
    "SKYHIGH_MOCK_WEIGHT_CONTROL_URL": "mock_weight_control",
    "SKYHIGH_MOCK_PROVIDER_URL": "mock_provider",
    "SKYHIGH_MOCK_MAIL_URL": "mock_mail_control",
}
# What a stack's ports span, from its base on.
PORT_SPAN: Final = 500


@dataclass(frozen=True)
class Stack:
    """One local stack, as its environment asks for it."""

    home: Path
    """Data, keys and logs."""
    ports: Mapping[str, int]
    given: Mapping[str, str]
    """The `SKYHIGH_…` variables of whoever starts it. They win over everything below."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Stack:
        """Reads `SKYHIGH_…`. Raises ValueError naming the variable that is wrong."""
        given = {name: value for name, value in environment.items() if name.startswith("SKYHIGH_") and value}
        base = _port_of(given, "SKYHIGH_PORT_BASE", highest=65535 - PORT_SPAN)
        ports = {
            name: _port_of(given, f"SKYHIGH_{name.upper()}_PORT") or (base + offset if base else default)
            for name, (default, offset) in PORTS.items()
        }
        return cls(home=home_of(environment), ports=ports, given=given)

    @cached_property
    def secrets(self) -> Secrets:
        """Its passwords."""
        return Secrets(self.home / "secrets.json")

    @cached_property
    def servers(self) -> Servers:
        """Its private servers, whether or not all of them are used."""
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
        """What signs its demo tokens."""
        return SigningKeys(self.home / "keys")

    @property
    def addresses(self) -> dict[str, str]:
        """What `skyhigh env` prints."""
        values = [
            f"http://{LOOPBACK}:{self.ports['gateway']}",
            self.given.get("SKYHIGH_DATABASE_URL") or self.servers.database_url(),
            self.given.get("SKYHIGH_AMQP_URL") or self.servers.amqp_url(),
            self.given.get("SKYHIGH_REDIS_URL") or self.servers.redis_url,
            *(f"{LOOPBACK}:{self.ports[service.name]}" for service in SERVICES),
            *(f"http://{LOOPBACK}:{self.ports[port]}" for port in MOCK_URLS.values()),
        ]
        return dict(zip(address_names(), values, strict=True))

    @property
    def tokens(self) -> dict[str, str]:
        """Whose tokens the stack trusts."""
        return {
            "SKYHIGH_JWKS": self.given.get("SKYHIGH_JWKS") or str(self.signing_keys.jwks),
            "SKYHIGH_TOKEN_ISSUER": self.given.get("SKYHIGH_TOKEN_ISSUER") or ISSUER,
            "SKYHIGH_TOKEN_AUDIENCE": self.given.get("SKYHIGH_TOKEN_AUDIENCE") or AUDIENCE,
        }

    def processes(self) -> list[Process]:
        """The table of processes. Raises MissingServerError where a server is not installed."""
        own: list[Process] = []
        if "SKYHIGH_DATABASE_URL" not in self.given:
            own.append(self.servers.postgres())
        if "SKYHIGH_REDIS_URL" not in self.given:
            own.append(self.servers.redis())
        if "SKYHIGH_AMQP_URL" not in self.given:
            own += [self.servers.epmd(), self.servers.rabbitmq()]
        servers = tuple(process.name for process in own)
        services = [self._service(service, after=servers) for service in SERVICES]
        gateway = self._gateway(after=tuple(process.name for process in services))
        return [*own, *self._mocks(), *services, gateway]

    async def provision_given_servers(self) -> None:
        """Prepares servers that were given by URL as we prepare our own.

        A service whose own database is given too is left alone. Raises GivenServerError.
        """
        for variable, provision in (
            ("SKYHIGH_DATABASE_URL", self._provision_database),
            ("SKYHIGH_AMQP_URL", self._provision_broker),
        ):
            if variable not in self.given:
                continue
            try:
                await provision(self.given[variable])
            # Drivers have many errors for servers that are away or refuse; each is the end of this start.
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
        port = self.ports[service.name]
        settings = {
            f"{prefix}DATABASE_URL": self._database_url_of(service),
            # Broker users are made over RabbitMQ's management port, which a given URL does not name.
            f"{prefix}AMQP_URL": self.given.get("SKYHIGH_AMQP_URL") or self.servers.amqp_url(service.name),
            "SKYHIGH_REDIS_URL": self.addresses["SKYHIGH_REDIS_URL"],
            f"{prefix}LISTEN": f"{LOOPBACK}:{port}",
            f"{prefix}WORKER_PORT": str(self.ports[f"{service.name}_worker"]),
            f"{prefix}METRICS_PORT": str(self.ports[f"{service.name}_metrics"]),
            f"{prefix}PROCESSES": str(self._processes(service)),
            "SKYHIGH_PAGE_TOKEN_KEY": self.secrets["page tokens"],
            **self.tokens,
            **self._peers(service),
            **self._own_settings(service),
        }
        return Process(
            name=service.name,
            command=[sys.executable, "-m", service.module],
            ready=serves_grpc(port, service.health),
            port=port,
            environment=settings | {name: self.given[name] for name in settings if name in self.given},
            hidden=OWNERS_VARIABLES,
            after=after,
            stop_seconds=30,
        )

    def _peers(self, service: Service) -> dict[str, str]:
        """Where the services that it calls are, and what it shows them."""
        if not service.calls:
            return {}
        token_file = self.signing_keys.write_service_token(
            service.name, issuer=self.tokens["SKYHIGH_TOKEN_ISSUER"], audience=self.tokens["SKYHIGH_TOKEN_AUDIENCE"]
        )
        addresses = {
            f"SKYHIGH_{peer.name.upper()}_ADDRESS": self._worker_addresses(peer)
            for peer in SERVICES
            if peer.name in service.calls
        }
        return addresses | {f"SKYHIGH_{service.name.upper()}_TOKEN_FILE": str(token_file)}

    def _own_settings(self, service: Service) -> dict[str, str]:
        """What one service alone has to know."""
        smtp = {"SKYHIGH_SMTP_ADDRESS": f"{LOOPBACK}:{self.ports['mock_mail']}"}
        match service.name:
            case "checkin":
                return smtp | {
                    "SKYHIGH_SESSION_KEY": str(self.signing_keys.session_key),
                    "SKYHIGH_WEIGHT_ADDRESS": f"{LOOPBACK}:{self.ports['mock_weight']}",
                }
            case "waitlist":
                return smtp
            case "payment":
                return {
                    "SKYHIGH_PAYMENT_PROVIDER_URL": f"http://{LOOPBACK}:{self.ports['mock_provider']}",
                    "SKYHIGH_PAYMENT_WEBHOOK_SECRETS": self._webhook_secret,
                }
        return {}

    @property
    def _webhook_secret(self) -> str:
        return "whsec_" + base64.b64encode(self.secrets["webhooks"].encode()).decode()

    def _mocks(self) -> list[Process]:
        """What others own: nothing waits for it, because a service must bear that it is away."""
        ports = self.ports
        webhook_url = f"http://{LOOPBACK}:{ports['gateway']}/v1/payments/webhook"
        weight = {
            "SKYHIGH_MOCK_WEIGHT_LISTEN": f"{LOOPBACK}:{ports['mock_weight']}",
            "SKYHIGH_MOCK_WEIGHT_CONTROL": f"{LOOPBACK}:{ports['mock_weight_control']}",
        }
        provider = {
            "SKYHIGH_MOCK_PROVIDER_LISTEN": f"{LOOPBACK}:{ports['mock_provider']}",
            "SKYHIGH_MOCK_PROVIDER_WEBHOOK_URL": webhook_url,
            "SKYHIGH_MOCK_PROVIDER_WEBHOOK_SECRET": self._webhook_secret,
        }
        mail = {
            "SKYHIGH_MOCK_MAIL_LISTEN": f"{LOOPBACK}:{ports['mock_mail']}",
            "SKYHIGH_MOCK_MAIL_CONTROL": f"{LOOPBACK}:{ports['mock_mail_control']}",
        }
        weight_ready = serves_grpc(ports["mock_weight"], "skyhigh.weight.v1.WeightService")
        return [
            self._mock("weight", "weight", weight_ready, weight),
            self._mock("provider", "payment_provider", answers_http(ports["mock_provider"], "/behaviour"), provider),
            self._mock("mail", "mail", answers_http(ports["mock_mail_control"], "/behaviour"), mail),
        ]

    def _mock(self, name: str, module: str, ready: Probe, settings: Mapping[str, str]) -> Process:
        return Process(
            name=f"mock-{name}",
            command=[sys.executable, "-m", f"deploy.mocks.{module}"],
            ready=ready,
            port=self.ports[f"mock_{name}"],
            environment=settings,
            hidden=OWNERS_VARIABLES,
        )

    def _database_url_of(self, service: Service) -> str:
        url = self.given.get("SKYHIGH_DATABASE_URL")
        if url is None:
            return self.servers.database_url(service.name)
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        password = self.secrets[f"postgres/{service.name}"]
        return parts._replace(netloc=f"{service.name}:{password}@{host}").geturl()

    def _processes(self, service: Service) -> int:
        return int(self.given.get(f"SKYHIGH_{service.name.upper()}_PROCESSES", service.processes))

    def _worker_addresses(self, service: Service) -> str:
        """Where each process of a service listens alone: behind one address Envoy would keep to one of them."""
        processes = self._processes(service)
        first = self.ports[f"{service.name}_worker"]
        return ",".join(f"{LOOPBACK}:{first + index}" for index in range(processes))

    def _gateway(self, *, after: tuple[str, ...]) -> Process:
        folder = self.home / "gateway"
        environment = self.tokens | {
            "SKYHIGH_GATEWAY_PORT": str(self.ports["gateway"]),
            "SKYHIGH_GATEWAY_ADMIN_PORT": str(self.ports["gateway_admin"]),
            **{f"SKYHIGH_{service.name.upper()}_ADDRESS": self._worker_addresses(service) for service in SERVICES},
        }

        async def prepare() -> None:
            await _run(sys.executable, "-m", "gateway.render", "--output", str(folder), environment=environment)

        gateway = envoy(folder / "envoy.yaml", port=self.ports["gateway"])
        return dataclasses.replace(gateway, after=after, hidden=OWNERS_VARIABLES, prepare=prepare)


async def _run(*command: str, environment: Mapping[str, str]) -> None:
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(output.decode(errors="replace").strip())


def address_names() -> list[str]:
    """The variables that say where the parts of a stack are."""
    return [
        "SKYHIGH_GATEWAY_URL",
        "SKYHIGH_DATABASE_URL",
        "SKYHIGH_AMQP_URL",
        "SKYHIGH_REDIS_URL",
        *(f"SKYHIGH_{service.name.upper()}_ADDRESS" for service in SERVICES),
        *MOCK_URLS,
    ]


def home_of(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the stack keeps its data: SKYHIGH_HOME, or `.skyhigh` in the repository."""
    given = environment.get("SKYHIGH_HOME")
    return Path(given).absolute() if given else Path(__file__).resolve().parents[2] / ".skyhigh"


def _port_of(given: Mapping[str, str], name: str, *, highest: int = 65535) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if not value.isdecimal() or not 1024 <= int(value) <= highest:
        raise ValueError(f"{name}: {value!r} is no port between 1024 and {highest}")
    return int(value)

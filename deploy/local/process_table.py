"""The table of processes of a local stack: each with its command, settings, ports and probe."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from deploy.local import environment
from deploy.local.addresses import address_variable
from deploy.local.mocks import MOCKS, Mock
from deploy.local.port_table import port_variable
from deploy.local.process import LOOPBACK, Process, answers_http, serves_grpc
from deploy.local.servers.envoy import envoy
from deploy.local.services import SERVICES, Service, process_count
from deploy.local.stack import EDGE, EDGE_TLS_VARIABLES, OPERATIONS, Stack, certificate_paths
from services.tls_identity import VARIABLES

# These URLs give access to every schema and every queue, so no service may inherit them.
OWNERS_VARIABLES: Final = frozenset({"SKYHIGH_DATABASE_URL", "SKYHIGH_AMQP_URL"})
# The source of each Python process of ours, besides its own package.
SHARED_SOURCES: Final = ("services", "gen")


def processes_of(stack: Stack) -> list[Process]:
    """Returns the table of processes. Raises MissingServerError if a server is not installed."""
    own: list[Process] = []
    if "SKYHIGH_DATABASE_URL" not in stack.given:
        own.append(stack.servers.postgres.process())
    if "SKYHIGH_REDIS_URL" not in stack.given:
        own.append(stack.servers.redis.process())
    if "SKYHIGH_AMQP_URL" not in stack.given:
        own += [stack.servers.rabbitmq.epmd(), stack.servers.rabbitmq.process()]
    # Services do not wait for the broker, which starts slowly: they connect later, as after a lost connection.
    truth = tuple(process.name for process in own if process.name == "postgres")
    services = [_service(stack, service, after=truth) for service in SERVICES]
    mocks = [_mock(stack, mock) for mock in stack.mocks]
    table = [*own, *mocks, *services, _gateway(stack, after=tuple(process.name for process in services))]
    return [dataclasses.replace(process, ports=_ports_of(stack, process.name)) for process in table]


def _ports_of(stack: Stack, process: str) -> dict[str, int]:
    """Returns all ports on which a process listens, by the variables that set them.

    The port of a second worker has `+ 1` behind the variable.
    """
    servers = {"rabbitmq": ("amqp", "amqp_distribution"), "gateway": ("gateway", "gateway_admin")}
    mocks = {f"mock-{mock.name}": (f"mock_{mock.name}", f"mock_{mock.name}_control") for mock in MOCKS}
    names = {**servers, **mocks}.get(process, (process,))
    known = {port_variable(name): stack.ports[name] for name in names if name in stack.ports}
    for service in SERVICES:
        if service.label == process:
            for index in range(process_count(service, stack.given)):
                for kind in ("worker", "metrics"):
                    name = f"{service.label}_{kind}"
                    known[port_variable(name) + (f" + {index}" if index else "")] = stack.ports[name] + index
    return known


def _service(stack: Stack, service: Service, *, after: tuple[str, ...]) -> Process:
    prefix = f"SKYHIGH_{service.name.upper()}_"
    port = stack.ports[service.label]
    keys = stack.signing_keys
    settings = {
        f"{prefix}DATABASE_URL": _database_url_of(stack, service),
        # With a given URL all services use its user: only RabbitMQ's management port could create a user for each,
        # and the URL does not name that port.
        f"{prefix}AMQP_URL": stack.given.get("SKYHIGH_AMQP_URL") or stack.servers.amqp_url(service.name),
        "SKYHIGH_REDIS_URL": stack.addresses["SKYHIGH_REDIS_URL"],
        f"{prefix}LISTEN": f"{LOOPBACK}:{port}",
        f"{prefix}WORKER_PORT": str(stack.ports[f"{service.label}_worker"]),
        f"{prefix}METRICS_PORT": str(stack.ports[f"{service.label}_metrics"]),
        f"{prefix}PROCESSES": str(service.processes),
        "SKYHIGH_PAGE_TOKEN_KEY": stack.secrets["page tokens"],
        **stack.tokens,
        **({f"{prefix}TOKEN_FILE": str(keys.token_file(service.name))} if service.calls else {}),
        **{name: stack.values[name] for name in service.settings},
        **_shown(stack, service.name),
    }

    async def prepare() -> None:
        keys.ensure()
        stack.ensure_certificates()
        if service.calls:
            trusted = stack.tokens
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
            *(stack.ports[f"{service.label}_worker"] + index for index in range(process_count(service, stack.given))),
            identity=stack.identity_of(OPERATIONS),
        ),
        port=port,
        # These replace the given addresses of services, which may be those of another stack (`skyhigh env`).
        environment=_given_or(stack, settings) | _addresses_of(stack, *service.calls, *service.reads),
        hidden=OWNERS_VARIABLES,
        sources=(service.module.partition(".")[0], *SHARED_SOURCES),
        after=after,
        stop_seconds=30,
        prepare=prepare,
    )


def _shown(stack: Stack, name: str) -> dict[str, str]:
    """Returns the settings for mutual TLS with the certificate of this name."""
    identity = stack.identity_of(name)
    return {} if identity is None else dict(zip(VARIABLES, certificate_paths(identity), strict=True))


def _given_or(stack: Stack, settings: Mapping[str, str]) -> dict[str, str]:
    return {name: stack.given.get(name, value) for name, value in settings.items()}


def _mock(stack: Stack, mock: Mock) -> Process:
    """Returns the process of a mock.

    It waits for no process, and no process waits for it: a service must work while the mock is down.
    """
    prefix = f"SKYHIGH_MOCK_{mock.name.upper()}_"
    port, control_port = stack.ports[f"mock_{mock.name}"], stack.control_port(mock)
    settings = {
        f"{prefix}LISTEN": f"{LOOPBACK}:{port}",
        **({f"{prefix}CONTROL": f"{LOOPBACK}:{control_port}"} if control_port != port else {}),
        **{name: stack.values[name] for name in mock.settings if name in stack.values},
    }
    return Process(
        name=f"mock-{mock.name}",
        command=[sys.executable, "-m", mock.module],
        ready=answers_http(control_port, "/behaviour"),
        port=port,
        environment=_given_or(stack, settings),
        hidden=OWNERS_VARIABLES,
        sources=("deploy/mocks", *SHARED_SOURCES),
    )


def _database_url_of(stack: Stack, service: Service) -> str:
    url = stack.given.get("SKYHIGH_DATABASE_URL")
    if url is None:
        return stack.servers.database_url(service.name)
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    password = stack.secrets[f"postgres/{service.name}"]
    return parts._replace(netloc=f"{service.name}:{password}@{host}").geturl()


def _addresses_of(stack: Stack, *services: str) -> dict[str, str]:
    """Returns the addresses of each process of these services, by variable.

    If all processes had one address, a caller would keep its connection to one of them and never use the others.
    """
    return {
        address_variable(service.name): ",".join(
            f"{LOOPBACK}:{stack.ports[f'{service.label}_worker'] + index}"
            for index in range(process_count(service, stack.given))
        )
        for service in SERVICES
        if service.name in services
    }


def _gateway(stack: Stack, *, after: tuple[str, ...]) -> Process:
    folder = stack.home / "gateway"
    keys = stack.signing_keys
    variables = stack.tokens | {
        "SKYHIGH_RATE_LIMITS": stack.values["SKYHIGH_RATE_LIMITS"],
        **_given_or(stack, {"SKYHIGH_GATEWAY_TOKEN_FILE": str(keys.token_file("gateway"))}),
        "SKYHIGH_GATEWAY_PORT": str(stack.ports["gateway"]),
        "SKYHIGH_GATEWAY_ADMIN_PORT": str(stack.ports["gateway_admin"]),
        **_addresses_of(stack, *(service.name for service in SERVICES)),
        **_shown(stack, EDGE),
        # One certificate for clients and services is enough here. In production a public authority signs the one
        # that clients see.
        **dict(zip(EDGE_TLS_VARIABLES, _shown(stack, EDGE).values(), strict=False)),
    }

    async def prepare() -> None:
        keys.ensure()
        stack.ensure_certificates()
        trusted = stack.tokens
        keys.write_service_token(
            "gateway", issuer=trusted["SKYHIGH_TOKEN_ISSUER"], audience=trusted["SKYHIGH_TOKEN_AUDIENCE"]
        )
        await _run(sys.executable, "-m", "gateway.render", "--output", str(folder), variables=variables)

    gateway = envoy(folder / "envoy.yaml", port=stack.ports["gateway"], identity=stack.identity_of(OPERATIONS))
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

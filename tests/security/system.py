"""The whole system in this process, and every RPC as data.

The data are the roles that may call the RPC, and the ways to call it.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from http import HTTPStatus
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import grpc
import httpx
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2, json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from booking_service.service import BOOKING_SERVICE
from checkin_service.service import CHECKIN_SERVICE
from deploy.local.process import free_ports
from deploy.local.servers.envoy import envoy
from deploy.local.supervisor import Supervisor
from deploy.mocks import mail, weight
from deploy.mocks.mail import MailSettings, MailSink
from deploy.mocks.weight import WeightSettings
from flight_service.service import FLIGHT_SERVICE
from gateway.descriptors import json_bindings
from gateway.guard.service import GATEWAY_SERVICE
from gateway.guard.settings import RateLimits
from gateway.render import write
from gateway.settings import GatewaySettings
from payment_service.service import PAYMENT_SERVICE
from seat_service.service import SEAT_SERVICE
from services.app import Service
from services.auth import Role
from services.rpcs import Rpc as Declaration
from tests.callers import AT_ONCE, ISSUER, Callers
from tests.instances import database_with, running
from tests.payment.rules import SECRET
from tests.waiting import PATIENCE_SECONDS
from waitlist_service.service import WAITLIST_SERVICE

if TYPE_CHECKING:
    from tests.conftest import World

# Sorted so that each service starts after those that it calls.
SERVICES: Final[tuple[Service[Any], ...]] = (
    SEAT_SERVICE,
    FLIGHT_SERVICE,
    PAYMENT_SERVICE,
    CHECKIN_SERVICE,
    WAITLIST_SERVICE,
    BOOKING_SERVICE,
    GATEWAY_SERVICE,
)
NOBODYS_PORT: Final = 1
MOST_RETRIES: Final = 5
# No hold lapses and no payment is charged by itself during an attack, and no caller is limited.
QUIET: Final = {
    "SKYHIGH_DRAIN_NOTICE_SECONDS": "0",
    "SKYHIGH_RATE_LIMITS": "off",
    "SKYHIGH_CHECK_IN_HOLD_TTL_SECONDS": "3600",
    "SKYHIGH_BOOKING_HOLD_TTL_SECONDS": "3600",
    "SKYHIGH_BOOKING_PAYMENT_LOOK_SECONDS": "3600",
    "SKYHIGH_FLIGHT_HORIZON_DAYS": "0",
    "SKYHIGH_WAITLIST_SWEEP_INTERVAL_SECONDS": "3600",
    "SKYHIGH_PAYMENT_PROVIDER_URL": f"http://127.0.0.1:{NOBODYS_PORT}",
    "SKYHIGH_PAYMENT_BACKOFF_SECONDS": "3600",
    "SKYHIGH_PAYMENT_BACKOFF_LIMIT_SECONDS": "3600",
    "SKYHIGH_PAYMENT_PATIENCE_SECONDS": "36000",
    "SKYHIGH_PAYMENT_WEBHOOK_SECRETS": SECRET,
    "SKYHIGH_CHECKIN_LOGIN_TRIES_PER_PNR": "30000",
    "SKYHIGH_CHECKIN_LOGIN_TRIES_PER_ADDRESS": "30000",
}

# The edge's timeouts in seconds, shorter than in production, so that no test waits long for one.
HASTE: Final = {"request_headers_timeout": 1, "request_timeout": 2, "stream_idle_timeout": 2}


@dataclass(frozen=True)
class Rpc:
    """An RPC of the contract, and its declaration."""

    service: Service[Any]
    method: MethodDescriptor
    declaration: Declaration

    @property
    def name(self) -> str:
        """The method's name, which is unique among our RPCs."""
        return str(self.method.name)

    @property
    def path(self) -> str:
        """The gRPC path."""
        return f"/{self.service.descriptor.full_name}/{self.name}"

    @property
    def exposed(self) -> bool:
        """Whether the edge has a route to the RPC."""
        return self.declaration.exposed

    @cached_property
    def binding(self) -> tuple[str, str] | None:
        """The verb and the path template of its JSON form; None if it has none."""
        proto = descriptor_pb2.MethodDescriptorProto()
        self.method.CopyToProto(proto)
        return next(iter(json_bindings(proto)), None)

    @property
    def has_body(self) -> bool:
        """Whether the JSON request has a body."""
        return bool(self.method.GetOptions().Extensions[annotations_pb2.http].body)

    def request(self, **fields: Any) -> Message:
        """Creates a request message."""
        message: Message = message_factory.GetMessageClass(self.method.input_type)(**fields)
        return message


def rpcs() -> Iterator[Rpc]:
    """Yields every RPC that a proto describes, exposed at the edge or not."""
    for service in SERVICES:
        declared = service.rpcs()
        for method in service.descriptor.methods:
            yield Rpc(service, method, declared[method.name])


RPCS: Final = {rpc.name: rpc for rpc in rpcs()}


@dataclass(frozen=True)
class Answer:
    """The response of a gRPC call.

    It has the code, the google.rpc.Status without what differs between calls, and the body.
    """

    code: grpc.StatusCode
    details: bytes = b""
    body: bytes = b""
    message: str = ""


class System:
    """The running system as attackers reach it."""

    def __init__(self, callers: Mapping[str, Callers], databases: Mapping[str, str], mails: MailSink) -> None:
        self.callers = callers
        """The callers of each service, by the service's name."""
        self.databases = databases
        """The URL of each service's own database, by the service's name."""
        self.mails = mails
        self.port = 0
        self.admin_port = 0
        self.envoy_pid = 0
        self.http = httpx.AsyncClient()
        self._channels: dict[str, grpc.aio.Channel] = {}

    def token(self, role: Role, subject: str = "") -> str:
        """Returns a token of a caller with this role; empty for ANYBODY."""
        opened: dict[Role, Callable[[], Any]] = {
            Role.PASSENGER: lambda: self.callers["seat"].passenger(pnr=subject or None),
            Role.CUSTOMER: lambda: self.callers["seat"].customer(subject or None),
            Role.AGENT: lambda: self.callers["seat"].agent(subject or "desk"),
            Role.OPERATIONS: lambda: self.callers["seat"].operations(subject or "ops"),
            Role.SERVICE: lambda: self.callers["seat"].service(subject or "booking"),
        }
        return "" if role is Role.ANYBODY else str(opened[role]().token)

    async def ask(
        self,
        rpc: Rpc,
        request: Message | bytes,
        token: str = "",
        *,
        outside: bool = False,
        metadata: Sequence[tuple[str, str]] = (),
        timeout_seconds: float | None = PATIENCE_SECONDS,
        retries: bool = True,
    ) -> Answer:
        """Calls by gRPC: on the service's own port, or from outside through the edge.

        Retries a call that exceeds its deadline on a busy machine, unless `retries` is False because the deadline is
        tested.
        """
        answer = await self._asked(rpc, request, token, outside, metadata, timeout_seconds)
        for _ in range(MOST_RETRIES if retries else 0):
            if answer.code is not grpc.StatusCode.DEADLINE_EXCEEDED:
                break
            answer = await self._asked(rpc, request, token, outside, metadata, timeout_seconds)
        return answer

    async def _asked(  # noqa: PLR0917
        self,
        rpc: Rpc,
        request: Message | bytes,
        token: str,
        outside: bool,
        metadata: Sequence[tuple[str, str]],
        timeout_seconds: float | None,
    ) -> Answer:
        body = request if isinstance(request, bytes) else request.SerializeToString()
        headers = [*metadata, *([("authorization", f"Bearer {token}")] if token else [])]
        channel: Any = self._channel(f"127.0.0.1:{self.port}" if outside else self.callers[rpc.service.name].address)
        try:
            if rpc.method.server_streaming:
                stream = channel.unary_stream(rpc.path)(body, metadata=headers, timeout=timeout_seconds)
                first = await stream.read()
                stream.cancel()
                return Answer(grpc.StatusCode.OK, body=first)
            return Answer(
                grpc.StatusCode.OK,
                body=await channel.unary_unary(rpc.path)(body, metadata=headers, timeout=timeout_seconds),
            )
        except grpc.aio.AioRpcError as error:
            details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
            return Answer(error.code(), bytes(details), message=error.details() or "")

    async def ask_json(
        self, rpc: Rpc, request: Message | Mapping[str, Any], token: str = "", **headers: str
    ) -> httpx.Response:
        """Calls by JSON through the edge.

        Returns the response, of a stream only its beginning. `request` may contain values that no message can have.
        Retries as `ask` does.
        """
        assert rpc.binding is not None
        fields = json_format.MessageToDict(request) if isinstance(request, Message) else dict(request)
        verb, template = rpc.binding
        path = re.sub(r"\{(\w+)\}", lambda found: quote(str(fields.pop(_json_name(found[1]), "-")), safe=""), template)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            named["authorization"] = f"Bearer {token}"
        body, query = (fields, None) if rpc.has_body else (None, _query(fields))
        for _ in range(MOST_RETRIES + 1):
            async with self.http.stream(verb, path, headers=named, params=query, json=body) as answer:
                if not rpc.method.server_streaming or answer.is_error:
                    await answer.aread()
            if answer.status_code != HTTPStatus.GATEWAY_TIMEOUT:
                break
        return answer

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            options = [("grpc.use_local_subchannel_pool", 1)]
            self._channels[address] = grpc.aio.insecure_channel(address, options=options)
        return self._channels[address]

    async def close(self) -> None:
        """Closes the connections that it opened."""
        await self.http.aclose()
        for channel in self._channels.values():
            await channel.close()


def _json_name(field: str) -> str:
    head, *rest = field.split("_")
    return head + "".join(part.capitalize() for part in rest)


def _query(fields: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in fields.items():
        if isinstance(value, Mapping):
            pairs += _query(value, f"{prefix}{name}.")
        else:
            pairs += [(f"{prefix}{name}", each) for each in (value if isinstance(value, list) else [value])]
    return pairs


@asynccontextmanager
async def opened(world: World) -> AsyncIterator[System]:
    """Runs the whole system within the block."""
    names = [service.name for service in SERVICES]
    databases = await database_with(world, *names)
    async with AsyncExitStack() as stack:
        scales = await stack.enter_async_context(
            weight.serving(WeightSettings(listen="127.0.0.1:0", control="127.0.0.1:0"))
        )
        mails = await stack.enter_async_context(mail.serving(MailSettings(listen="127.0.0.1:0", control="127.0.0.1:0")))
        variables = {
            **QUIET,
            **databases,
            "SKYHIGH_WEIGHT_ADDRESS": scales.address,
            "SKYHIGH_SMTP_ADDRESS": mails.address,
        }
        callers: dict[str, Callers] = {}
        for service in SERVICES:
            callers[service.name] = await stack.enter_async_context(
                running(world, service, _stub(service), **variables)
            )
            variables[f"SKYHIGH_{service.name.upper()}_ADDRESS"] = callers[service.name].address
        by_name = {name: databases[f"SKYHIGH_{name.upper()}_DATABASE_URL"] for name in names}
        system = System(callers, by_name, mails)
        stack.push_async_callback(system.close)
        await _open_the_edge(world, system, stack)
        yield system


async def _open_the_edge(world: World, system: System, stack: AsyncExitStack) -> None:
    system.port, system.admin_port = free_ports(2)
    addresses: dict[str, Any] = {f"{name}_address": (callers.address,) for name, callers in system.callers.items()}
    settings = GatewaySettings(
        rate_limits=RateLimits.OFF,
        gateway_port=system.port,
        gateway_admin_port=system.admin_port,
        jwks=world.keys.jwks,
        token_issuer=ISSUER,
        **addresses,
    )
    configuration = write(settings, world.folder / "security")
    text = configuration.read_text()
    for name, seconds in HASTE.items():
        text, found = re.subn(rf"\b{name}: \w+", f"{name}: {seconds}s", text)
        assert found == 1, name
    configuration.write_text(text)
    edge = envoy(configuration, port=system.port)
    # The test reads the log at once, but Envoy by default writes it only every ten seconds.
    edge = replace(edge, command=[*edge.command, "--file-flush-interval-msec", "200"])
    supervisor = Supervisor([edge], logs=world.folder / "security", restart=False)
    await stack.enter_async_context(supervisor)
    (system.envoy_pid,) = [status.pid or 0 for status in supervisor.statuses]
    system.http = httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{system.port}",
        timeout=PATIENCE_SECONDS,
        limits=httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE),
    )


def memory_bytes(pid: int) -> int:
    """Returns the resident memory of a process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _stub(service: Service[Any]) -> Callable[[grpc.aio.Channel], Any]:
    generated = import_module(service.descriptor.file.name.removesuffix(".proto").replace("/", ".") + "_pb2_grpc")
    stub: Callable[[grpc.aio.Channel], Any] = getattr(generated, f"{service.descriptor.name}Stub")
    return stub

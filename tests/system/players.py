"""The clients of a run.

Each has tokens, calls by gRPC or JSON, abandons calls, retries, and records everything.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode
from uuid import UUID

import aiohttp
import grpc
from google.api import annotations_pb2
from google.api.httpbody_pb2 import HttpBody
from google.protobuf import json_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from skyhigh.booking.v1 import booking_service_pb2
from skyhigh.checkin.v1 import checkin_service_pb2
from skyhigh.flight.v1 import flight_service_pb2
from skyhigh.payment.v1 import payment_service_pb2
from skyhigh.seat.v1 import seat_service_pb2
from skyhigh.waitlist.v1 import waitlist_service_pb2

from deploy.local.report import Report
from deploy.local.secrets import SigningKeys
from tests.system.history import History, Operation, outcome_of
from tests.waiting import pause

PROTOS: Final[Mapping[str, Any]] = {
    "seat": seat_service_pb2,
    "checkin": checkin_service_pb2,
    "waitlist": waitlist_service_pb2,
    "payment": payment_service_pb2,
    "flight": flight_service_pb2,
    "booking": booking_service_pb2,
}
METHODS: Final[Mapping[str, tuple[str, MethodDescriptor]]] = {
    method.name: (service, method)
    for service, protos in PROTOS.items()
    for described in protos.DESCRIPTOR.services_by_name.values()
    for method in described.methods
}
# The RPC for JSON callers, which has the same response.
JSON_RULES: Final[Mapping[str, str]] = {"GetSeatMap": "GetSeatMapJson"}
# The issuer that a local stack trusts by default.
ISSUER: Final = "https://skyhigh.example/demo"
AUDIENCE: Final = "skyhigh"
LATE_REPEATS: Final = 40
# The factor of the services' own time limits (services/time_limits.py).
PATIENCE_VARIABLE: Final = "SKYHIGH_TIME_LIMITS_FACTOR"
PATIENCE: Final = os.environ.get(PATIENCE_VARIABLE) or "1"
LONGEST_CALL_SECONDS: Final = 10.0 * float(PATIENCE)
# The codes of a call whose outcome the client does not know.
LOST: Final = frozenset(
    {"DEADLINE_EXCEEDED", "UNAVAILABLE", "CANCELLED", "UNKNOWN", "INTERNAL", "HTTP_503", "HTTP_504"}
)
# A client that does not know the outcome of a call makes it at most so many times.
TRIES_UNTIL_KNOWN: Final = 6
TRY_PAUSE_SECONDS: Final = 0.4
TOKEN_SECONDS: Final = 8 * 3600
# Two workers share a service's port: the kernel chooses the worker of a connection.
CONNECTIONS: Final = 4
RECONNECT: Final = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


@dataclass(frozen=True, slots=True)
class Actor:
    """A principal and its token; both are empty for a caller without a token."""

    principal: str
    token: str


ANYBODY: Final = Actor("", "")


@dataclass(frozen=True, slots=True)
class Reply:
    """What a client knows after a call."""

    outcome: str
    code: str | None
    reason: str | None
    message: Any
    """The response; None unless the call succeeded."""
    metadata: Mapping[str, str]

    @property
    def ok(self) -> bool:
        """Whether the call succeeded."""
        return self.outcome == "ok"


@dataclass(frozen=True, slots=True)
class Stack:
    """A running stack, of this checkout or of an older one.

    It has addresses, and the key that signs the tokens that it trusts.
    """

    addresses: Mapping[str, str]
    """The addresses as `skyhigh env` prints them."""
    home: Path
    issuer: str = ISSUER
    audience: str = AUDIENCE

    @classmethod
    def found(cls, environment: Mapping[str, str] = os.environ) -> Stack:
        """Finds the stack of `SKYHIGH_HOME`; environment variables take precedence.

        Raises LookupError if there is none.
        """
        home = Path(environment.get("SKYHIGH_HOME") or ".skyhigh").absolute()
        report = Report.read(home)
        addresses = dict(report.addresses) if report is not None else {}
        addresses |= {name: value for name, value in environment.items() if name.startswith("SKYHIGH_") and value}
        if "SKYHIGH_SEAT_ADDRESS" not in addresses:
            raise LookupError(f"no stack was started in {home}")
        return cls(
            addresses,
            home,
            environment.get("SKYHIGH_TOKEN_ISSUER") or ISSUER,
            environment.get("SKYHIGH_TOKEN_AUDIENCE") or AUDIENCE,
        )

    def actor(self, role: str, subject: str, *, seconds: float = TOKEN_SECONDS) -> Actor:
        """Mints a token."""
        now = int(time.time())
        claims: dict[str, object] = {
            "iss": self.issuer,
            "aud": self.audience,
            "sub": subject,
            "role": role,
            "iat": now,
            "exp": now + int(seconds),
        }
        return Actor(f"{role}:{subject}", SigningKeys(self.home / "keys").sign(claims))


class Wires:
    """The connections of a run to all services and to the gateway."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.gateway_url = stack.addresses["SKYHIGH_GATEWAY_URL"].rstrip("/")
        self._channels = {
            service: [
                grpc.aio.insecure_channel(stack.addresses[f"SKYHIGH_{service.upper()}_ADDRESS"], options=RECONNECT)
                for _ in range(CONNECTIONS)
            ]
            for service in PROTOS
        }
        self._gateway = grpc.aio.insecure_channel(self.gateway_url.partition("//")[2], options=RECONNECT)
        self._calls: dict[tuple[str, int], Any] = {}
        self.http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LONGEST_CALL_SECONDS))

    async def close(self) -> None:
        """Closes all connections."""
        await self.http.close()
        for channels in [*self._channels.values(), [self._gateway]]:
            for channel in channels:
                await channel.close()

    def call(self, rpc: str, number: int) -> Any:
        """Returns the callable of an RPC on one of the connections.

        A negative number means the gateway's.
        """
        place = (rpc, number % CONNECTIONS if number >= 0 else -1)
        if place not in self._calls:
            service, method = METHODS[rpc]
            channel = self._gateway if number < 0 else self._channels[service][place[1]]
            make = channel.unary_stream if method.server_streaming else channel.unary_unary
            self._calls[place] = make(
                f"/{method.containing_service.full_name}/{method.name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
        return self._calls[place]


@dataclass(frozen=True, slots=True)
class Manners:
    """The behaviour of a client, as probabilities from 0 to 1."""

    by_gateway: float = 0.1
    by_json: float = 0.08
    gives_up: float = 0.03
    """It cancels a call after a few milliseconds."""
    without_key: float = 0.15
    key_in_header: float = 0.2
    repeats_at_once: float = 0.06
    twin: float = 0.03
    """It makes two equal calls with one key at the same time."""
    other_parameters: float = 0.02
    """It uses the key of an earlier call with other parameters."""
    abandons: float = 0.15
    """It does not retry after an unknown outcome."""


class Player:
    """One client of a run.

    It awaits each call before the next, except for streams and twins of a call.
    """

    def __init__(
        self, name: str, number: int, *, dice: random.Random, wires: Wires, record: History, manners: Manners
    ) -> None:
        self.name = name
        self.dice = dice
        self.wires = wires
        self.record = record
        self._number = number
        self._manners = manners
        self._done: deque[tuple[str, Actor, Message, str]] = deque(maxlen=LATE_REPEATS)

    def by_chance(self, chance: float) -> bool:
        """Returns True with this probability."""
        return self.dice.random() < chance

    def key(self) -> str:
        """Draws a request id."""
        return str(UUID(int=self.dice.getrandbits(128), version=4))

    async def do(self, rpc: str, actor: Actor, **fields: Any) -> Reply:
        """Makes a call as a real client does.

        With or without a key, and with retries while the outcome is unknown.
        """
        request = GetMessageClass(METHODS[rpc][1].input_type)(**fields)
        if "request_id" not in request.DESCRIPTOR.fields_by_name:
            return await self.once(rpc, actor, request)
        manners = self._manners
        key = "" if self.by_chance(manners.without_key) else self.key()
        if key and self._done and self.by_chance(manners.other_parameters):
            key = self.dice.choice(self._done)[3]
        if key and self.by_chance(manners.twin):
            replies = await asyncio.gather(
                self.once(rpc, actor, request, key=key), self.once(rpc, actor, request, key=key, twin=True)
            )
            reply = next((each for each in replies if each.ok), replies[0])
        else:
            reply = await self.once(rpc, actor, request, key=key)
        if reply.code in LOST and reply.outcome == "unknown" and not self.by_chance(manners.abandons):
            reply = await self._until_known(rpc, actor, request, key)
        elif key and reply.ok and self.by_chance(manners.repeats_at_once):
            await self.once(rpc, actor, request, key=key)
        if key:
            self._done.append((rpc, actor, request, key))
        return reply

    async def repeat_late(self) -> None:
        """Repeats one of the last calls with its key, as a client does after a long pause."""
        if self._done:
            rpc, actor, request, key = self.dice.choice(self._done)
            await self.once(rpc, actor, request, key=key)

    async def _until_known(self, rpc: str, actor: Actor, request: Message, key: str) -> Reply:
        for number in range(1, TRIES_UNTIL_KNOWN + 1):
            reply = await self.once(rpc, actor, request, key=key, patient=True)
            if reply.outcome != "unknown":
                break
            await pause(TRY_PAUSE_SECONDS * number)
        return reply

    async def once(
        self, rpc: str, actor: Actor, request: Message, *, key: str = "", twin: bool = False, patient: bool = False
    ) -> Reply:
        """Makes one call and records it."""
        in_header = bool(key) and self.by_chance(self._manners.key_in_header)
        if key and not in_header:
            request = _with_key(request, key)
        way = self.dice.random()
        method = METHODS[rpc][1]
        outside = _rule(rpc) is not None
        by_json = outside and way < self._manners.by_json
        by_gateway = outside and not by_json and way < self._manners.by_json + self._manners.by_gateway
        seconds = LONGEST_CALL_SECONDS
        if not patient and self.by_chance(self._manners.gives_up):
            seconds = self.dice.uniform(0.002, 0.04)
        operation = self.record.begin(
            client=f"{self.name}~" if twin else self.name,
            principal=actor.principal,
            call=rpc,
            request=request,
            request_id=key or None,
        )
        headers = {"authorization": f"Bearer {actor.token}"} if actor.token else {}
        if in_header:
            headers["idempotency-key"] = key
        if by_json:
            return await self._by_json(operation, method, request, headers, seconds)
        call = self.wires.call(rpc, -1 if by_gateway else self._number)
        try:
            answer = await call(request, metadata=tuple(headers.items()), timeout=seconds)
        except grpc.aio.AioRpcError as error:
            self.record.fail(operation, error)
            _, code, reason, metadata = outcome_of(error)
            return Reply(operation.outcome, code, reason, None, metadata)
        self.record.end(operation, "ok", answer=_recorded(answer))
        return Reply("ok", None, None, answer, {})

    async def _by_json(
        self, operation: Operation, method: MethodDescriptor, request: Message, headers: dict[str, str], seconds: float
    ) -> Reply:
        verb, path, body = http_request(method.name, request)
        if body is not None:
            headers = headers | {"content-type": "application/json"}
        code, reason, metadata = "UNAVAILABLE", None, dict[str, str]()
        try:
            timeout = aiohttp.ClientTimeout(total=seconds)
            async with self.wires.http.request(
                verb, self.wires.gateway_url + path, data=body, headers=headers, timeout=timeout
            ) as answer:
                text, status, kind = await answer.read(), answer.status, answer.content_type
        except (aiohttp.ClientError, TimeoutError) as error:
            self.record.end(operation, "unknown", code="DEADLINE_EXCEEDED" if isinstance(error, TimeoutError) else code)
            return Reply("unknown", operation.code, None, None, {})
        if status == 200:
            message: Message = GetMessageClass(method.output_type)()
            if isinstance(message, HttpBody):
                message = HttpBody(content_type=kind, data=text)
            else:
                json_format.Parse(text, message)
            self.record.end(operation, "ok", answer=_recorded(message))
            return Reply("ok", None, None, message, {})
        try:
            details = json.loads(text)
            code = grpc_code(details.get("code"), status)
            info = next(each for each in details.get("details", ()) if "reason" in each)
            reason, metadata = info["reason"], info.get("metadata", {})
        except (ValueError, StopIteration, AttributeError):
            code = f"HTTP_{status}"
        outcome: Any = "unknown" if reason is None or reason == "DEADLINE_EXCEEDED" else "refused"
        self.record.end(operation, outcome, code=code, reason=reason, answer=metadata)
        return Reply(outcome, code, reason, None, metadata)

    async def watch(self, rpc: str, actor: Actor, seconds: float, **fields: Any) -> list[Any]:
        """Reads a stream for some seconds; returns its messages."""
        request = GetMessageClass(METHODS[rpc][1].input_type)(**fields)
        operation = self.record.begin(client=self.name, principal=actor.principal, call=rpc, request=request)
        number = -1 if self.by_chance(self._manners.by_gateway) else self._number
        stream = self.wires.call(rpc, number)(request, metadata=(("authorization", f"Bearer {actor.token}"),))
        messages: list[Any] = []
        recorded: list[dict[str, Any]] = []
        ended = False
        try:
            async with asyncio.timeout(seconds):
                async for message in stream:
                    messages.append(message)
                    recorded.append(self.record.record(message) | {"at": time.monotonic()})
                ended = True
        except TimeoutError:
            ended = True
        except grpc.aio.AioRpcError as error:
            self.record.fail(operation, error, messages=recorded)
        finally:
            stream.cancel()
        if ended:
            self.record.end(operation, "ok", answer={"messages": recorded})
        return messages


def http_request(rpc: str, request: Message) -> tuple[str, str, str | None]:
    """Translates a request into the HTTP call that the proto declares.

    Returns verb, path with its query, and body.
    """
    rule = _rule(rpc)
    assert rule is not None
    verb = rule.WhichOneof("pattern")
    values = json_format.MessageToDict(request, preserving_proto_field_name=True)
    path = getattr(rule, verb)
    for name in [part.partition("}")[0] for part in path.split("{")[1:]]:
        path = path.replace(f"{{{name}}}", quote(str(values.pop(name, "")), safe=""))
    if rule.body:
        return verb.upper(), path, json.dumps(_camel(values))
    query = urlencode(values, doseq=True)
    return verb.upper(), f"{path}?{query}" if query else path, None


def _camel(value: Any) -> Any:
    if isinstance(value, dict):
        return {_camel_name(name): _camel(each) for name, each in value.items()}
    return [_camel(each) for each in value] if isinstance(value, list) else value


def _camel_name(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(other.capitalize() for other in others)


def grpc_code(number: Any, status: int) -> str:
    """Returns the name of the gRPC code whose number a JSON error contains."""
    for code in grpc.StatusCode:
        if code.value[0] == number:
            return str(code.name)
    return f"HTTP_{status}"


def _rule(rpc: str) -> Any:
    options = METHODS[JSON_RULES.get(rpc, rpc)][1].GetOptions()
    return options.Extensions[annotations_pb2.http] if options.HasExtension(annotations_pb2.http) else None


def _recorded(answer: Message) -> Message | dict[str, Any]:
    # Of an image, only its type and its size are recorded.
    if isinstance(answer, HttpBody):
        return {"content_type": answer.content_type, "bytes": len(answer.data)}
    return answer


def _with_key(request: Message, key: str) -> Message:
    keyed = type(request)()
    keyed.CopyFrom(request)
    keyed.request_id = key  # type: ignore[attr-defined]
    return keyed

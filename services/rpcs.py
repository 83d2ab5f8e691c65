"""Reads the declaration of each RPC from the compiled protos.

The declaration is the option `(skyhigh.options.v1.rpc)`: `protos/skyhigh/options/v1/rpc.proto` explains its fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from skyhigh.options.v1 import rpc_pb2

from services.auth import Role
from services.time_limits import FACTOR

IDEMPOTENCY_FIELD: Final = "request_id"


class Effect(Enum):
    """What a call does, as `Rpc.Effect` of the protos explains."""

    READ = rpc_pb2.Rpc.READ
    MUTATION = rpc_pb2.Rpc.MUTATION
    UNKEYED_MUTATION = rpc_pb2.Rpc.UNKEYED_MUTATION
    STREAM = rpc_pb2.Rpc.STREAM


class CallClass(StrEnum):
    """A class of RPCs that have one rate limit together, as `Rpc.Gateway.CallClass` explains.

    Stored limits and Envoy's configuration have these values.
    """

    MAP = "map"
    HOLD = "hold"
    LOGIN = "login"
    SEARCH = "search"
    WEBHOOK = "webhook"
    READ = "read"
    WRITE = "write"
    WATCH = "watch"


class DeclarationError(ValueError):
    """An RPC has no declaration, or one that contradicts itself or the RPC."""


@dataclass(frozen=True, slots=True)
class Rpc:
    """The declaration of one RPC."""

    roles: frozenset[Role]
    """The roles that may call it; only ANYBODY if it needs no token."""
    owned: tuple[str, ...]
    """The request fields that name a resource with an owner.

    The SQL statements of the service enforce the ownership. Here it documents the rule, and the tests attack each
    field.
    """
    effect: Effect
    seconds: float | None
    """The time limit in seconds, without the factor of the services; None for a stream."""
    call_class: CallClass | None
    """The class of its rate limits; None if it is internal."""
    max_body_bytes: int
    """The largest body at the gateway in bytes; 0 means the gateway's default."""

    @property
    def public(self) -> bool:
        """Whether the RPC needs no token. A token that is sent with it is ignored."""
        return Role.ANYBODY in self.roles

    @property
    def exposed(self) -> bool:
        """Whether the RPC has a route at the gateway. All others are internal."""
        return self.call_class is not None

    @property
    def mutation(self) -> bool:
        """Whether the RPC may change something."""
        return self.effect in (Effect.MUTATION, Effect.UNKEYED_MUTATION)

    @property
    def time_limit_seconds(self) -> float | None:
        """The time limit in the service, with the factor of all services; None for a stream."""
        return None if self.seconds is None else self.seconds * FACTOR


def of_service(service: ServiceDescriptor) -> Mapping[str, Rpc]:
    """Returns the declarations of a service's RPCs by name, in the order of the proto. Raises DeclarationError."""
    return {method.name: of_method(method) for method in service.methods}


def of_method(method: MethodDescriptor) -> Rpc:
    """Returns the declaration of an RPC. Raises DeclarationError if there is none or it does not fit the RPC."""
    rpc = of_options(method.full_name, method.GetOptions())
    fields = method.input_type.fields_by_name
    wrong = {
        "only an RPC whose request has a request_id is a MUTATION": (rpc.effect is Effect.MUTATION)
        != (IDEMPOTENCY_FIELD in fields),
        "an RPC is a STREAM if and only if it streams": (rpc.effect is Effect.STREAM)
        != (method.client_streaming or method.server_streaming),
        "the request does not have every field of `owned`": not all(name in fields for name in rpc.owned),
    }
    _refuse(method.full_name, wrong)
    return rpc


def of_options(full_name: str, options: MethodOptions) -> Rpc:
    """Returns the declaration in the options of an RPC. Raises DeclarationError.

    `full_name` is the RPC's name for the error.
    """
    _refuse(full_name, {"has no option (skyhigh.options.v1.rpc)": not options.HasExtension(rpc_pb2.rpc)})
    declared = options.Extensions[rpc_pb2.rpc]
    seconds = declared.time_limit.seconds + declared.time_limit.nanos / 1e9
    stream = declared.effect == rpc_pb2.Rpc.STREAM
    anybody = rpc_pb2.Rpc.ANYBODY in declared.roles
    wrong = {
        "has no roles": not declared.roles or rpc_pb2.Rpc.ROLE_UNSPECIFIED in declared.roles,
        "ANYBODY must be the only role": anybody and len(declared.roles) > 1,
        "has no effect": declared.effect == rpc_pb2.Rpc.EFFECT_UNSPECIFIED,
        "needs a time_limit": not stream and seconds <= 0,
        "a STREAM has no time_limit": stream and declared.HasField("time_limit"),
        "needs a call_class at the gateway": declared.HasField("gateway")
        and declared.gateway.call_class == rpc_pb2.Rpc.Gateway.CALL_CLASS_UNSPECIFIED,
    }
    _refuse(full_name, wrong)
    return Rpc(
        roles=frozenset(Role[rpc_pb2.Rpc.Role.Name(role)] for role in declared.roles),
        owned=tuple(declared.owned),
        effect=Effect(declared.effect),
        seconds=None if stream else seconds,
        call_class=CallClass[rpc_pb2.Rpc.Gateway.CallClass.Name(declared.gateway.call_class)]
        if declared.HasField("gateway")
        else None,
        max_body_bytes=declared.gateway.max_body_bytes,
    )


def _refuse(full_name: str, wrong: Mapping[str, bool]) -> None:
    if found := [reason for reason, is_wrong in wrong.items() if is_wrong]:
        raise DeclarationError(f"{full_name}: {'; '.join(found)}")

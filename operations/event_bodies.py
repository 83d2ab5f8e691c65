"""Bodies of events, decoded by the types of the contract."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.message import Message


def message_type(routing_key: str) -> type[Message] | None:
    """Returns the class of an event's body; None if there is no such event.

    The event `<noun>.<verb>.<version>` is message NounVerb of `skyhigh/<noun>/<version>/events.proto`; upper and lower
    case do not matter.
    """
    noun, _, rest = routing_key.partition(".")
    verb, _, version = rest.partition(".")
    if not (noun.isidentifier() and verb.isidentifier() and version.isidentifier()):
        return None
    try:
        module = importlib.import_module(f"skyhigh.{noun}.{version}.events_pb2")
    except ImportError:
        return None
    names = {name.lower(): name for name in module.DESCRIPTOR.message_types_by_name}
    name = names.get(f"{noun}{verb}".lower())
    found: type[Message] | None = getattr(module, name) if name is not None else None
    return found


def readable(routing_key: str, body: bytes) -> dict[str, Any]:
    """Returns the body as proto3 JSON; only its size if it cannot be decoded.

    The bytes of such a body are not shown, because their content is unknown.
    """
    from google.protobuf.json_format import MessageToDict
    from google.protobuf.message import DecodeError

    kind = message_type(routing_key)
    try:
        return MessageToDict(kind.FromString(body)) if kind is not None else {"unknownBytes": len(body)}
    except DecodeError:
        return {"unreadableBytes": len(body)}

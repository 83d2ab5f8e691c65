"""The API as the compiled protos tell it: services, messages, and what stands in comments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from google.api import annotations_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool

# Paths of a comment's owner are pairs of a field of these descriptors and an index.
_CHILDREN: Final = {
    descriptor_pb2.FileDescriptorProto: {4: "message_type", 5: "enum_type", 6: "service"},
    descriptor_pb2.DescriptorProto: {2: "field", 3: "nested_type", 4: "enum_type"},
    descriptor_pb2.EnumDescriptorProto: {2: "value"},
    descriptor_pb2.ServiceDescriptorProto: {2: "method"},
}


@dataclass(frozen=True, slots=True)
class Binding:
    """One way to call an RPC with HTTP."""

    verb: str
    path: str
    body: bool
    """Whether there is one: the request but for what stands in the path. Without it that is in the query."""

    @property
    def path_fields(self) -> list[str]:
        """The fields that stand in the path."""
        return re.findall(r"\{(\w+)\}", self.path)


class Api:
    """All descriptors, by their full names."""

    def __init__(self, files: FileDescriptorSet) -> None:
        self._pool = DescriptorPool()
        self._comments: dict[str, str] = {}
        for file in files.file:
            self._pool.Add(file)
            self._comments |= _comments(file)

    def service(self, name: str) -> ServiceDescriptor:
        """Returns a service. Raises KeyError."""
        return self._pool.FindServiceByName(name)

    def message(self, name: str) -> Descriptor:
        """Returns a message. Raises KeyError."""
        return self._pool.FindMessageTypeByName(name)

    def comment(self, name: str) -> str:
        """Returns what stands above a definition, a paragraph a line; empty where nothing does."""
        return self._comments.get(name, "")

    def reasons(self, service: ServiceDescriptor) -> dict[str, str]:
        """Returns why a service's package may refuse, by the reason's name, each with its comment."""
        enum = self._pool.FindEnumTypeByName(f"{service.file.package}.ErrorReason")
        return {value.name: self.comment(f"{enum.full_name}.{value.name}") for value in enum.values if value.number}

    @staticmethod
    def bindings(method: MethodDescriptor) -> Iterator[Binding]:
        """Yields each google.api.http binding of an RPC. Raises ValueError for a body that is one field."""
        rule = method.GetOptions().Extensions[annotations_pb2.http]
        for binding in (rule, *rule.additional_bindings):
            if binding.body not in ("", "*"):
                raise ValueError(f"{method.full_name}: a body is the whole request here")
            if verb := binding.WhichOneof("pattern"):
                yield Binding(verb.upper(), getattr(binding, verb), bool(binding.body))


def short_name(name: str) -> str:
    """`seat.SeatMap.Cabin` for `skyhigh.seat.v1.SeatMap.Cabin`."""
    return re.sub(r"^skyhigh\.(\w+)\.v1\.", r"\1.", name)


def _comments(file: descriptor_pb2.FileDescriptorProto) -> dict[str, str]:
    found: dict[str, str] = {}
    for location in file.source_code_info.location:
        if location.leading_comments and (name := _name_at(file, list(location.path))):
            found[name] = _paragraphs(location.leading_comments)
    return found


def _name_at(file: descriptor_pb2.FileDescriptorProto, path: list[int]) -> str | None:
    """The full name of what a comment's path leads to; None for an option or another part without a name."""
    if not path or len(path) % 2:
        return None
    node: Any = file
    name = file.package
    for kind, index in zip(path[::2], path[1::2], strict=True):
        children = _CHILDREN.get(type(node), {}).get(kind)
        if children is None:
            return None
        node = getattr(node, children)[index]
        name = f"{name}.{node.name}"
    return name


def _paragraphs(comment: str) -> str:
    lines = [line.strip() for line in comment.splitlines() if not line.strip().startswith("buf:lint:")]
    paragraphs = re.split(r"\n{2,}", "\n".join(lines).strip())
    return "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)

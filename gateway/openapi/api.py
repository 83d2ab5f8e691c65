"""Access to the compiled protos: services, messages, HTTP bindings and comments."""

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

# A location's path names the element of a comment by pairs: a field number of these descriptors, and an index.
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
    """True if the fields that are not in the path are in the body; False if they are in the query."""

    @property
    def path_fields(self) -> list[str]:
        """Returns the names of the fields in the path."""
        return re.findall(r"\{(\w+)\}", self.path)


class Api:
    """All descriptors and their comments, by full name."""

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
        """Returns the comment above a definition; empty if there is none.

        Each paragraph is one line.
        """
        return self._comments.get(name, "")

    def reasons(self, service: ServiceDescriptor) -> dict[str, str]:
        """Returns the refusal reasons of the service's package.

        They are the values of its ErrorReason enum, each name with its comment.
        """
        enum = self._pool.FindEnumTypeByName(f"{service.file.package}.ErrorReason")
        return {value.name: self.comment(f"{enum.full_name}.{value.name}") for value in enum.values if value.number}

    @staticmethod
    def bindings(method: MethodDescriptor) -> Iterator[Binding]:
        """Yields each google.api.http binding of an RPC.

        Raises ValueError if a body is only one field of the request.
        """
        rule = method.GetOptions().Extensions[annotations_pb2.http]
        for binding in (rule, *rule.additional_bindings):
            if binding.body not in ("", "*"):
                raise ValueError(f"{method.full_name}: a body is the whole request here")
            if verb := binding.WhichOneof("pattern"):
                yield Binding(verb.upper(), getattr(binding, verb), bool(binding.body))


def short_name(name: str) -> str:
    """Returns `seat.SeatMap.Cabin` for `skyhigh.seat.v1.SeatMap.Cabin`."""
    return re.sub(r"^skyhigh\.(\w+)\.v1\.", r"\1.", name)


def _comments(file: descriptor_pb2.FileDescriptorProto) -> dict[str, str]:
    found: dict[str, str] = {}
    for location in file.source_code_info.location:
        if location.leading_comments and (name := _name_at(file, list(location.path))):
            found[name] = _paragraphs(location.leading_comments)
    return found


def _name_at(file: descriptor_pb2.FileDescriptorProto, path: list[int]) -> str | None:
    """Returns the full name of a comment's element.

    None for an option or another element without a name.
    """
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

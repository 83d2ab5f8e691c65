"""The compiled protos, and the HTTP bindings in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet, MethodDescriptorProto
from skyhigh.seat.v1 import seat_service_pb2

# protos/build_hook.py writes it beside the stubs.
DESCRIPTORS = Path(seat_service_pb2.__file__).parents[3] / "skyhigh.binpb"


def read_descriptors(path: Path = DESCRIPTORS) -> FileDescriptorSet:
    """Returns the compiled protos without their comments.

    Envoy does not need the comments and would keep them in memory.
    """
    api = FileDescriptorSet.FromString(path.read_bytes())
    for file in api.file:
        file.ClearField("source_code_info")
    return api


def json_bindings(method: MethodDescriptorProto) -> Iterator[tuple[str, str]]:
    """Yields (HTTP method, path template) for each google.api.http binding of an RPC."""
    rule = method.options.Extensions[annotations_pb2.http]
    for binding in (rule, *rule.additional_bindings):
        if verb := binding.WhichOneof("pattern"):
            yield verb.upper(), getattr(binding, verb)

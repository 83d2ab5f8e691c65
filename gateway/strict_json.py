"""The Lua tables of `strict_json.lua` and `errors.lua`.

They have the routes, their bodies, and the names and types of fields.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

SCRIPT: Final = Path(__file__).with_suffix(".lua")
# In JSON these messages are a string or another plain value, not an object.
_NOT_OBJECTS: Final = frozenset(
    f".google.protobuf.{name}"
    for name in (
        "Timestamp",
        "Duration",
        "FieldMask",
        "BoolValue",
        "StringValue",
        "BytesValue",
        "Int32Value",
        "Int64Value",
        "UInt32Value",
        "UInt64Value",
        "FloatValue",
        "DoubleValue",
    )
)
_HTTP_BODY: Final = ".google.api.HttpBody"


def script(api: FileDescriptorSet, methods: Iterable[MethodDescriptorProto]) -> str:
    """Returns the Lua text of the filter, tables first."""
    messages = {
        name: message for file in api.file for name, message in _messages(f".{file.package}", file.message_type)
    }
    routes: dict[str, list[Any]] = {}
    for verb, route in _routes(methods):
        routes.setdefault(verb, []).append(route)
    types: dict[str, dict[str, Any]] = {}
    wanted = [route["type"] for each in routes.values() for route in each if route["body"] != "raw"]
    while wanted:
        name = wanted.pop()
        if name in types:
            continue
        types[name] = {}
        for field in messages[name].field:
            entry = _entry(field, messages)
            types[name] |= {field.name: entry, field.json_name: entry}
            wanted += [entry["type"]] if "type" in entry and entry["type"] in messages else []
    return f"local ROUTES = {_lua(routes)}\nlocal TYPES = {_lua(types)}\n{SCRIPT.read_text()}"


def names(api: FileDescriptorSet) -> str:
    """Returns the table of `errors.lua`.

    It has the JSON name of each of our fields whose proto name differs. The fields of options are never sent.
    """
    found = {
        field.name: field.json_name
        for file in api.file
        if file.package.startswith("skyhigh.") and not file.package.startswith("skyhigh.options.")
        for _, message in _messages(f".{file.package}", file.message_type)
        for field in message.field
        if field.name != field.json_name
    }
    return f"local NAMES = {_lua(dict(sorted(found.items())))}\n"


def _routes(methods: Iterable[MethodDescriptorProto]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (HTTP method, row) for each binding.

    The row's `body` is json, raw (any bytes) or none.
    """
    for method in methods:
        rule = method.options.Extensions[annotations_pb2.http]
        for binding in (rule, *rule.additional_bindings):
            verb = binding.WhichOneof("pattern")
            if verb:
                template = getattr(binding, verb)
                literals = [re.sub(r"(\W)", r"%\1", part) for part in re.split(r"\{\w+\}", template)]
                body = ("raw" if method.input_type == _HTTP_BODY else "json") if binding.body else "none"
                yield (
                    verb.upper(),
                    {
                        "path": f"^{'([^/]+)'.join(literals)}/?$",
                        "type": method.input_type,
                        "fields": re.findall(r"\{(\w+)\}", template),
                        "body": body,
                    },
                )


def _messages(scope: str, messages: Iterable[DescriptorProto]) -> Iterator[tuple[str, DescriptorProto]]:
    for message in messages:
        name = f"{scope}.{message.name}"
        yield name, message
        yield from _messages(name, message.nested_type)


def _entry(field: FieldDescriptorProto, messages: Mapping[str, DescriptorProto]) -> dict[str, Any]:
    """Returns the row of a field. A map is an object in JSON that may have any key."""
    entry: dict[str, Any] = {"name": field.name}
    is_message = field.type == FieldDescriptorProto.TYPE_MESSAGE
    if is_message and field.type_name in messages and messages[field.type_name].options.map_entry:
        return entry | {"type": "map"}
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        entry["list"] = True
    if is_message and field.type_name not in _NOT_OBJECTS:
        entry["type"] = field.type_name
    return entry


def _lua(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        case list():
            return "{" + ",".join(map(_lua, value)) + "}"
        case dict():
            return "{" + ",".join(f"[{_lua(key)}]={_lua(each)}" for key, each in value.items()) + "}"
        case _:
            raise TypeError(value)

"""Envoy's routes: one for each exposed RPC and served file, and the refusal of other methods on their paths."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.descriptor_pb2 import FileDescriptorSet, MethodDescriptorProto, ServiceDescriptorProto

from gateway import filters, template
from gateway.descriptors import json_bindings
from gateway.exposure import LARGE_BODY_BYTES, NOT_OURS, SERVICES, Call, ServiceExposure
from gateway.guard.settings import RateLimits
from gateway.limits import SHARED
from gateway.openapi import page
from gateway.settings import GatewaySettings

# The regex of a variable in a path.
ONE_SEGMENT = "[^/]+"


class ExposureError(ValueError):
    """The table of exposure.py and the protos do not match."""


class Rpc(NamedTuple):
    """An RPC that outside clients can call."""

    service: ServiceExposure
    method: MethodDescriptorProto
    call: Call


def exposed_rpcs(api: FileDescriptorSet) -> Iterator[Rpc]:
    """Yields the RPCs that outside clients can call.

    Raises ExposureError if exposure.py does not list exactly the services and RPCs of the protos.
    """
    exposed = {service.name: service for service in SERVICES}
    found: dict[str, ServiceDescriptorProto] = {
        f"{file.package}.{service.name}": service
        for file in api.file
        if file.package.startswith("skyhigh.")
        for service in file.service
    }
    _same("services", set(found) - NOT_OURS, set(exposed))
    for name, service in exposed.items():
        methods = {method.name: method for method in found[name].method}
        _same(f"RPCs of {name}", set(methods), set(service.calls))
        for rpc, call in service.calls.items():
            if call is not Call.INTERNAL:
                yield Rpc(service, methods[rpc], call)


def _same(what: str, in_protos: set[str], in_table: set[str]) -> None:
    if missing := in_protos - in_table:
        raise ExposureError(f"gateway/exposure.py does not list these {what}: {sorted(missing)}")
    if stale := in_table - in_protos:
        raise ExposureError(f"gateway/exposure.py lists {what} that the protos do not have: {sorted(stale)}")


def rpc_routes(rpcs: Sequence[Rpc], settings: GatewaySettings, patterns: Mapping[str, Any]) -> Iterator[Any]:
    """Yields the routes of the RPCs by their gRPC paths; Envoy transcodes JSON before it routes."""
    for service, method, call in rpcs:
        yield template.fill(
            patterns[call.value],
            {
                "rpc": f"{service.cluster}.{method.name}",
                "path": f"/{service.name}/{method.name}",
                "cluster": service.cluster + ("-watch" if call is Call.WATCH else ""),
                "token": patterns["no_token" if method.name in service.public else "token"],
                "body": _large_body(patterns) if method.name in service.large else None,
                "class": service.class_of(method.name),
                "shared_by": _shared_by(service, method, settings),
            },
        )


def wrong_method_routes(rpcs: Sequence[Rpc], patterns: Mapping[str, Any]) -> Iterator[Any]:
    """Yields the routes that refuse other HTTP methods on the paths of the RPCs."""
    large_paths = {
        path_regex(path)
        for rpc in rpcs
        if rpc.method.name in rpc.service.large
        for _, path in json_bindings(rpc.method)
    }
    for regex, verbs in _verbs_by_path(rpc.method for rpc in rpcs).items():
        body = {"envoy.filters.http.buffer": _large_body(patterns)} if regex in large_paths else None
        values = {"regex": regex, "allow": ", ".join(sorted(verbs)), "filters": body}
        yield template.fill(patterns["wrong_method"], values)


def docs_routes(openapi: Path, patterns: Mapping[str, Any]) -> Iterator[Any]:
    """Yields the routes of the files that the edge itself serves.

    The last route refuses other methods on their paths.
    """
    files = list(page.served_files(openapi))
    for served in files:
        yield template.fill(patterns["served_file"], {**asdict(served), "file": str(served.file)})
    regex = "|".join(re.escape(served.path) for served in files)
    values = {"regex": regex, "allow": ", ".join(page.METHODS), "filters": None}
    yield template.fill(patterns["wrong_method"], values) | {"name": "docs-wrong-method"}


def path_regex(path: str) -> str:
    """Returns the regex for a path template such as `/v1/holds/{hold_id}`.

    Raises ExposureError if a variable is not a whole segment.
    """
    parts = re.split(r"\{\w+\}", path)
    if any(set(part) & set("{}*=") for part in parts):
        raise ExposureError(f"{path}: only whole segments are variables here")
    return ONE_SEGMENT.join(map(re.escape, parts))


def _shared_by(service: ServiceExposure, method: MethodDescriptorProto, settings: GatewaySettings) -> list[Any] | None:
    """Returns the descriptors by which the gateway service counts a call.

    None if each Envoy counts it by itself.
    """
    if settings.rate_limits is RateLimits.OFF or service.class_of(method.name) not in SHARED:
        return None
    return list(filters.DESCRIPTORS)


def _large_body(patterns: Mapping[str, Any]) -> Any:
    return template.fill(patterns["large_body"], {"large_body_bytes": LARGE_BODY_BYTES})


def _verbs_by_path(methods: Iterable[MethodDescriptorProto]) -> dict[str, set[str]]:
    """Returns the HTTP methods of each path regex; literal paths come first.

    So `/v1/payments/webhook` is matched before `/v1/payments/{intent_id}`.
    """
    verbs: dict[str, set[str]] = {}
    for method in methods:
        for verb, path in json_bindings(method):
            verbs.setdefault(path_regex(path), set()).add(verb)
    return dict(sorted(verbs.items(), key=lambda found: found[0].count(ONE_SEGMENT)))

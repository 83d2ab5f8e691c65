"""Envoy's routes: one for each exposed RPC and served file, and the refusal of other methods on their paths."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.descriptor_pb2 import FileDescriptorSet, MethodDescriptorProto

from gateway import filters, template
from gateway.descriptors import json_bindings
from gateway.guard.settings import RateLimits
from gateway.limits import SHARED
from gateway.openapi import page
from gateway.settings import GatewaySettings
from gateway.upstreams import UPSTREAMS, Upstream
from services import rpcs
from services.rpcs import Effect, Rpc

# The regex of a variable in a path.
ONE_SEGMENT = "[^/]+"
# The pattern of an RPC's route.
ROUTES = {Effect.READ: "read", Effect.MUTATION: "write", Effect.UNKEYED_MUTATION: "write", Effect.STREAM: "watch"}
# A service gets a deadline so much before Envoy's, so that it responds DEADLINE_EXCEEDED itself.
DEADLINE_MARGIN_MILLISECONDS = 100


class ExposureError(ValueError):
    """The protos declare a route that cannot be rendered."""


class Exposed(NamedTuple):
    """An RPC that outside clients can call."""

    upstream: Upstream
    method: MethodDescriptorProto
    rpc: Rpc


def exposed_rpcs(api: FileDescriptorSet) -> Iterator[Exposed]:
    """Yields the RPCs that outside clients can call, in the order of `upstreams.py` and of the protos.

    Raises ExposureError if `upstreams.py` lacks the service of such an RPC, and DeclarationError if an RPC has no valid
    declaration.
    """
    found: dict[str, list[tuple[MethodDescriptorProto, Rpc]]] = {}
    for file in api.file:
        for service in file.service if file.package.startswith("skyhigh.") else ():
            name = f"{file.package}.{service.name}"
            declared = ((method, rpcs.of_options(f"{name}.{method.name}", method.options)) for method in service.method)
            found[name] = [(method, rpc) for method, rpc in declared if rpc.exposed]
    upstreams = {upstream.name: upstream for upstream in UPSTREAMS}
    if missing := sorted(name for name, exposed in found.items() if exposed and name not in upstreams):
        raise ExposureError(f"gateway/upstreams.py lacks services that have RPCs with a route: {missing}")
    for name, upstream in upstreams.items():
        for method, rpc in found[name]:
            yield Exposed(upstream, method, rpc)


def rpc_routes(exposed: Sequence[Exposed], settings: GatewaySettings, patterns: Mapping[str, Any]) -> Iterator[Any]:
    """Yields the routes of the RPCs by their gRPC paths; Envoy transcodes JSON before it routes."""
    for upstream, method, rpc in exposed:
        yield template.fill(
            patterns[ROUTES[rpc.effect]],
            {
                "rpc": f"{upstream.cluster}.{method.name}",
                "path": f"/{upstream.name}/{method.name}",
                "cluster": upstream.cluster + ("-watch" if rpc.effect is Effect.STREAM else ""),
                "token": patterns["no_token" if rpc.public else "token"],
                "body": _large_body(rpc, patterns),
                "class": rpc.call_class,
                "shared_by": _shared_by(rpc, settings),
                **_time_limits(rpc),
            },
        )


def wrong_method_routes(exposed: Sequence[Exposed], patterns: Mapping[str, Any]) -> Iterator[Any]:
    """Yields the routes that refuse other HTTP methods on the paths of the RPCs."""
    large_bodies = {
        path_regex(path): large_body
        for _, method, rpc in exposed
        if (large_body := _large_body(rpc, patterns))
        for _, path in json_bindings(method)
    }
    for regex, verbs in _verbs_by_path(each.method for each in exposed).items():
        body = {"envoy.filters.http.buffer": large_bodies[regex]} if regex in large_bodies else None
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


def _large_body(rpc: Rpc, patterns: Mapping[str, Any]) -> Any:
    """Returns the filter of an RPC with a body limit of its own; None if it has the default."""
    return (
        template.fill(patterns["large_body"], {"large_body_bytes": rpc.max_body_bytes}) if rpc.max_body_bytes else None
    )


def _time_limits(rpc: Rpc) -> dict[str, str]:
    """Returns Envoy's timeout, and the deadline of the service as `grpc-timeout`; nothing for a stream."""
    if rpc.seconds is None:
        return {}
    milliseconds = round(rpc.seconds * 1000) - DEADLINE_MARGIN_MILLISECONDS
    return {"timeout": f"{rpc.seconds:g}s", "deadline": f"{milliseconds}m"}


def _shared_by(rpc: Rpc, settings: GatewaySettings) -> list[Any] | None:
    """Returns the descriptors by which the gateway service counts a call.

    None if each Envoy counts it by itself.
    """
    if settings.rate_limits is RateLimits.OFF or rpc.call_class not in SHARED:
        return None
    return list(filters.DESCRIPTORS)


def _verbs_by_path(methods: Iterable[MethodDescriptorProto]) -> dict[str, set[str]]:
    """Returns the HTTP methods of each path regex; literal paths come first.

    So `/v1/payments/webhook` is matched before `/v1/payments/{intent_id}`.
    """
    verbs: dict[str, set[str]] = {}
    for method in methods:
        for verb, path in json_bindings(method):
            verbs.setdefault(path_regex(path), set()).add(verb)
    return dict(sorted(verbs.items(), key=lambda found: found[0].count(ONE_SEGMENT)))

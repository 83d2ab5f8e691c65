"""Who may call what; a method without a row is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from services.auth import Access, Effect, Role, allow

A, O, S = Role.AGENT, Role.OPERATIONS, Role.SERVICE  # noqa: E741

POLICY: Final[Mapping[str, Access]] = {
    "ListIncidents": allow(A, O, effect=Effect.READ),
    "ListBlocks": allow(A, O, effect=Effect.READ),
    "LiftBlock": allow(A, O, effect=Effect.WRITE),
    "ListLimits": allow(A, O, effect=Effect.READ),
    "SetLimit": allow(O, effect=Effect.WRITE),
}

# What Envoy asks and tells. Whoever could do so in its place could use up anybody's limit, or blame anybody.
ENVOY_POLICY: Final[Mapping[str, Access]] = {
    "ShouldRateLimit": allow(S, effect=Effect.READ),
    "StreamAccessLogs": allow(S, effect=Effect.STREAM),
    "StreamExtensionConfigs": allow(S, effect=Effect.STREAM),
}

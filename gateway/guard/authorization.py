"""The roles that may call each method; a method without a row is refused."""

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

# The methods that Envoy calls. A caller that could imitate Envoy could use up the limits of any source, or have it
# blocked.
ENVOY_POLICY: Final[Mapping[str, Access]] = {
    "ShouldRateLimit": allow(S, effect=Effect.READ),
    "StreamAccessLogs": allow(S, effect=Effect.STREAM),
    "StreamExtensionConfigs": allow(S, effect=Effect.STREAM),
}

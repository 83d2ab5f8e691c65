"""Channels to other services: with deadlines, and a retry of UNAVAILABLE only, because only then nothing happened."""

from __future__ import annotations

import json
from typing import Final

import grpc

# Three tries within a second; a budget keeps a sick callee from being hit three times as hard.
_RETRY: Final = {
    "maxAttempts": 3,
    "initialBackoff": "0.05s",
    "maxBackoff": "0.5s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


def service_config(service: str, *, timeout_seconds: float) -> str:
    """Returns the gRPC service config for calls of one proto service."""
    return json.dumps(
        {
            "methodConfig": [{"name": [{"service": service}], "timeout": f"{timeout_seconds}s", "retryPolicy": _RETRY}],
            "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
            "loadBalancingConfig": [{"round_robin": {}}],
        }
    )


def channel(address: str, *, service: str, timeout_seconds: float = 5) -> grpc.aio.Channel:
    """Opens a channel to `host:port`. Calls without a deadline get `timeout_seconds`."""
    return grpc.aio.insecure_channel(
        address,
        options=[
            ("grpc.service_config", service_config(service, timeout_seconds=timeout_seconds)),
            ("grpc.enable_retries", 1),
            ("grpc.keepalive_time_ms", 30_000),
        ],
    )

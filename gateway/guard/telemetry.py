"""Metrics of the gateway service."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter

OVER_LIMIT: Final = Counter(
    "skyhigh_over_limit_total", "Calls over a shared limit, refused or only counted.", ["limit", "outcome"]
)
INCIDENTS: Final = Counter("skyhigh_abuse_incidents_total", "Sources that were found abusing the gateway.", ["kind"])

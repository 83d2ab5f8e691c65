"""What the gateway service can be told."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.settings import ServiceSettings


class RateLimits(StrEnum):
    """What limits and blocks do."""

    ON = "on"
    SHADOW = "shadow"
    """They count and find, and refuse nobody."""
    OFF = "off"
    """The gateway has none; the service only answers GatewayAdmin."""


class GatewayServiceSettings(ServiceSettings):
    """Variables with the prefix `SKYHIGH_GATEWAY_`."""

    model_config = SettingsConfigDict(env_prefix="SKYHIGH_GATEWAY_", extra="ignore", frozen=True)

    listen: str = "127.0.0.1:50057"
    rate_limits: RateLimits = Field(default=RateLimits.ON, validation_alias="SKYHIGH_RATE_LIMITS")
    block_seconds: int = Field(default=600, ge=1, le=86_400)
    """How long a source that was found abusing stays out."""
    map_burst: int = Field(default=30, ge=1)
    """More seat maps than this in 5 s are abuse."""
    map_scan: int = Field(default=49, ge=1)
    """The maps of more flights than this in 2 s are abuse."""
    hold_spins: int = Field(default=20, ge=1)
    """More holds given up, or refused for the holds before, than this in 5 minutes are abuse."""
    failed_logins: int = Field(default=30, ge=1)
    """More failed logins from one address than this in 10 minutes are abuse."""
    hoarding_guests: int = Field(default=9, ge=1)
    """More guests of one address than this whose holds or bookings the seat service refused in 5 minutes are abuse."""
    policy_poll_seconds: float = Field(default=0.5, gt=0)
    """How often limits and blocks are read, for what other processes changed."""

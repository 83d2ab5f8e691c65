"""Settings of the gateway service."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.settings import ServiceSettings


class RateLimits(StrEnum):
    """Effect of limits and blocks."""

    ON = "on"
    SHADOW = "shadow"
    """They count calls and record abuse, but refuse nothing."""
    OFF = "off"
    """Envoy has no limits or blocks; the service only serves GatewayAdmin."""


class GatewayServiceSettings(ServiceSettings):
    """Settings from environment variables with the prefix `SKYHIGH_GATEWAY_`."""

    model_config = SettingsConfigDict(env_prefix="SKYHIGH_GATEWAY_", extra="ignore", frozen=True)

    listen: str = "127.0.0.1:50057"
    rate_limits: RateLimits = Field(default=RateLimits.ON, validation_alias="SKYHIGH_RATE_LIMITS")
    block_seconds: int = Field(default=600, ge=1, le=86_400)
    """Length of a block, in seconds."""
    map_burst: int = Field(default=30, ge=1)
    """More seat map requests than this in 5 s are abuse."""
    map_scan: int = Field(default=49, ge=1)
    """Requests for the maps of more flights than this in 2 s are abuse."""
    hold_spins: int = Field(default=20, ge=1)
    """More cancelled or (with 429) refused holds than this in 5 minutes are abuse."""
    failed_logins: int = Field(default=30, ge=1)
    """More failed logins from one address than this in 10 minutes are abuse."""
    hoarding_guests: int = Field(default=9, ge=1)
    """If holds or bookings of more guests of one address than this get a 429 in 5 minutes, that is abuse."""
    policy_poll_seconds: float = Field(default=0.5, gt=0)
    """Seconds between two reads of limits and blocks, which other processes may have changed."""

"""Settings of the seat service."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.settings import ServiceSettings


class SeatSettings(ServiceSettings):
    """Settings of the seat service, read from environment variables.

    Their prefix is `SKYHIGH_SEAT_`; variables that all parts share have their own names (docs/rules.md section 14).
    """

    model_config = SettingsConfigDict(env_prefix="SKYHIGH_SEAT_", extra="ignore", frozen=True)

    listen: str = "127.0.0.1:50051"
    flight_address: str = Field(default="127.0.0.1:50055", validation_alias="SKYHIGH_FLIGHT_ADDRESS")
    check_in_hold_ttl_seconds: float = Field(default=120, gt=0, validation_alias="SKYHIGH_CHECK_IN_HOLD_TTL_SECONDS")
    booking_hold_ttl_seconds: float = Field(default=900, gt=0, validation_alias="SKYHIGH_BOOKING_HOLD_TTL_SECONDS")
    offer_window_seconds: float = Field(default=10, gt=0, validation_alias="SKYHIGH_OFFER_WINDOW_SECONDS")
    hold_life_ttls: int = Field(default=10, ge=1, le=100)
    """The longest life of a hold, in TTLs: a hold can be extended or changed `hold_life_ttls - 1` times."""
    held_seats_limit: int = Field(default=9, ge=1)
    """The most seats that one passenger session or customer may hold on one flight at a time."""
    lapses_allowed: int = Field(default=10, ge=1)
    """The number of lapsed holds within `lapses_window_seconds` at which the principal's cool-down begins."""
    lapses_window_seconds: float = Field(default=900, gt=0)
    cool_down_seconds: float = Field(default=60, gt=0)
    """The length of the first cool-down; each further lapse doubles it, up to `lapses_window_seconds`."""
    held_seats_limit_per_address: int = Field(default=27, ge=1)
    """The most seats that all guests of one network address together may hold on one flight at a time."""
    lapses_allowed_per_address: int = Field(default=30, ge=1)
    """The number of lapsed holds of all guests of one address within the window at which its cool-down begins."""
    sweep_interval_seconds: float = Field(default=0.25, gt=0)
    watch_interval_seconds: float = Field(default=0.2, gt=0)
    """The interval at which a process reads the map of a flight that a client watches."""
    heartbeat_seconds: float = Field(default=10, gt=0, le=15)

    @property
    def check_in_hold_ttl(self) -> timedelta:
        """The TTL of a hold for check-in."""
        return timedelta(seconds=self.check_in_hold_ttl_seconds)

    @property
    def booking_hold_ttl(self) -> timedelta:
        """The TTL of a hold for a booking."""
        return timedelta(seconds=self.booking_hold_ttl_seconds)

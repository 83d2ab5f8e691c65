"""What the seat service can be told."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.settings import ServiceSettings


class SeatSettings(ServiceSettings):
    """Variables with the prefix `SKYHIGH_SEAT_`, and those that all parts share (docs/rules.md section 14)."""

    model_config = SettingsConfigDict(env_prefix="SKYHIGH_SEAT_", extra="ignore", frozen=True)

    listen: str = "127.0.0.1:50051"
    flight_address: str = Field(default="127.0.0.1:50055", validation_alias="SKYHIGH_FLIGHT_ADDRESS")
    check_in_hold_ttl_seconds: float = Field(default=120, gt=0, validation_alias="SKYHIGH_CHECK_IN_HOLD_TTL_SECONDS")
    booking_hold_ttl_seconds: float = Field(default=900, gt=0, validation_alias="SKYHIGH_BOOKING_HOLD_TTL_SECONDS")
    offer_window_seconds: float = Field(default=10, gt=0, validation_alias="SKYHIGH_OFFER_WINDOW_SECONDS")
    hold_life_ttls: int = Field(default=10, ge=1, le=100)
    """The longest life of a hold, in times to live: a hold can be extended or changed one time fewer."""
    held_seats_limit: int = Field(default=9, ge=1)
    """Seats that one passenger session or customer may hold on one flight."""
    lapses_allowed: int = Field(default=10, ge=1)
    """Holds that may lapse within `lapses_window_seconds` before the principal is cooled down."""
    lapses_window_seconds: float = Field(default=900, gt=0)
    cool_down_seconds: float = Field(default=60, gt=0)
    """The first cool-down; each further lapse doubles it, up to `lapses_window_seconds`."""
    held_seats_limit_per_address: int = Field(default=27, ge=1)
    """Seats that all guests of one network address together may hold on one flight."""
    lapses_allowed_per_address: int = Field(default=30, ge=1)
    """Holds of all guests of one address that may lapse within the window before the address is cooled down."""
    sweep_interval_seconds: float = Field(default=0.25, gt=0)
    watch_interval_seconds: float = Field(default=0.2, gt=0)
    """How often a watched map is looked at."""
    heartbeat_seconds: float = Field(default=10, gt=0, le=15)

    @property
    def check_in_hold_ttl(self) -> timedelta:
        """Time to live of a hold for check-in."""
        return timedelta(seconds=self.check_in_hold_ttl_seconds)

    @property
    def booking_hold_ttl(self) -> timedelta:
        """Time to live of a hold for a booking."""
        return timedelta(seconds=self.booking_hold_ttl_seconds)

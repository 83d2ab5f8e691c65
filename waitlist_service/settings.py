"""What the waitlist service can be told."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.mail import MailSettings
from services.settings import CallerSettings


class WaitlistSettings(CallerSettings, MailSettings):
    """Variables with the prefix `SKYHIGH_WAITLIST_`, and those that all parts share (docs/rules.md section 14)."""

    model_config = SettingsConfigDict(env_prefix="SKYHIGH_WAITLIST_", extra="ignore", frozen=True)

    listen: str = "127.0.0.1:50053"
    flight_address: str = Field(default="127.0.0.1:50055", validation_alias="SKYHIGH_FLIGHT_ADDRESS")
    seat_address: str = Field(default="127.0.0.1:50051", validation_alias="SKYHIGH_SEAT_ADDRESS")
    checkin_address: str = Field(default="127.0.0.1:50052", validation_alias="SKYHIGH_CHECKIN_ADDRESS")
    mode: Literal["AUTO_CONFIRM", "OFFER"] = "AUTO_CONFIRM"
    """How seats are given on flights for which nobody decided."""
    offer_seconds: float = Field(default=120, gt=0)
    """How long an offer can be accepted: SKYHIGH_WAITLIST_OFFER_SECONDS."""
    sweep_interval_seconds: float = Field(default=4, gt=0)
    """How often the seats of a flight with waiting passengers are looked at, in case an event was lost."""

    @property
    def offer_ttl(self) -> timedelta:
        """How long an offer can be accepted."""
        return timedelta(seconds=self.offer_seconds)

    @property
    def sweep_interval(self) -> timedelta:
        """How often a flight is looked at."""
        return timedelta(seconds=self.sweep_interval_seconds)

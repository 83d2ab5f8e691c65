"""Settings of the waitlist service."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.mail import MailSettings
from services.settings import CallerSettings


class WaitlistSettings(CallerSettings, MailSettings):
    """Settings of the waitlist service, read from environment variables.

    Their prefix is `SKYHIGH_WAITLIST_`; variables that all parts share have their own names (docs/rules.md section 14).
    """

    model_config = SettingsConfigDict(env_prefix="SKYHIGH_WAITLIST_", extra="ignore", frozen=True)

    listen: str = "127.0.0.1:50053"
    flight_address: str = Field(default="127.0.0.1:50055", validation_alias="SKYHIGH_FLIGHT_ADDRESS")
    seat_address: str = Field(default="127.0.0.1:50051", validation_alias="SKYHIGH_SEAT_ADDRESS")
    checkin_address: str = Field(default="127.0.0.1:50052", validation_alias="SKYHIGH_CHECKIN_ADDRESS")
    mode: Literal["AUTO_CONFIRM", "OFFER"] = "AUTO_CONFIRM"
    """The mode of flights for which SetWaitlistMode was never called."""
    offer_seconds: float = Field(default=120, gt=0)
    """The time in which an offer can be accepted: SKYHIGH_WAITLIST_OFFER_SECONDS."""
    sweep_interval_seconds: float = Field(default=4, gt=0)
    """The interval at which the map of a flight with live entries is read, in case an event was lost."""

    @property
    def offer_ttl(self) -> timedelta:
        """The time in which an offer can be accepted."""
        return timedelta(seconds=self.offer_seconds)

    @property
    def sweep_interval(self) -> timedelta:
        """The interval between two sweeps of a flight."""
        return timedelta(seconds=self.sweep_interval_seconds)

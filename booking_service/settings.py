"""Settings of the booking service."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.mail import MailSettings
from services.settings import CallerSettings


class BookingSettings(CallerSettings, MailSettings):
    """Variables with the prefix `SKYHIGH_BOOKING_`.

    The seat service's settings decide how long a booking's seats are held.
    """

    model_config = SettingsConfigDict(env_prefix="SKYHIGH_BOOKING_", extra="ignore", frozen=True)

    listen: str = "127.0.0.1:50056"
    session_key: Path = Field(validation_alias="SKYHIGH_SESSION_KEY")
    """A file with the private JWK that signs guest sessions."""
    session_ttl_seconds: float = Field(default=86_400, gt=0)
    """For one day a guest can return to a booking with the token that created it."""
    checkin_address: str = Field(default="127.0.0.1:50052", validation_alias="SKYHIGH_CHECKIN_ADDRESS")
    seat_address: str = Field(default="127.0.0.1:50051", validation_alias="SKYHIGH_SEAT_ADDRESS")
    payment_address: str = Field(default="127.0.0.1:50054", validation_alias="SKYHIGH_PAYMENT_ADDRESS")
    flight_address: str = Field(default="127.0.0.1:50055", validation_alias="SKYHIGH_FLIGHT_ADDRESS")
    payment_look_seconds: float = Field(default=0.5, gt=0)
    """Interval at which the attempts of a running payment are read."""
    watch_interval_seconds: float = Field(default=0.2, gt=0)
    """Interval at which watched bookings are read."""
    heartbeat_seconds: float = Field(default=10, gt=0, le=15)

    @property
    def session_ttl(self) -> timedelta:
        """How long a guest session lasts."""
        return timedelta(seconds=self.session_ttl_seconds)

    @property
    def payment_look(self) -> timedelta:
        """The interval at which a running payment is read."""
        return timedelta(seconds=self.payment_look_seconds)

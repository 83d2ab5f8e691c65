"""The settings of the check-in service."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Final

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.mail import MailSettings
from services.settings import CallerSettings

# The database counts attempts in a smallint: with a higher limit each login would fail.
MOST_LOGIN_TRIES: Final = 32_767


class CheckInSettings(CallerSettings, MailSettings):
    """Environment variables with the prefix `SKYHIGH_CHECKIN_`.

    Also those that all parts share (docs/rules.md section 14).
    """

    model_config = SettingsConfigDict(env_prefix="SKYHIGH_CHECKIN_", extra="ignore", frozen=True)

    listen: str = "127.0.0.1:50052"
    flight_address: str = Field(default="127.0.0.1:50055", validation_alias="SKYHIGH_FLIGHT_ADDRESS")
    session_key: Path = Field(validation_alias="SKYHIGH_SESSION_KEY")
    """A file with the private JWK that signs passenger sessions."""
    session_ttl_seconds: float = Field(default=1800, gt=0)
    payment_deadline_seconds: float = Field(default=1800, gt=0, validation_alias="SKYHIGH_PAYMENT_DEADLINE_SECONDS")
    """An unpaid check-in is cancelled this long after its bags were declared."""
    free_baggage_grams: int | None = Field(default=None, ge=0)
    """Free baggage of a STANDARD fare; if not set, the value of `fares.json`."""
    excess_fee_cents: int | None = Field(default=None, gt=0)
    """Price of each started kilogram of excess; if not set, the value of `fares.json`."""
    seat_address: str = Field(default="127.0.0.1:50051", validation_alias="SKYHIGH_SEAT_ADDRESS")
    payment_address: str = Field(default="127.0.0.1:50054", validation_alias="SKYHIGH_PAYMENT_ADDRESS")
    weight_address: str = Field(default="127.0.0.1:50061", validation_alias="SKYHIGH_WEIGHT_ADDRESS")
    login_tries_per_pnr: int = Field(default=5, ge=1, le=MOST_LOGIN_TRIES)
    login_tries_per_address: int = Field(default=20, ge=1, le=MOST_LOGIN_TRIES)
    login_window_seconds: float = Field(default=600, gt=0)
    login_answer_seconds: float = Field(default=0.1, ge=0)
    """The response to a login is sent after this time or a multiple of it, so that the time reveals nothing."""
    watch_interval_seconds: float = Field(default=0.2, gt=0)
    """How often watched check-ins are read."""
    heartbeat_seconds: float = Field(default=10, gt=0, le=15)

    @property
    def session_ttl(self) -> timedelta:
        """How long a passenger session lasts."""
        return timedelta(seconds=self.session_ttl_seconds)

    @property
    def payment_deadline(self) -> timedelta:
        """How long a fee may stay unpaid."""
        return timedelta(seconds=self.payment_deadline_seconds)

    @property
    def login_window(self) -> timedelta:
        """How long a login attempt counts."""
        return timedelta(seconds=self.login_window_seconds)

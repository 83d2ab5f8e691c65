"""Settings of the flight service."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from flight_service.itineraries import Connections
from services.settings import CallerSettings


class FlightSettings(CallerSettings):
    """Variables with the prefix `SKYHIGH_FLIGHT_`."""

    model_config = SettingsConfigDict(env_prefix="SKYHIGH_FLIGHT_", extra="ignore", frozen=True)

    listen: str = "127.0.0.1:50055"
    seat_address: str = Field(default="127.0.0.1:50051", validation_alias="SKYHIGH_SEAT_ADDRESS")
    horizon_days: int = Field(default=14, ge=0, le=60)
    """The number of days with flights of the schedule, today included.

    With 0 the service does not roll the schedule forward.
    """
    shortest_connection_minutes: int = Field(default=45, ge=0)
    longest_connection_minutes: int = Field(default=480, le=1440)

    @field_validator("longest_connection_minutes")
    @classmethod
    def _not_shorter(cls, longest: int, others: ValidationInfo) -> int:
        if longest < others.data.get("shortest_connection_minutes", 0):
            raise ValueError("must not be less than the shortest connection")
        return longest

    @property
    def connections(self) -> Connections:
        """The shortest and the longest connection time."""
        return Connections(
            shortest=timedelta(minutes=self.shortest_connection_minutes),
            longest=timedelta(minutes=self.longest_connection_minutes),
        )

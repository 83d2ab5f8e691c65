"""Reasons of cancelled check-ins and returned fees."""

from __future__ import annotations

from typing import Final

PAYMENT_TIMEOUT: Final = "PAYMENT_TIMEOUT"
SEAT_RELEASED: Final = "SEAT_RELEASED"
SEAT_NO_LONGER_FITS: Final = "SEAT_NO_LONGER_FITS"
BOOKING_CANCELLED: Final = "BOOKING_CANCELLED"
FLIGHT_CANCELLED: Final = "FLIGHT_CANCELLED"
FLIGHT_DEPARTED: Final = "FLIGHT_DEPARTED"

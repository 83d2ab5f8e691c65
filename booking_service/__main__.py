"""Runs the booking service: `python -m booking_service` (see services.app)."""

from booking_service.service import BOOKING_SERVICE
from services import app

app.run(BOOKING_SERVICE)

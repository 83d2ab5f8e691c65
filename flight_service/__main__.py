"""Runs the flight service: `python -m flight_service` (see services.app)."""

from flight_service.service import FLIGHT_SERVICE
from services import app

app.run(FLIGHT_SERVICE)

"""Runs the seat service: `python -m seat_service`. See services.app."""

from seat_service.service import SEAT_SERVICE
from services import app

app.run(SEAT_SERVICE)

"""Runs the waitlist service: `python -m waitlist_service`. See services.app."""

from services import app
from waitlist_service.service import WAITLIST_SERVICE

app.run(WAITLIST_SERVICE)

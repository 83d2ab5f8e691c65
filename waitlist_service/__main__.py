"""`python -m waitlist_service`: see services.app."""

from services import app
from waitlist_service.service import WAITLIST_SERVICE

app.run(WAITLIST_SERVICE)

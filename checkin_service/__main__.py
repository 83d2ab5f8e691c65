"""`python -m checkin_service`: see services.app."""

from checkin_service.service import CHECKIN_SERVICE
from services import app

app.run(CHECKIN_SERVICE)

"""`python -m payment_service`: see services.app."""

from payment_service.service import PAYMENT_SERVICE
from services import app

app.run(PAYMENT_SERVICE)

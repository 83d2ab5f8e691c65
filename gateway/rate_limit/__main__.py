"""`python -m gateway.rate_limit`: see services.app."""

from gateway.rate_limit.service import GATEWAY_SERVICE
from services import app

app.run(GATEWAY_SERVICE)

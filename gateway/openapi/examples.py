"""Values that mean something to a reader, by the name of the proto field."""

from __future__ import annotations

from typing import Any, Final

EXAMPLES: Final[dict[str, Any]] = {
    "aircraft_type": "A320",
    "contact_email": "zoe@example.com",
    "date": "2026-12-01",
    "departure_date": "2026-12-01",
    "destination": "LIS",
    "flight_id": "SH101-2026-12-01",
    "flight_number": "SH101",
    "gate": "A12",
    "given_name": "Zoë",
    "itinerary_id": "CF_FRA_LIS_SH101-2026-12-01",
    "last_name": "Müller",
    "layout_id": "A320-180Y",
    "limit_id": "hold-per-principal",
    "origin": "FRA",
    "passenger_id": "P1",
    "payment_code": "12345",
    "pnr": "XK4T7Q",
    "reason": "CHANGED_MIND",
    "seat_number": "12A",
    "source": "FRA",
    "weight_grams": 23000,
}

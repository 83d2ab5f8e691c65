"""Realistic example values, by the name of the proto field, or by `Message.field`."""

from __future__ import annotations

from typing import Any, Final

EXAMPLES: Final[dict[str, Any]] = {
    "GetItineraryRequest.itinerary_id": "CF_FRA_LIS_SH101-2026-12-01",
    "SearchFlightsRequest.source": "FRA",
    "aircraft_type": "A320",
    "arrival_time": "2026-12-01T11:00:00Z",
    "bags": [{"weightGrams": 23000}],
    "burst": 20,
    "contact_email": "zoe@example.com",
    "date": "2026-12-01",
    "departure_date": "2026-12-01",
    "departure_time": "2026-12-01T08:00:00Z",
    "destination": "LIS",
    "flight_id": "SH101-2026-12-01",
    "flight_number": "SH101",
    "gate": "A12",
    "given_name": "Zoë",
    "last_name": "Müller",
    "layout_id": "A320-180Y",
    "limit_id": "hold-per-principal",
    "origin": "FRA",
    "passenger_id": "P1",
    "payment_code": "12345",
    "pnr": "XK4T7Q",
    "price": {"currencyCode": "USD", "units": "90", "nanos": 0},
    "reason": "CHANGED_MIND",
    "requests_per_minute": 60,
    "seat_number": "12A",
    "weight_grams": 23000,
}

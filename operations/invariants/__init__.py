"""The invariants of docs/rules.md section 11, as SQL over all schemas.

The query of an invariant returns the rows that break it. All queries read one snapshot, so an invariant must hold at
every moment, also under load. A state that only background work brings about has a grace period, because that work
follows a change with a delay.
"""

from __future__ import annotations

from typing import Final

from operations.invariants.bookings import BOOKING_INVARIANTS
from operations.invariants.check_ins import CHECK_IN_INVARIANTS
from operations.invariants.flights import FLIGHT_INVARIANTS
from operations.invariants.gateway import GATEWAY_INVARIANTS
from operations.invariants.invariant import Invariant
from operations.invariants.payments import PAYMENT_INVARIANTS
from operations.invariants.seats import SEAT_INVARIANTS
from operations.invariants.services import SERVICE_INVARIANTS
from operations.invariants.waitlists import WAITLIST_INVARIANTS

INVARIANTS: Final = (
    *SEAT_INVARIANTS,
    *CHECK_IN_INVARIANTS,
    *PAYMENT_INVARIANTS,
    *WAITLIST_INVARIANTS,
    *FLIGHT_INVARIANTS,
    *BOOKING_INVARIANTS,
    *GATEWAY_INVARIANTS,
    *SERVICE_INVARIANTS,
)

__all__ = ["INVARIANTS", "Invariant"]

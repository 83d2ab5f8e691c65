"""What always holds (docs/rules.md section 11), as SQL over all schemas: each statement returns the offenders.

All of them are asked in one snapshot, so that they hold at every moment, also under load. What only background work
brings about has a grace, because right after a change it may still be on its way.
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

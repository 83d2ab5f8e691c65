"""Names of the timers that the transitions of check-ins set."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

# Names of timers. The subject is a check-in, for REFUND a payment intent, for the last two a flight.
PAYMENT_DEADLINE: Final = "payment-deadline"
RELEASE_SEAT: Final = "release-seat"
SETTLE_FEE: Final = "settle-fee"
REFUND: Final = "refund"
CHECK_SEAT: Final = "look-at-seat"
CANCEL_CHECK_INS: Final = "cancel-check-ins"
# A trigger of the table `flights` sets this timer.
DEPARTURE: Final = "departure"
# Delay of the first re-check of a seat: longer than the events of its confirmation and release normally take.
FIRST_CHECK: Final = timedelta(seconds=1)

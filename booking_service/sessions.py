"""Guest sessions: tokens for customers without a login."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

from skyhigh.booking.v1 import booking_service_pb2 as pb

from services.auth import Role
from services.proto import timestamp
from services.tokens import TokenSigner


class GuestSessions:
    """Opens guest sessions. Each has a new customer id, which owns its bookings."""

    def __init__(self, signer: TokenSigner, *, ttl: timedelta) -> None:
        self._signer = signer
        self._ttl = ttl

    def open(self) -> pb.GuestSession:
        """Returns a new customer's session."""
        customer_id = uuid4().hex
        token, end = self._signer.sign(Role.CUSTOMER, customer_id, ttl=self._ttl)
        return pb.GuestSession(token=token, expire_time=timestamp(end), customer_id=customer_id)

"""Passenger sessions: a token for a locator and a last name (CHK-2).

The token names only the locator. Services look up its passengers when they need them. So the token of a group of 99 is
as short as that of one passenger, and no token has to be revoked when a passenger's right ends.
"""

from __future__ import annotations

import asyncio
import math
from datetime import timedelta

from skyhigh.checkin.v1 import checkin_service_pb2 as pb

from checkin_service import refusals
from checkin_service.manifests import entitlements, names
from checkin_service.manifests.entitlements import Entitlements
from checkin_service.sessions import trips
from checkin_service.sessions.login_limits import LoginLimits
from checkin_service.sessions.trips import Traveller, Trips
from services import db
from services.auth import Role
from services.db import Pool
from services.proto import timestamp
from services.tokens import TokenSigner


class Sessions:
    """Opens passenger sessions.

    Each response is sent a multiple of `answer_seconds` after its request, so that the response time reveals nothing.
    """

    def __init__(
        self,
        pool: Pool,
        all_trips: Trips,
        all_entitlements: Entitlements,
        limits: LoginLimits,
        signer: TokenSigner,
        *,
        ttl: timedelta,
        answer_seconds: float,
    ) -> None:
        self._pool = pool
        self._trips = all_trips
        self._entitlements = all_entitlements
        self._limits = limits
        self._signer = signer
        self._ttl = ttl
        self._answer_seconds = answer_seconds

    async def open(self, *, pnr: str, last_name: str, address: str) -> pb.Session:
        """Returns a session for the locator's passengers.

        Raises TRIP_NOT_FOUND or TOO_MANY_TRIES.
        """
        clock = asyncio.get_running_loop().time
        arrival = clock()
        try:
            return await self._open(pnr.strip().upper(), last_name, address)
        finally:
            if self._answer_seconds:
                beats = math.ceil((clock() - arrival) / self._answer_seconds)
                await asyncio.sleep(arrival + beats * self._answer_seconds - clock())

    async def _open(self, pnr: str, last_name: str, address: str) -> pb.Session:
        noted = await self._limits.record(pnr=pnr, address=address)
        found, unknown = await self._matching(pnr, last_name)
        if not found:
            raise refusals.trip_not_found()
        await self._limits.delete(noted)
        # Sent now, so that the new session can hold a seat at once.
        await self._entitlements.try_to_send(unknown, pnr=pnr)
        token, end = self._signer.sign(Role.PASSENGER, pnr, ttl=self._ttl)
        return pb.Session(token=token, expire_time=timestamp(end), trip=await self._trips.described(pnr, found))

    async def _matching(self, pnr: str, last_name: str) -> tuple[list[Traveller], list[str]]:
        """Returns the trip's travellers, and the flights with changes to send.

        These are the flights on which the seat service does not know all passengers of the locator as they are. Both
        lists are empty if the pair is wrong: one lookup, whichever half of the pair is wrong.
        """
        async with db.transaction(self._pool) as conn:
            right = await conn.fetchval(
                """
                SELECT EXISTS (
                    SELECT FROM passengers JOIN flights USING (flight_id)
                    WHERE login_key = $1 AND departure_time > statement_timestamp() - interval '1 day')
                """,
                names.login_key(pnr, last_name),
            )
            if not right:
                return [], []
            return await trips.travellers(conn, pnr), await entitlements.unknown_flights(conn, pnr)

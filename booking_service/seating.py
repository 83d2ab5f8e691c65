"""Plans seats: those that customers name, else the best free ones."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Collection, Sequence

from booking_service import refusals
from booking_service.peers import Peers
from booking_service.records import CHILD, INFANT, Leg, SeatOf, Traveller
from services.clients import PeerRefusal

Place = tuple[str, str]
"""A seat of a flight: (flight_id, seat_number)."""


async def plan(
    peers: Peers,
    legs: Sequence[Leg],
    travellers: Sequence[Traveller],
    *,
    cabin: str,
    named: Sequence[SeatOf],
    lost: Collection[Place] = (),
) -> list[SeatOf]:
    """Returns a seat on every flight for each traveller who needs one.

    Named seats come first; the others get the best free seats. Seats that were `lost` to other callers a moment ago are
    left out, because the seat map may not show it yet. After a loss any good suggestion is taken instead of the best,
    so that two parties do not compete for the same seats again. Raises SEATS_UNAVAILABLE, or the refusal of the seat
    service.
    """
    try:
        chosen = await asyncio.gather(
            *(_choose(peers, leg.flight_id, travellers, cabin=cabin, named=named, lost=lost) for leg in legs)
        )
    except PeerRefusal as refusal:
        if not refusals.is_of_seats(refusal.reason):
            raise
        raise refusals.of_seats(refusal.reason, refusal.metadata) from refusal
    return [*named, *(seat for of_leg in chosen for seat in of_leg)]


async def _choose(
    peers: Peers,
    flight_id: str,
    travellers: Sequence[Traveller],
    *,
    cabin: str,
    named: Sequence[SeatOf],
    lost: Collection[Place],
) -> list[SeatOf]:
    here = {seat.passenger_id: seat.seat_number for seat in named if seat.flight_id == flight_id}
    infants = sum(traveller.type == INFANT for traveller in travellers)
    left = [each for each in travellers if each.type != INFANT and each.passenger_id not in here]
    if not left:
        return []
    offered = await peers.suggestions(
        flight_id,
        party_size=len(left),
        children=sum(traveller.type == CHILD for traveller in left),
        infants=infants,
        cabin=cabin,
        excluded={*here.values(), *(number for flight, number in lost if flight == flight_id)},
    )
    if not offered:
        raise refusals.of_seats("SEATS_UNAVAILABLE", {"flight_id": flight_id})
    seats = secrets.choice(offered) if lost else offered[0]
    grown_ups_first = sorted(left, key=lambda traveller: traveller.type == CHILD)
    return [
        SeatOf(flight_id, traveller.passenger_id, number)
        for traveller, number in zip(grown_ups_first, seats, strict=True)
    ]

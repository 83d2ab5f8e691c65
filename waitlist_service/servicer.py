"""gRPC servicer: converts requests to domain calls, and results to responses."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import UUID

from google.protobuf.message import Message
from skyhigh.waitlist.v1 import waitlist_service_pb2 as pb
from skyhigh.waitlist.v1.waitlist_service_pb2_grpc import WaitlistServiceServicer

from services import db, paging
from services.auth import Role
from services.db import Pool
from services.paging import PageTokens
from services.running_call import running
from services.transitions import Transitions
from waitlist_service import entries, offers
from waitlist_service.joining import Joining
from waitlist_service.offers import Offers

Context = Any


class WaitlistServicer(WaitlistServiceServicer):
    """The servicer of WaitlistService. The proto describes each RPC and its errors."""

    def __init__(
        self, *, pool: Pool, transitions: Transitions, joining: Joining, offers: Offers, page_tokens: PageTokens
    ) -> None:
        self._pool = pool
        self._transitions = transitions
        self._joining = joining
        self._offers = offers
        self._page_tokens = page_tokens

    async def JoinWaitlist(self, request: pb.JoinWaitlistRequest, context: Context) -> pb.WaitlistEntry:
        call = running()
        return await self._joining.join(call.principal, request, call.request_key(request))

    async def GetWaitlistEntry(self, request: pb.GetWaitlistEntryRequest, context: Context) -> pb.WaitlistEntry:
        # One moment for both statements: an entry that is WAITING in the first one counts in the second.
        async with db.snapshot(self._pool) as conn:
            return await entries.shown(conn, await entries.find(conn, UUID(request.entry_id), owner=_owner()))

    async def AcceptOffer(self, request: pb.AcceptOfferRequest, context: Context) -> pb.WaitlistEntry:
        return await self._offers.accept(
            UUID(request.entry_id), _key(request), owner=_owner(), actor=running().principal.name
        )

    async def DeclineOffer(self, request: pb.DeclineOfferRequest, context: Context) -> pb.WaitlistEntry:
        return await self._offers.decline(
            UUID(request.entry_id), _key(request), owner=_owner(), actor=running().principal.name
        )

    async def LeaveWaitlist(self, request: pb.LeaveWaitlistRequest, context: Context) -> pb.WaitlistEntry:
        return await self._offers.leave(
            UUID(request.entry_id), _key(request), owner=_owner(), actor=running().principal.name
        )

    async def ListWaitlist(self, request: pb.ListWaitlistRequest, context: Context) -> pb.ListWaitlistResponse:
        query = f"waitlist {request.flight_id}"
        principal = running().principal.name
        after = self._page_tokens.read(request.page_token, query=query, principal=principal) or 0
        size = paging.page_size(request.page_size)
        async with db.snapshot(self._pool) as conn:
            found = await entries.list_of(conn, request.flight_id, after_number=after, limit=size + 1)
            page, rest = found[:size], found[size:]
            shown = [await entries.shown(conn, entry) for entry in page]
        token = self._page_tokens.write(page[-1].number, query=query, principal=principal) if rest else ""
        return pb.ListWaitlistResponse(entries=shown, next_page_token=token)

    async def SetWaitlistMode(self, request: pb.SetWaitlistModeRequest, context: Context) -> pb.SetWaitlistModeResponse:
        return await self._transitions.run(
            running().request_key(request), pb.SetWaitlistModeResponse, partial(offers.set_mode, request)
        )


def _key(request: Message) -> Any:
    return running().request_key(request)


def _owner() -> str | None:
    """Returns the owner whose entries the caller may access; None for all owners."""
    principal = running().principal
    return principal.name if principal.role is Role.PASSENGER else None

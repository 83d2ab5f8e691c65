"""Converts the protos of GatewayAdmin to calls of the domain, and back.

It makes no decisions.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from skyhigh.gateway.v1 import gateway_admin_pb2 as pb
from skyhigh.gateway.v1.gateway_admin_pb2_grpc import GatewayAdminServicer

from gateway.guard import abuse, limits
from services import db, paging
from services.addresses import counted_source
from services.db import Conn, Pool
from services.paging import PageTokens
from services.running_call import running
from services.transitions import Transitions

Context = Any


class GatewayServicer(GatewayAdminServicer):
    """The GatewayAdmin service. Its proto documents what each RPC does and refuses."""

    def __init__(self, *, pool: Pool, transitions: Transitions, page_tokens: PageTokens) -> None:
        self._pool = pool
        self._transitions = transitions
        self._page_tokens = page_tokens

    async def ListIncidents(self, request: pb.ListIncidentsRequest, context: Context) -> pb.ListIncidentsResponse:
        source = counted_source(request.source)
        query = f"incidents {source}"
        size = paging.page_size(request.page_size)
        before = self._position(request.page_token, query)
        async with db.session(self._pool) as conn:
            found = await abuse.list_incidents(conn, source=source, before=before, limit=size + 1)
        page, rest = found[:size], found[size:]
        token = self._token(page[-1].detect_time, page[-1].incident_id, query) if rest else ""
        return pb.ListIncidentsResponse(incidents=page, next_page_token=token)

    async def ListBlocks(self, request: pb.ListBlocksRequest, context: Context) -> pb.ListBlocksResponse:
        source = counted_source(request.source)
        query = f"blocks {request.include_ended} {source}"
        size = paging.page_size(request.page_size)
        before = self._position(request.page_token, query)
        async with db.session(self._pool) as conn:
            found = await abuse.list_blocks(
                conn, source=source, include_ended=request.include_ended, before=before, limit=size + 1
            )
        page, rest = found[:size], found[size:]
        token = self._token(page[-1].create_time, page[-1].block_id, query) if rest else ""
        return pb.ListBlocksResponse(blocks=page, next_page_token=token)

    async def LiftBlock(self, request: pb.LiftBlockRequest, context: Context) -> pb.Block:
        async def lift(conn: Conn) -> pb.Block:
            return await abuse.lift(conn, UUID(request.block_id), actor=running().principal.name, reason=request.reason)

        return await self._transitions.run(running().request_key(request), pb.Block, lift)

    async def ListLimits(self, request: pb.ListLimitsRequest, context: Context) -> pb.ListLimitsResponse:
        async with db.session(self._pool) as conn:
            return pb.ListLimitsResponse(limits=await limits.list_all(conn))

    async def SetLimit(self, request: pb.SetLimitRequest, context: Context) -> pb.Limit:
        async def change(conn: Conn) -> pb.Limit:
            return await limits.change(
                conn,
                request.limit_id,
                requests_per_minute=request.requests_per_minute,
                burst=request.burst,
                mode=pb.Limit.Mode.Name(request.mode) if request.mode else None,
                actor=running().principal.name,
            )

        return await self._transitions.run(running().request_key(request), pb.Limit, change)

    def _position(self, token: str, query: str) -> tuple[datetime, UUID] | None:
        position = self._page_tokens.read(token, query=query, principal=running().principal.name)
        return (datetime.fromisoformat(position[0]), UUID(position[1])) if position else None

    def _token(self, time: Any, row_id: str, query: str) -> str:
        return self._page_tokens.write((time.ToJsonString(), row_id), query=query, principal=running().principal.name)

"""`skyhigh abuse`: prints the gateway's incidents and blocks, and lifts a block."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

import typer

from operations.connections import CALL_TIMEOUT_SECONDS, Metadata, ask
from operations.terminal import add_plain_row, fail, print_table, table, utc

if TYPE_CHECKING:
    from skyhigh.gateway.v1 import gateway_admin_pb2 as pb
    from skyhigh.gateway.v1.gateway_admin_pb2_grpc import GatewayAdminStub

Source = Annotated[
    str, typer.Option(metavar="SOURCE", help="Only of this source, such as customer:4711 or address:203.0.113.7.")
]
Rows = Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="Maximum number of rows.")]

PAGE_SIZE: Final = 100
NUMBERS: Final = ("COUNT", "THRESHOLD", "WINDOW")

abuse = typer.Typer(help="Abuse of the gateway: incidents and blocks.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Adds this group of commands."""
    app.add_typer(abuse, name="abuse")


@abuse.command()
def incidents(source: Source = "", limit: Rows = PAGE_SIZE) -> None:
    """Print the incidents, newest first."""
    asyncio.run(_ask(lambda stub, metadata: _incidents(stub, metadata, source, limit)))


@abuse.command()
def blocks(
    source: Source = "",
    *,
    every: Annotated[bool, typer.Option("--all", help="Include blocks that have ended.")] = False,
    limit: Rows = PAGE_SIZE,
) -> None:
    """Print the active blocks, newest first."""
    asyncio.run(_ask(lambda stub, metadata: _blocks(stub, metadata, source, every=every, limit=limit)))


@abuse.command()
def lift(
    block_id: Annotated[str, typer.Argument(metavar="BLOCK", help="UUID of the block.")],
    reason: Annotated[str, typer.Option(help="Why; it is stored with the block.")],
) -> None:
    """Lift a block before it ends. This takes effect at all gateways within about 1 s."""
    try:
        wanted = UUID(block_id)
    except ValueError:
        fail(f"{block_id!r} is not a UUID")
    asyncio.run(_ask(lambda stub, metadata: _lift(stub, metadata, wanted, reason)))


async def _ask(question: Callable[[GatewayAdminStub, Metadata], Awaitable[None]]) -> None:
    from skyhigh.gateway.v1.gateway_admin_pb2_grpc import GatewayAdminStub

    await ask("gateway", GatewayAdminStub, question)


async def _pages(call: Any, request: Any, metadata: Metadata, limit: int) -> AsyncIterator[Any]:
    """Yields the pages of a list RPC, with at most `limit` rows in total."""
    while limit > 0:
        request.page_size = min(PAGE_SIZE, limit)
        page = await call(request, metadata=metadata, timeout=CALL_TIMEOUT_SECONDS)
        yield page
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token
        limit -= request.page_size


async def _incidents(stub: GatewayAdminStub, metadata: Metadata, source: str, limit: int) -> None:
    from skyhigh.gateway.v1 import gateway_admin_pb2 as pb

    rows = table("DETECTED", "KIND", "SOURCE", "COUNT", "THRESHOLD", "WINDOW", "BLOCK", "LAST SEEN", numbers=NUMBERS)
    async for page in _pages(stub.ListIncidents, pb.ListIncidentsRequest(source=source), metadata, limit):
        for incident in page.incidents:
            add_plain_row(
                rows,
                utc(incident.detect_time),
                pb.Incident.Kind.Name(incident.kind),
                incident.source,
                str(incident.count),
                str(incident.threshold),
                f"{incident.window.ToSeconds()} s",
                incident.block_id,
                seen(incident.evidence),
            )
    print_table(rows, nothing="There are no incidents.")


async def _blocks(stub: GatewayAdminStub, metadata: Metadata, source: str, *, every: bool, limit: int) -> None:
    from skyhigh.gateway.v1 import gateway_admin_pb2 as pb

    rows = table("BLOCK", "SOURCE", "SCOPE", "KIND", "BEGAN", "ENDS", "LIFTED", "BY", "REASON", numbers=NUMBERS)
    request = pb.ListBlocksRequest(source=source, include_ended=every)
    async for page in _pages(stub.ListBlocks, request, metadata, limit):
        for block in page.blocks:
            add_plain_row(
                rows,
                block.block_id,
                block.source,
                pb.Block.Scope.Name(block.scope),
                pb.Incident.Kind.Name(block.kind),
                utc(block.create_time),
                utc(block.expire_time),
                utc(block.lift_time),
                block.lifted_by,
                block.lift_reason,
            )
    print_table(rows, nothing="There were no blocks." if every else "There are no active blocks.")


async def _lift(stub: GatewayAdminStub, metadata: Metadata, block_id: UUID, reason: str) -> None:
    from skyhigh.gateway.v1 import gateway_admin_pb2 as pb

    block: pb.Block = await stub.LiftBlock(
        pb.LiftBlockRequest(block_id=str(block_id), reason=reason), metadata=metadata, timeout=CALL_TIMEOUT_SECONDS
    )
    if block.HasField("lift_time"):
        lifted = f"{utc(block.lift_time)} by {block.lifted_by}: {block.lift_reason}"
        print(f"The block of {block.source} was lifted at {lifted}")
    else:
        print(f"The block of {block.source} had already ended at {utc(block.expire_time)}.")


def seen(evidence: Sequence[str]) -> str:
    """Returns the last item of an incident's evidence and the number of other items."""
    if not evidence:
        return ""
    others = len(set(evidence)) - 1
    return f"{evidence[-1]} and {others} others" if others else evidence[-1]

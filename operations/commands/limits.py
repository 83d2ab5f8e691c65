"""`skyhigh limits`: prints the rate limits of the running gateway, and changes one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from operations.connections import CALL_TIMEOUT_SECONDS, Metadata, ask
from operations.terminal import add_plain_row, print_table, table, utc

if TYPE_CHECKING:
    from skyhigh.gateway.v1 import gateway_admin_pb2 as pb
    from skyhigh.gateway.v1.gateway_admin_pb2_grpc import GatewayAdminStub

NUMBERS: Final = ("PER MINUTE", "BURST")


class Mode(StrEnum):
    """Whether a limit refuses the calls that exceed it, or only counts them."""

    ENFORCED = "enforced"
    SHADOW = "shadow"


limits = typer.Typer(help="Rate limits of the gateway.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Adds this group of commands."""
    app.add_typer(limits, name="limits")


@limits.command("list")
def list_() -> None:
    """Print all limits. A limit without a role applies to each role that has no limit of its own."""
    asyncio.run(_ask(_list))


@limits.command("set")
def set_(
    limit_id: Annotated[str, typer.Argument(metavar="LIMIT", help="Such as hold-per-principal.")],
    per_minute: Annotated[int, typer.Option(metavar="N", min=1, help="Calls per minute.")],
    burst: Annotated[int, typer.Option(metavar="N", min=1, help="Calls that an idle caller may make at once.")],
    mode: Annotated[
        Mode | None,
        typer.Option(
            help="Refuse the calls over the limit, or only count them. Default: unchanged.", show_default=False
        ),
    ] = None,
) -> None:
    """Change a limit. This takes effect at all gateways within about 1 s."""
    from skyhigh.gateway.v1 import gateway_admin_pb2 as pb

    request = pb.SetLimitRequest(limit_id=limit_id, requests_per_minute=per_minute, burst=burst)
    if mode is not None:
        request.mode = pb.Limit.Mode.Value(mode.name)
    asyncio.run(_ask(lambda stub, metadata: _set(stub, metadata, request)))


async def _ask(question: Callable[[GatewayAdminStub, Metadata], Awaitable[None]]) -> None:
    from skyhigh.gateway.v1.gateway_admin_pb2_grpc import GatewayAdminStub

    await ask("gateway", GatewayAdminStub, question)


async def _list(stub: GatewayAdminStub, metadata: Metadata) -> None:
    from skyhigh.gateway.v1 import gateway_admin_pb2 as pb

    answer = await stub.ListLimits(pb.ListLimitsRequest(), metadata=metadata, timeout=CALL_TIMEOUT_SECONDS)
    rows = table("LIMIT", "CLASS", "COUNTS BY", "ROLE", "PER MINUTE", "BURST", "MODE", "CHANGED", "BY", numbers=NUMBERS)
    for limit in answer.limits:
        add_plain_row(
            rows,
            limit.limit_id,
            limit.call_class,
            pb.Limit.Key.Name(limit.key).lower(),
            limit.role,
            str(limit.requests_per_minute),
            str(limit.burst),
            pb.Limit.Mode.Name(limit.mode),
            utc(limit.update_time),
            limit.updated_by,
        )
    print_table(rows, nothing="There are no limits.")


async def _set(stub: GatewayAdminStub, metadata: Metadata, request: pb.SetLimitRequest) -> None:
    from skyhigh.gateway.v1 import gateway_admin_pb2 as pb

    limit = await stub.SetLimit(request, metadata=metadata, timeout=CALL_TIMEOUT_SECONDS)
    mode = pb.Limit.Mode.Name(limit.mode)
    print(f"{limit.limit_id}: {limit.requests_per_minute} calls per minute, {limit.burst} at once, {mode}.")

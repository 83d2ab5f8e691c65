"""`skyhigh demo`: the demo airline."""

from __future__ import annotations

import asyncio
import datetime
from typing import Final

import typer

from operations.stack import address_of, fail
from operations.token import mint

# Flight number and cabin layout. Each flies every day.
SCHEDULE: Final = {
    "SH101": "A320-180Y",
    "SH202": "B738-189Y",
    "SH303": "A321-16C",
    "SH404": "E190-100Y",
    "SH505": "AT72-70Y",
    "SH606": "B789-3C",
}
DAYS: Final = 5
# Enough to keep the service busy, few enough that nobody else notices.
CALLS_AT_ONCE: Final = 8

demo = typer.Typer(help="The demo airline.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Adds the group."""
    app.add_typer(demo, name="demo")


@demo.callback()
def _group() -> None:
    """The demo airline."""


@demo.command()
def load() -> None:
    """Provision the seats of the demo airline's flights of the next days. A repeat changes nothing."""
    import grpc

    try:
        asyncio.run(provision(flights(datetime.datetime.now(datetime.UTC).date())))
    except grpc.aio.AioRpcError as error:
        fail(f"the seat service answered {error.code().name}: {error.details()}")


@demo.command()
def flight() -> None:
    """Print the id of one of the demo airline's flights, tomorrow's first, and nothing else."""
    tomorrow = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=1)
    print(next(iter(flights(tomorrow))))


def flights(first_day: datetime.date) -> dict[str, str]:
    """The cabin layout of each flight from this UTC date on, by flight id such as `SH101-2026-11-22`."""
    days = [first_day + datetime.timedelta(days=day) for day in range(DAYS)]
    return {f"{number}-{day}": layout for day in days for number, layout in SCHEDULE.items()}


async def provision(flights: dict[str, str]) -> None:
    """Has the seat service create the flights' seats. Raises grpc.aio.AioRpcError where it refuses."""
    import grpc
    from skyhigh.seat.v1 import seat_service_pb2, seat_service_pb2_grpc

    metadata = (("authorization", f"Bearer {mint('service', 'demo')}"),)
    at_once = asyncio.Semaphore(CALLS_AT_ONCE)
    async with grpc.aio.insecure_channel(address_of("SKYHIGH_SEAT_ADDRESS")) as channel:
        seats = seat_service_pb2_grpc.SeatServiceStub(channel)

        async def provision_one(flight_id: str, layout_id: str) -> int:
            async with at_once:
                answer = await seats.ProvisionSeats(
                    seat_service_pb2.ProvisionSeatsRequest(flight_id=flight_id, layout_id=layout_id),
                    metadata=metadata,
                    timeout=10,
                )
            return answer.total_seats

        totals = await asyncio.gather(*(provision_one(*flight) for flight in flights.items()))
    names = sorted(flights)
    layouts = len(set(flights.values()))
    print(f"{len(names)} flights of {layouts} cabin layouts, {sum(totals)} seats: {names[0]} … {names[-1]}")

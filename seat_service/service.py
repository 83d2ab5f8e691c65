"""Assembly of the seat service: its parts and background tasks."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Final

from skyhigh.seat.v1 import seat_service_pb2
from skyhigh.seat.v1.seat_service_pb2_grpc import add_SeatServiceServicer_to_server

from seat_service.flights import cancellations
from seat_service.flights.cancellations import Emptying
from seat_service.handlers import SUBSCRIPTIONS, on_flight_cancelled
from seat_service.holds import sweeper
from seat_service.holds.request_builder import RequestBuilder
from seat_service.inventory import Inventory
from seat_service.layouts.cabin_layouts import load_layouts
from seat_service.layouts.flight_layouts import FlightLayouts
from seat_service.layouts.layout_register import Layouts
from seat_service.manifests import departures
from seat_service.manifests.departures import Departing
from seat_service.maps import map_reconciler
from seat_service.maps.availability import Availability
from seat_service.maps.map_rendering import MapRenderer
from seat_service.maps.seat_map import CACHE_PREFIX, SeatMaps
from seat_service.maps.watch import Watches
from seat_service.servicer import SeatServicer
from seat_service.settings import SeatSettings
from services import cancelled_flights
from services.app import Parts, Service
from services.cache import VersionedCache
from services.db import Pool
from services.errors import Unavailable
from services.inbox import Consumer
from services.outbox import Relay
from services.paging import PageTokens
from services.reconciler import Reconciler
from services.timers import Handler, Timers


@asynccontextmanager
async def build(settings: SeatSettings, pool: Pool) -> AsyncIterator[Parts]:
    """Builds the parts of one process; closes their connections when the block ends."""
    layouts = Layouts(load_layouts())
    with contextlib.suppress(Unavailable):
        await layouts.check(pool)
    flight_layouts = FlightLayouts(pool, layouts)
    cache = VersionedCache(settings.redis_url, prefix=CACHE_PREFIX)
    relay = Relay(pool, settings.amqp_url, source="skyhigh/seat")
    maps = SeatMaps(pool, cache)
    availability = Availability(pool, layouts, relay)
    inventory = Inventory(pool, layouts=layouts, maps=maps, availability=availability, relay=relay)
    timers = Timers(
        pool,
        {
            cancellations.CANCEL_HOLDS: Handler(Emptying(pool, inventory).cancel_holds),
            departures.FOLLOW_DEPARTURE: Handler(Departing(pool, inventory, layouts).follow),
        },
    )
    # One event for each transaction (`together=False`): an event locks all seats of its flight. Two events in one
    # transaction would lock flights in the order of arrival, holds lock them by flight id, and the two could deadlock.
    events = Consumer(
        pool,
        settings.amqp_url,
        service="seat",
        name="events",
        subscriptions=SUBSCRIPTIONS,
        tell=timers.wake,
        together=False,
    )
    renderer = MapRenderer(layouts)
    servicer = SeatServicer(
        pool=pool,
        layouts=flight_layouts,
        requests=RequestBuilder(flight_layouts, settings),
        inventory=inventory,
        maps=maps,
        renderer=renderer,
        watches=Watches(
            maps,
            flight_layouts,
            renderer,
            interval_seconds=settings.watch_interval_seconds,
            heartbeat_seconds=settings.heartbeat_seconds,
        ),
        page_tokens=PageTokens(settings.page_token_key),
        offer_window=timedelta(seconds=settings.offer_window_seconds),
    )
    flights = cancelled_flights.comparison(
        pool,
        settings.flight_address,
        identity=settings.identity,
        known=cancellations.KNOWN,
        cancel=on_flight_cancelled,
    )
    try:
        async with flights as cancelled:
            reconciler = Reconciler(pool, [cancelled], interval=settings.reconcile, tell=timers.wake)
            yield Parts(
                register=partial(add_SeatServiceServicer_to_server, servicer),
                background={
                    "sweeper": partial(
                        sweeper.sweep, pool, inventory, interval_seconds=settings.sweep_interval_seconds
                    ),
                    "relay": relay.run,
                    "events": events.run,
                    "timers": timers.run,
                    "invalidation": maps.invalidate_changed,
                    "availability": availability.run,
                    "map-reconciler": partial(map_reconciler.reconcile, pool, cache, layouts),
                    "layouts": partial(layouts.watch, pool),
                    "reconciler": reconciler.run,
                },
                ready=lambda: layouts.complete,
            )
    finally:
        await cache.close()


SEAT_SERVICE: Final = Service(
    name="seat",
    package="seat_service",
    settings=SeatSettings,
    descriptor=seat_service_pb2.DESCRIPTOR.services_by_name["SeatService"],
    build=build,
)

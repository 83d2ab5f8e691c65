"""Assembles the flight service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from skyhigh.flight.v1 import flight_service_pb2
from skyhigh.flight.v1.flight_service_pb2_grpc import add_FlightServiceServicer_to_server

from flight_service.creating import Creating
from flight_service.handlers import SUBSCRIPTIONS
from flight_service.peers import Peers
from flight_service.rolling import Rolling
from flight_service.routes_cache import CACHE_PREFIX, RoutesCache
from flight_service.search import Search
from flight_service.servicer import FlightServicer
from flight_service.settings import FlightSettings
from flight_service.timetable import Timetables
from services.app import Parts, Service
from services.cache import VersionedCache
from services.db import Pool
from services.inbox import Consumer
from services.outbox import Relay
from services.paging import PageTokens
from services.transitions import Transitions

NAME: Final = "flight"


@asynccontextmanager
async def build(settings: FlightSettings, pool: Pool) -> AsyncIterator[Parts]:
    """Builds the parts of one process for the duration of the block."""
    peers = Peers(settings)
    cache = VersionedCache(settings.redis_url, prefix=CACHE_PREFIX)
    relay = Relay(pool, settings.amqp_url, source="skyhigh/flight")
    transitions = Transitions(pool, tell=relay.wake)
    servicer = FlightServicer(
        pool=pool,
        transitions=transitions,
        creating=Creating(pool, peers, transitions),
        search=Search(pool, Timetables(pool), RoutesCache(cache, settings.connections), settings.connections),
        page_tokens=PageTokens(settings.page_token_key),
    )
    events = Consumer(pool, settings.amqp_url, service=NAME, name="events", subscriptions=SUBSCRIPTIONS)
    background = {"relay": relay.run, "events": events.run}
    if settings.horizon_days:
        background["rolling"] = Rolling(pool, peers, horizon_days=settings.horizon_days).run
    try:
        yield Parts(register=partial(add_FlightServiceServicer_to_server, servicer), background=background)
    finally:
        await cache.close()
        await peers.close()


FLIGHT_SERVICE: Final = Service(
    name=NAME,
    package="flight_service",
    settings=FlightSettings,
    descriptor=flight_service_pb2.DESCRIPTOR.services_by_name["FlightService"],
    build=build,
)

"""Assembles the booking service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from skyhigh.booking.v1 import booking_service_pb2
from skyhigh.booking.v1.booking_service_pb2_grpc import add_BookingServiceServicer_to_server

from booking_service import records
from booking_service.changing import Changing
from booking_service.handlers import SUBSCRIPTIONS, on_flight_cancelled
from booking_service.notices import SERVICE
from booking_service.peers import Peers
from booking_service.reconciling import Payments
from booking_service.reserving import Reserving
from booking_service.servicer import BookingServicer
from booking_service.sessions import GuestSessions
from booking_service.settings import BookingSettings
from booking_service.steps import Steps
from services import cancelled_flights
from services.app import Parts, Service
from services.db import Pool
from services.inbox import Consumer
from services.mail import Postman
from services.outbox import Relay
from services.reconciler import Reconciler
from services.timers import Timers
from services.tokens import TokenSigner
from services.transitions import Transitions
from services.watch import Watches


@asynccontextmanager
async def build(settings: BookingSettings, pool: Pool) -> AsyncIterator[Parts]:
    """Builds the parts of one process for the duration of the block."""

    def tell() -> None:
        relay.wake()
        timers.wake()

    peers = Peers(settings)
    relay = Relay(pool, settings.amqp_url, source="skyhigh/booking")
    transitions = Transitions(pool, tell=tell)
    reserving = Reserving(pool, peers, transitions, tell=tell)
    timers = Timers(pool, Steps(pool, peers, reserving, payment_look=settings.payment_look, tell=tell).handlers())
    watches = Watches(
        pool,
        records.newer,
        interval_seconds=settings.watch_interval_seconds,
        heartbeat_seconds=settings.heartbeat_seconds,
    )
    servicer = BookingServicer(
        pool=pool,
        sessions=GuestSessions(
            TokenSigner(settings.session_key, issuer=settings.token_issuer, audience=settings.token_audience),
            ttl=settings.session_ttl,
        ),
        peers=peers,
        reserving=reserving,
        changing=Changing(pool, peers, transitions),
        watches=watches,
    )
    consume = partial(Consumer, pool, settings.amqp_url, service=SERVICE, tell=tell)
    events = consume(name="events", subscriptions=SUBSCRIPTIONS)
    mails = consume(name="mails", subscriptions=[Postman(settings).subscription(SERVICE)], together=False)
    flights = cancelled_flights.comparison(
        pool,
        settings.flight_address,
        identity=settings.identity,
        cancel=on_flight_cancelled,
    )
    try:
        async with flights as cancelled:
            comparisons = [cancelled, *Payments(pool, peers).comparisons()]
            yield Parts(
                register=partial(add_BookingServiceServicer_to_server, servicer),
                background={
                    "relay": relay.run,
                    "timers": timers.run,
                    "events": events.run,
                    "mails": mails.run,
                    "watches": watches.look,
                    "reconciler": Reconciler(pool, comparisons, interval=settings.reconcile, tell=tell).run,
                },
            )
    finally:
        await peers.close()


BOOKING_SERVICE: Final = Service(
    name="booking",
    package="booking_service",
    settings=BookingSettings,
    descriptor=booking_service_pb2.DESCRIPTOR.services_by_name["BookingService"],
    build=build,
)

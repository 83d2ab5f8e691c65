"""Assembly of the waitlist service: its parts and background tasks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from skyhigh.waitlist.v1 import waitlist_service_pb2
from skyhigh.waitlist.v1.waitlist_service_pb2_grpc import add_WaitlistServiceServicer_to_server

from services import cancelled_flights
from services.app import Parts, Service
from services.db import Pool
from services.inbox import Consumer
from services.mail import Postman
from services.outbox import Relay
from services.paging import PageTokens
from services.reconciler import Reconciler
from services.timers import Timers
from services.transitions import Transitions
from waitlist_service import cancellations
from waitlist_service.assignment import Assignment
from waitlist_service.entitlements import Entitlements
from waitlist_service.handlers import SUBSCRIPTIONS, on_flight_cancelled
from waitlist_service.joining import Joining
from waitlist_service.notices import SERVICE
from waitlist_service.offers import Offers
from waitlist_service.open_waitlists import OpenWaitlists
from waitlist_service.peers import Peers
from waitlist_service.servicer import WaitlistServicer
from waitlist_service.settings import WaitlistSettings


@asynccontextmanager
async def build(settings: WaitlistSettings, pool: Pool) -> AsyncIterator[Parts]:
    """Builds the parts of one process; closes their connections when the block ends."""

    def tell() -> None:
        relay.wake()
        timers.wake()

    peers = Peers(settings)
    open_waitlists = OpenWaitlists(pool, peers)
    entitlements = Entitlements(pool, peers, tell=tell)
    assignment = Assignment(pool, peers, open_waitlists, entitlements, settings, tell=tell)
    relay = Relay(pool, settings.amqp_url, source="skyhigh/waitlist")
    timers = Timers(pool, assignment.handlers(), at_once=128)
    transitions = Transitions(pool, tell=tell)
    servicer = WaitlistServicer(
        pool=pool,
        transitions=transitions,
        joining=Joining(peers, open_waitlists, transitions),
        offers=Offers(pool, assignment, entitlements, transitions),
        page_tokens=PageTokens(settings.page_token_key),
    )
    consume = partial(Consumer, pool, settings.amqp_url, service=SERVICE, tell=tell)
    # One event for each transaction (`together=False`), so that the event of one flight does not wait for the lock of
    # another flight.
    events = consume(name="events", subscriptions=SUBSCRIPTIONS, together=False)
    mails = consume(name="mails", subscriptions=[Postman(settings).subscription(SERVICE)], together=False)
    flights = cancelled_flights.comparison(
        pool,
        settings.flight_address,
        identity=settings.identity,
        known=cancellations.KNOWN,
        cancel=on_flight_cancelled,
    )
    try:
        async with flights as cancelled:
            comparisons = [cancelled, entitlements.comparison()]
            reconciler = Reconciler(pool, comparisons, interval=settings.reconcile, tell=tell)
            yield Parts(
                register=partial(add_WaitlistServiceServicer_to_server, servicer),
                background={
                    "relay": relay.run,
                    "timers": timers.run,
                    "events": events.run,
                    "mails": mails.run,
                    "reconciler": reconciler.run,
                },
            )
    finally:
        await peers.close()


WAITLIST_SERVICE: Final = Service(
    name="waitlist",
    package="waitlist_service",
    settings=WaitlistSettings,
    descriptor=waitlist_service_pb2.DESCRIPTOR.services_by_name["WaitlistService"],
    build=build,
)

"""Builds the check-in service from its parts, and declares it to services.app."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from skyhigh.checkin.v1 import checkin_service_pb2
from skyhigh.checkin.v1.checkin_service_pb2_grpc import add_CheckInServiceServicer_to_server

from checkin_service import records
from checkin_service.check_ins.fares import load_fares
from checkin_service.handlers import MANIFEST_SUBSCRIPTIONS, SUBSCRIPTIONS, on_flight_cancelled
from checkin_service.manifests.entitlements import Entitlements
from checkin_service.notices import SERVICE
from checkin_service.peers import Peers
from checkin_service.servicer import CheckInServicer
from checkin_service.sessions.login_limits import LoginLimits
from checkin_service.sessions.passenger_sessions import Sessions
from checkin_service.sessions.trips import Trips
from checkin_service.settings import CheckInSettings
from checkin_service.steps.declaring import Baggage
from checkin_service.steps.fee_reconciling import Fees
from checkin_service.steps.seating import Seating
from checkin_service.steps.starting import Starting
from checkin_service.steps.timed_steps import Steps
from services import cancelled_flights
from services.app import Parts, Service
from services.db import Pool
from services.inbox import Consumer
from services.mail import Postman
from services.outbox import Relay
from services.paging import PageTokens
from services.reconciler import Reconciler
from services.timers import Timers
from services.tokens import TokenSigner
from services.transitions import Transitions
from services.watch import Watches

# The gateway accepts a manifest of at most this size as JSON. For all other calls its limit is 64 KiB.
LARGEST_MESSAGE_BYTES: Final = 512 * 1024


@asynccontextmanager
async def build(settings: CheckInSettings, pool: Pool) -> AsyncIterator[Parts]:
    """Builds the parts of one process for the time of the block.

    Closes the channels to the other services when the block ends.
    """

    def tell() -> None:
        relay.wake()
        timers.wake()

    peers = Peers(settings)
    relay = Relay(pool, settings.amqp_url, source="skyhigh/checkin")
    entitlements = Entitlements(pool, peers)
    seating = Seating(pool, peers, entitlements, tell=tell)
    steps = Steps(pool, peers, tell=tell)
    timers = Timers(pool, {**steps.handlers(), **seating.handlers(), **entitlements.handlers()})
    transitions = Transitions(pool, tell=tell)
    fares = load_fares(
        standard_allowance_grams=settings.free_baggage_grams, fee_minor_units_per_kg=settings.excess_fee_cents
    )
    trips = Trips(pool, peers)
    limits = LoginLimits(
        pool,
        per_pnr=settings.login_tries_per_pnr,
        per_address=settings.login_tries_per_address,
        window=settings.login_window,
    )
    watches = Watches(
        pool,
        records.newer,
        interval_seconds=settings.watch_interval_seconds,
        heartbeat_seconds=settings.heartbeat_seconds,
    )
    servicer = CheckInServicer(
        pool=pool,
        transitions=transitions,
        sessions=Sessions(
            pool,
            trips,
            entitlements,
            limits,
            TokenSigner(settings.session_key, issuer=settings.token_issuer, audience=settings.token_audience),
            ttl=settings.session_ttl,
            answer_seconds=settings.login_answer_seconds,
        ),
        trips=trips,
        entitlements=entitlements,
        seating=seating,
        starting=Starting(pool, peers, entitlements, transitions, fares=fares),
        baggage=Baggage(pool, peers, seating, transitions, fares=fares, patience=settings.payment_deadline),
        watches=watches,
        page_tokens=PageTokens(settings.page_token_key),
    )
    consume = partial(Consumer, pool, settings.amqp_url, service=SERVICE, tell=tell)
    events = consume(name="events", subscriptions=SUBSCRIPTIONS)
    # Each of these events locks several flights. Two of them in one transaction could lock flights in another order
    # than a concurrent transaction and deadlock, so each event has its own transaction.
    manifests = consume(name="manifests", subscriptions=MANIFEST_SUBSCRIPTIONS, together=False)
    mails = consume(name="mails", subscriptions=[Postman(settings).subscription(SERVICE)], together=False)
    flights = cancelled_flights.comparison(
        pool,
        settings.flight_address,
        identity=settings.identity,
        cancel=on_flight_cancelled,
    )
    try:
        async with flights as cancelled:
            comparisons = [cancelled, *Fees(pool, peers).comparisons()]
            yield Parts(
                register=partial(add_CheckInServiceServicer_to_server, servicer),
                background={
                    "relay": relay.run,
                    "timers": timers.run,
                    "events": events.run,
                    "manifests": manifests.run,
                    "mails": mails.run,
                    "watches": watches.look,
                    "login-limits": limits.forget,
                    "reconciler": Reconciler(pool, comparisons, interval=settings.reconcile, tell=tell).run,
                },
            )
    finally:
        await peers.close()


CHECKIN_SERVICE: Final = Service(
    name="checkin",
    package="checkin_service",
    settings=CheckInSettings,
    descriptor=checkin_service_pb2.DESCRIPTOR.services_by_name["CheckInService"],
    build=build,
    largest_message_bytes=LARGEST_MESSAGE_BYTES,
)

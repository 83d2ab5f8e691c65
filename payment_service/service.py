"""Builds the payment service from its parts, and declares it to services.app."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from skyhigh.payment.v1 import payment_service_pb2
from skyhigh.payment.v1.payment_service_pb2_grpc import add_PaymentServiceServicer_to_server

from payment_service import webhooks
from payment_service.charging import Charging
from payment_service.provider import Provider
from payment_service.refunds import REFUND, Refunding
from payment_service.servicer import PaymentServicer
from payment_service.settings import PaymentSettings
from payment_service.verdicts import CHARGE, RECONCILE
from payment_service.webhooks import Signatures
from services.app import Parts, Service
from services.db import Pool
from services.outbox import Relay
from services.timers import Handler, Timers
from services.transitions import Transitions

# Seconds of a step's lease for its own transactions; the rest is for the provider's calls.
MARGIN_SECONDS: Final = 10
# A step only waits for the provider, up to ten seconds if it is slow; with few steps at once payments would queue.
STEPS_AT_ONCE: Final = 256


@asynccontextmanager
async def build(settings: PaymentSettings, pool: Pool) -> AsyncIterator[Parts]:
    """Builds the parts of one process for the time of the block.

    Closes the connections to the provider when the block ends.
    """
    relay = Relay(pool, settings.amqp_url, source="skyhigh/payment")
    provider = Provider(settings.provider_url, timeout_seconds=settings.attempt_seconds)

    def tell() -> None:
        relay.wake()
        timers.wake()

    charging = Charging(pool, provider, settings.attempts, tell=tell)
    refunding = Refunding(pool, provider, tell=tell)
    one_call = settings.attempt_seconds + MARGIN_SECONDS
    timers = Timers(
        pool,
        {
            CHARGE: Handler(charging.charge, lease_seconds=one_call),
            # Two calls: this step may ask for a charge and then void it.
            RECONCILE: Handler(charging.reconcile, lease_seconds=one_call + settings.attempt_seconds),
            REFUND: Handler(refunding.refund, lease_seconds=one_call),
        },
        at_once=STEPS_AT_ONCE,
    )
    servicer = PaymentServicer(
        pool=pool,
        transitions=Transitions(pool, tell=tell),
        signatures=Signatures(settings.webhook_secrets),
        attempts=settings.attempts,
    )
    try:
        yield Parts(
            register=partial(add_PaymentServiceServicer_to_server, servicer),
            background={
                "relay": relay.run,
                "timers": timers.run,
                "forgetting": partial(webhooks.forget_old, pool),
            },
        )
    finally:
        await provider.close()


PAYMENT_SERVICE: Final = Service(
    name="payment",
    package="payment_service",
    settings=PaymentSettings,
    descriptor=payment_service_pb2.DESCRIPTOR.services_by_name["PaymentService"],
    build=build,
)

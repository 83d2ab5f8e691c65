"""Payment services in this process: one provider answers, the other does not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import asyncpg
import pytest
from skyhigh.payment.v1.payment_service_pb2_grpc import PaymentServiceStub

from deploy.local.process import LOOPBACK, free_ports
from deploy.mocks.payment_provider import PaymentProvider, ProviderBehaviour, ProviderSettings, serving
from payment_service.service import PAYMENT_SERVICE
from services import db
from tests.callers import Caller
from tests.instances import database_with, running
from tests.payment.bridge import bridge
from tests.payment.rules import NEXT_SECRET, SECRET, Payments

if TYPE_CHECKING:
    from tests.conftest import World

# One hour: no timer of this length fires within a test.
NEVER: Final = "3600"
# The next attempt begins only when a test ends the pause (`Payments.goes_on`).
STEPWISE: Final = {
    "SKYHIGH_PAYMENT_BACKOFF_SECONDS": NEVER,
    "SKYHIGH_PAYMENT_BACKOFF_LIMIT_SECONDS": NEVER,
}
# PAY-3's times, twenty times as fast. The limit for an unknown outcome stays at an hour, and tests make charges older
# than that: on a slow machine a short limit would end within an attempt.
QUICK: Final = {
    "SKYHIGH_PAYMENT_ATTEMPT_SECONDS": "0.5",
    "SKYHIGH_PAYMENT_BACKOFF_SECONDS": "0.05",
    "SKYHIGH_PAYMENT_BACKOFF_LIMIT_SECONDS": "0.25",
    "SKYHIGH_PAYMENT_PATIENCE_SECONDS": NEVER,
}
PROMPT: Final = ProviderBehaviour(decision_delay_seconds=0.02)


@asynccontextmanager
async def payments(world: World, *, database_url: str = "", **variables: str) -> AsyncIterator[Payments]:
    """Runs a payment service within the block; `variables` are environment variables.

    By default it has a new database.
    """
    url = database_url or (await database_with(world, "payment"))["SKYHIGH_PAYMENT_DATABASE_URL"]
    variables = {
        "SKYHIGH_PAYMENT_DATABASE_URL": url,
        "SKYHIGH_PAYMENT_WEBHOOK_SECRETS": f"{SECRET},{NEXT_SECRET}",
        **variables,
    }
    async with running(world, PAYMENT_SERVICE, PaymentServiceStub, **variables) as callers:
        database = await asyncpg.connect(url, server_settings={"search_path": "payment"})
        pool = await db.connect(url, schema="payment", size=4)
        try:
            yield Payments(callers, database, url, pool)
        finally:
            await pool.close()
            await database.close()


@asynccontextmanager
async def paying(
    world: World, provider: PaymentProvider, *, database_url: str = "", **variables: str
) -> AsyncIterator[Payments]:
    """Runs a payment service with this provider, and its webhooks, within the block.

    `variables` are environment variables.
    """
    variables = {"SKYHIGH_PAYMENT_PROVIDER_URL": provider.url, **QUICK, **variables}
    former_url = provider.webhook_url
    async with (
        payments(world, database_url=database_url, **variables) as service,
        bridge(service.callers) as webhook_url,
    ):
        provider.webhook_url = webhook_url
        try:
            yield service
        finally:
            provider.webhook_url = former_url


@pytest.fixture(scope="package")
async def any_provider() -> AsyncIterator[PaymentProvider]:
    """The provider's mock of this package."""
    settings = ProviderSettings(listen="127.0.0.1:0", webhook_secret=SECRET, failure_rate=0.5, seed=1)
    async with serving(settings) as provider:
        yield provider


@pytest.fixture
def provider(any_provider: PaymentProvider) -> PaymentProvider:
    """The provider; it answers promptly at the start of each test."""
    any_provider.behaviour.now = PROMPT
    return any_provider


@pytest.fixture(scope="package")
async def prompt(world: World, any_provider: PaymentProvider) -> AsyncIterator[Payments]:
    """A service whose provider answers."""
    async with paying(world, any_provider) as service:
        yield service


@pytest.fixture
def payer(prompt: Payments) -> Caller:
    """A passenger who pays at the prompt service, a new one for each test."""
    return prompt.callers.passenger()


@pytest.fixture(scope="package")
async def silent(world: World) -> AsyncIterator[Payments]:
    """A service whose provider is unreachable.

    A payment begins, the outcome of its first charge is unknown, and no further attempt begins.
    """
    (unused_port,) = free_ports(1)
    async with payments(
        world,
        SKYHIGH_PAYMENT_PROVIDER_URL=f"http://{LOOPBACK}:{unused_port}",
        **STEPWISE,
    ) as serving:
        yield serving


@pytest.fixture
def passenger(silent: Payments) -> Caller:
    """A passenger who pays at the silent service, a new one for each test."""
    return silent.callers.passenger()

"""The whole airline behind a real Envoy.

Every service runs in this process, with mocks of the external systems.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skyhigh.booking.v1.booking_service_pb2_grpc import BookingServiceStub
from skyhigh.checkin.v1.checkin_service_pb2_grpc import CheckInServiceStub
from skyhigh.flight.v1.flight_service_pb2_grpc import FlightServiceStub
from skyhigh.gateway.v1.gateway_admin_pb2_grpc import GatewayAdminStub
from skyhigh.payment.v1.payment_service_pb2_grpc import PaymentServiceStub
from skyhigh.waitlist.v1.waitlist_service_pb2_grpc import WaitlistServiceStub

from booking_service.service import BOOKING_SERVICE
from checkin_service.service import CHECKIN_SERVICE
from deploy.local.process import free_ports
from deploy.local.servers.envoy import envoy
from deploy.local.supervisor import Supervisor
from deploy.mocks import mail, payment_provider, weight
from flight_service.service import FLIGHT_SERVICE
from gateway.guard.service import GATEWAY_SERVICE
from gateway.guard.settings import RateLimits
from gateway.render import write
from gateway.settings import GatewaySettings
from payment_service.service import PAYMENT_SERVICE
from tests.callers import ISSUER, Callers
from tests.instances import running
from tests.payment.rules import SECRET
from waitlist_service.service import WAITLIST_SERVICE

if TYPE_CHECKING:
    from tests.conftest import World

ANY_PORT = "127.0.0.1:0"


@dataclass(frozen=True, slots=True)
class Airline:
    """The running airline and its addresses."""

    url: str
    """The edge's URL."""
    folder: Path
    """The folder of the edge's files, such as openapi.json."""


@asynccontextmanager
async def whole_airline(world: World, seats: Callers, **variables: str) -> AsyncIterator[Airline]:
    """Runs the airline within the block, beside the session's seat service.

    `variables` are environment variables.
    """
    port, admin_port = free_ports(2)
    url = f"http://127.0.0.1:{port}"
    provider_settings = payment_provider.ProviderSettings(listen=ANY_PORT, webhook_secret=SECRET, seed=1)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        provider = await enter(payment_provider.serving(provider_settings))
        provider.webhook_url = f"{url}/v1/payments/webhook"
        scales = await enter(weight.serving(weight.WeightSettings(listen=ANY_PORT, control=ANY_PORT)))
        mails = await enter(mail.serving(mail.MailSettings(listen=ANY_PORT, control=ANY_PORT)))
        variables |= {
            "SKYHIGH_SEAT_ADDRESS": seats.address,
            "SKYHIGH_PAYMENT_PROVIDER_URL": provider.url,
            "SKYHIGH_PAYMENT_WEBHOOK_SECRETS": SECRET,
            "SKYHIGH_WEIGHT_ADDRESS": scales.address,
            "SKYHIGH_SMTP_ADDRESS": mails.address,
            "SKYHIGH_FLIGHT_HORIZON_DAYS": "0",
            "SKYHIGH_RATE_LIMITS": "off",
        }

        async def start(service: Any, stub: Any) -> Callers:
            callers = await enter(running(world, service, stub, **variables))
            variables[f"SKYHIGH_{service.name.upper()}_ADDRESS"] = callers.address
            return callers

        payments = await start(PAYMENT_SERVICE, PaymentServiceStub)
        checkin = await start(CHECKIN_SERVICE, CheckInServiceStub)
        waitlist = await start(WAITLIST_SERVICE, WaitlistServiceStub)
        flights = await start(FLIGHT_SERVICE, FlightServiceStub)
        bookings = await start(BOOKING_SERVICE, BookingServiceStub)
        admin = await start(GATEWAY_SERVICE, GatewayAdminStub)
        settings = GatewaySettings(
            rate_limits=RateLimits.OFF,
            gateway_port=port,
            gateway_admin_port=admin_port,
            seat_address=(seats.address,),
            checkin_address=(checkin.address,),
            waitlist_address=(waitlist.address,),
            payment_address=(payments.address,),
            flight_address=(flights.address,),
            booking_address=(bookings.address,),
            gateway_address=(admin.address,),
            jwks=world.keys.jwks,
            token_issuer=ISSUER,
        )
        folder = world.folder / f"edge-{port}"
        process = envoy(write(settings, folder), port=port)
        await enter(Supervisor([process], logs=world.folder / "logs", restart=False))
        yield Airline(url, folder)

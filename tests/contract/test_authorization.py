"""The roles that may call each RPC.

They are stated here a second time and compared with the guard of each method.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from skyhigh.booking.v1 import booking_service_pb2, booking_service_pb2_grpc
from skyhigh.checkin.v1 import checkin_service_pb2, checkin_service_pb2_grpc
from skyhigh.flight.v1 import flight_service_pb2, flight_service_pb2_grpc
from skyhigh.payment.v1 import payment_service_pb2, payment_service_pb2_grpc
from skyhigh.seat.v1 import seat_service_pb2, seat_service_pb2_grpc
from skyhigh.waitlist.v1 import waitlist_service_pb2, waitlist_service_pb2_grpc

from booking_service.service import BOOKING_SERVICE
from checkin_service.service import CHECKIN_SERVICE
from flight_service.service import FLIGHT_SERVICE
from payment_service.service import PAYMENT_SERVICE
from seat_service.service import SEAT_SERVICE
from services.app import Service
from services.auth import Access, Keys, Role, TokenVerifier
from services.interceptors import GuardedServer
from tests.callers import AUDIENCE, ISSUER, Caller, Callers, read, refused
from tests.conftest import World
from tests.dates import flight_id
from waitlist_service.service import WAITLIST_SERVICE

# Passenger, customer, agent, operations, service; "-" for a caller without a token.
MAY_CALL: Final[Mapping[str, Mapping[str, str]]] = {
    "SeatService": {
        "ProvisionSeats": "OS",
        "GetSeatMap": "PCAOS",
        "GetSeatMapJson": "PCAOS",
        "WatchSeatMap": "PCAOS",
        "SuggestSeats": "PCAS",
        "HoldSeat": "PCAS",
        "HoldSeats": "PCAS",
        "GetHold": "PCAOS",
        "ExtendHold": "PCAS",
        "ChangeHoldSeats": "PCAS",
        "ConfirmHold": "PAS",
        "CancelHold": "PCAS",
        "BlockSeat": "AO",
        "UnblockSeat": "AO",
        "ListSeatEvents": "AO",
        "ClaimSeat": "S",
        "ReturnSeat": "S",
        "ReleasePassengerSeat": "S",
        "FindPassengerSeats": "S",
        "SetWaitlistOpen": "S",
        "SyncPassengers": "S",
    },
    "CheckInService": {
        "ImportManifest": "OS",
        "CreateSession": "-",
        "GetTrip": "PA",
        "GetEligibility": "PAS",
        "StartCheckIn": "PA",
        "GetCheckIn": "PAO",
        "WatchCheckIn": "PAO",
        "DeclareBaggage": "PA",
        "CancelCheckIn": "PA",
        "GetBoardingPass": "PA",
        "GetBoardingPassSvg": "PA",
        "GetBoardingPassPng": "PA",
        "ListCheckIns": "AO",
        "GetPassenger": "S",
        "ReserveLocator": "S",
        "FindPassengers": "S",
    },
    "WaitlistService": {
        "JoinWaitlist": "PA",
        "GetWaitlistEntry": "PA",
        "AcceptOffer": "PA",
        "DeclineOffer": "PA",
        "LeaveWaitlist": "PA",
        "ListWaitlist": "AO",
        "SetWaitlistMode": "AO",
    },
    "PaymentService": {
        "CreatePaymentIntent": "S",
        "CancelPaymentIntent": "S",
        "RefundPayment": "SA",
        "GetPaymentIntent": "PCAS",
        "SubmitPaymentCode": "PCS",
        "ReceiveWebhook": "-",
    },
    "FlightService": {
        "CreateFlight": "O",
        "CancelFlight": "O",
        "ListFlights": "-",
        "GetFlight": "-",
        "SearchFlights": "-",
        "GetItinerary": "-",
    },
    "BookingService": {
        "CreateGuestSession": "-",
        "CreateBooking": "CA",
        "GetBooking": "CA",
        "WatchBooking": "CA",
        "ChangeBookingSeats": "CA",
        "PayBooking": "CA",
        "CancelBooking": "CA",
    },
}
SERVICES: Final[Mapping[str, tuple[Service[Any], Any, Any]]] = {
    "SeatService": (SEAT_SERVICE, seat_service_pb2, seat_service_pb2_grpc),
    "CheckInService": (CHECKIN_SERVICE, checkin_service_pb2, checkin_service_pb2_grpc),
    "WaitlistService": (WAITLIST_SERVICE, waitlist_service_pb2, waitlist_service_pb2_grpc),
    "PaymentService": (PAYMENT_SERVICE, payment_service_pb2, payment_service_pb2_grpc),
    "FlightService": (FLIGHT_SERVICE, flight_service_pb2, flight_service_pb2_grpc),
    "BookingService": (BOOKING_SERVICE, booking_service_pb2, booking_service_pb2_grpc),
}
LETTERS: Final = {letter: Role[name] for letter, name in zip("PCAOS-", Role.__members__, strict=True)}
ROLES: Final = [role for role in Role if role is not Role.ANYBODY]
METHODS: Final = [(service, method) for service, methods in MAY_CALL.items() for method in methods]
# A call that passes the guard fails validation of its empty request, or reaches a method that is not implemented.
LET_IN: Final = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED}


@asynccontextmanager
async def guarding(world: World, name: str, policy: Mapping[str, Access] | None = None) -> AsyncIterator[Callers]:
    """Serves a service's guard with unimplemented methods behind it."""
    service, _, generated = SERVICES[name]
    verifier = TokenVerifier(keys=Keys(str(world.keys.jwks)), issuer=ISSUER, audience=AUDIENCE)
    server = grpc.aio.server()
    guarded = GuardedServer(
        server, policy=service.policy if policy is None else policy, verifier=verifier, watches_per_principal=20
    )
    register = getattr(generated, f"add_{name}Servicer_to_server")
    register(getattr(generated, f"{name}Servicer")(), cast("grpc.aio.Server", guarded))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    callers = Callers(f"127.0.0.1:{port}", world.keys, getattr(generated, f"{name}Stub"))
    try:
        yield callers
    finally:
        await callers.close()
        await server.stop(None)


@pytest.fixture(scope="module")
async def guards(world: World) -> AsyncIterator[dict[str, Callers]]:
    """Yields callers of each service's guard."""
    async with (
        guarding(world, "SeatService") as seat,
        guarding(world, "CheckInService") as checkin,
        guarding(world, "WaitlistService") as waitlist,
        guarding(world, "PaymentService") as payment,
        guarding(world, "FlightService") as flight,
        guarding(world, "BookingService") as booking,
    ):
        yield {
            "SeatService": seat,
            "CheckInService": checkin,
            "WaitlistService": waitlist,
            "PaymentService": payment,
            "FlightService": flight,
            "BookingService": booking,
        }


def descriptor_of(service: str, method: str) -> MethodDescriptor:
    _, module, _ = SERVICES[service]
    found: MethodDescriptor = module.DESCRIPTOR.services_by_name[service].methods_by_name[method]
    return found


async def call(caller: Caller, service: str, method: str) -> grpc.aio.AioRpcError:
    """Calls a method with an empty request; returns the error of the call."""
    descriptor = descriptor_of(service, method)
    request = message_factory.GetMessageClass(descriptor.input_type)()
    answer = getattr(caller, method)(request)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await (answer.read() if descriptor.server_streaming else answer)
    return ended.value


def caller_of(callers: Callers, role: Role) -> Caller:
    opened: dict[Role, Callable[[], Caller]] = {
        Role.PASSENGER: callers.passenger,
        Role.CUSTOMER: callers.customer,
        Role.AGENT: callers.agent,
        Role.OPERATIONS: callers.operations,
        Role.SERVICE: callers.service,
    }
    return opened[role]()


@pytest.mark.parametrize("service", SERVICES)
def test_every_method_has_exactly_one_row(service: str) -> None:
    described, module, _ = SERVICES[service]
    methods = set(module.DESCRIPTOR.services_by_name[service].methods_by_name)
    assert set(described.policy) == methods == set(MAY_CALL[service])


@pytest.mark.parametrize("service", SERVICES)
def test_the_table_equals_the_contracts(service: str) -> None:
    assert {method: access.roles for method, access in SERVICES[service][0].policy.items()} == {
        method: frozenset(LETTERS[letter] for letter in letters) for method, letters in MAY_CALL[service].items()
    }


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("service", "method"), METHODS)
async def test_a_role_can_call_only_its_methods(
    guards: dict[str, Callers], service: str, method: str, role: Role
) -> None:
    ended = await call(caller_of(guards[service], role), service, method)
    letters = MAY_CALL[service][method]
    if "-" in letters or any(LETTERS[letter] is role for letter in letters):
        assert ended.code() in LET_IN or read(ended).reason == "INTERNAL"
    else:
        assert read(ended).reason == "PERMISSION_DENIED"


@pytest.mark.parametrize(("service", "method"), METHODS)
async def test_calls_without_a_required_token_are_refused(
    guards: dict[str, Callers], service: str, method: str
) -> None:
    ended = await call(guards[service].anybody("nonsense"), service, method)
    if "-" in MAY_CALL[service][method]:
        assert ended.code() in LET_IN or read(ended).reason == "INTERNAL"
    else:
        assert read(ended).reason == "UNAUTHENTICATED"


async def test_a_method_without_a_row_is_refused(world: World) -> None:
    forgotten = {method: access for method, access in SEAT_SERVICE.policy.items() if method != "GetSeatMap"}
    async with guarding(world, "SeatService", forgotten) as callers:
        for role in ROLES:
            with refused("PERMISSION_DENIED", "PERMISSION_DENIED"):
                request = seat_service_pb2.GetSeatMapRequest(flight_id=flight_id())
                await caller_of(callers, role).GetSeatMap(request)

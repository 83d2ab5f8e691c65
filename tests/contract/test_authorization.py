"""The roles that may call each RPC, stated a second time.

The table is compared with the declarations of the protos and with the guard of each method.
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
from skyhigh.gateway.v1 import gateway_admin_pb2, gateway_admin_pb2_grpc
from skyhigh.payment.v1 import payment_service_pb2, payment_service_pb2_grpc
from skyhigh.seat.v1 import seat_service_pb2, seat_service_pb2_grpc
from skyhigh.waitlist.v1 import waitlist_service_pb2, waitlist_service_pb2_grpc

from booking_service.service import BOOKING_SERVICE
from checkin_service.service import CHECKIN_SERVICE
from flight_service.service import FLIGHT_SERVICE
from gateway.descriptors import read_descriptors
from gateway.guard.service import GATEWAY_SERVICE
from payment_service.service import PAYMENT_SERVICE
from seat_service.service import SEAT_SERVICE
from services import rpcs
from services.app import Service
from services.auth import Keys, Role, TokenVerifier
from services.interceptors import GuardedServer
from services.rpcs import DeclarationError, Rpc
from tests.callers import AUDIENCE, ISSUER, Caller, Callers, read
from tests.conftest import World
from waitlist_service.service import WAITLIST_SERVICE

# Passenger, customer, agent, operations, service; "-" for every caller, also without a token. A small letter is a role
# that reaches only its own resources. An internal RPC has no route at the gateway. The table is written by hand, so
# that it checks the protos independently.
MAY_CALL: Final[Mapping[str, Mapping[str, str]]] = {
    "SeatService": {
        "ProvisionSeats": "OS",
        "GetSeatMap": "PCAOS",
        "GetSeatMapJson": "PCAOS",
        "WatchSeatMap": "PCAOS",
        "SuggestSeats": "PCAS",
        "HoldSeat": "PCAS",
        "HoldSeats": "PCAS",
        "GetHold": "pcAOS",
        "ExtendHold": "pcAS",
        "ChangeHoldSeats": "pcAS",
        "ConfirmHold": "pAS",
        "CancelHold": "pcAS",
        "BlockSeat": "AO",
        "UnblockSeat": "AO",
        "ListSeatEvents": "AO",
        "ClaimSeat": "S internal",
        "ReturnSeat": "S internal",
        "ReleasePassengerSeat": "S internal",
        "FindPassengerSeats": "S internal",
        "SetWaitlistOpen": "S internal",
        "SyncPassengers": "S internal",
    },
    "CheckInService": {
        "ImportManifest": "OS",
        "CreateSession": "-",
        "GetTrip": "pA",
        "GetEligibility": "pAS",
        "StartCheckIn": "pA",
        "GetCheckIn": "pAO",
        "WatchCheckIn": "pAO",
        "DeclareBaggage": "pA",
        "CancelCheckIn": "pA",
        "GetBoardingPass": "pA",
        "GetBoardingPassSvg": "pA",
        "GetBoardingPassPng": "pA",
        "ListCheckIns": "AO",
        "GetPassenger": "S internal",
        "ReserveLocator": "S internal",
        "FindPassengers": "S internal",
    },
    "WaitlistService": {
        "JoinWaitlist": "pA",
        "GetWaitlistEntry": "pA",
        "AcceptOffer": "pA",
        "DeclineOffer": "pA",
        "LeaveWaitlist": "pA",
        "ListWaitlist": "AO",
        "SetWaitlistMode": "AO",
    },
    "PaymentService": {
        "CreatePaymentIntent": "S internal",
        "CancelPaymentIntent": "S internal",
        "RefundPayment": "SA internal",
        "GetPaymentIntent": "pcAS",
        "SubmitPaymentCode": "pcS",
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
        "GetBooking": "cA",
        "WatchBooking": "cA",
        "ChangeBookingSeats": "cA",
        "PayBooking": "cA",
        "CancelBooking": "cA",
    },
    "GatewayAdmin": {
        "ListIncidents": "AO",
        "ListBlocks": "AO",
        "LiftBlock": "AO",
        "ListLimits": "AO",
        "SetLimit": "O",
    },
    # Envoy calls them with the token of a service.
    "RateLimitService": {"ShouldRateLimit": "S internal"},
    "AccessLogService": {"StreamAccessLogs": "S internal"},
    "ExtensionConfigDiscoveryService": {"StreamExtensionConfigs": "S internal"},
    # The scales are another system, which checks no token.
    "WeightService": {"WeighBags": "- internal"},
}
SERVICES: Final[Mapping[str, tuple[Service[Any], Any, Any]]] = {
    "SeatService": (SEAT_SERVICE, seat_service_pb2, seat_service_pb2_grpc),
    "CheckInService": (CHECKIN_SERVICE, checkin_service_pb2, checkin_service_pb2_grpc),
    "WaitlistService": (WAITLIST_SERVICE, waitlist_service_pb2, waitlist_service_pb2_grpc),
    "PaymentService": (PAYMENT_SERVICE, payment_service_pb2, payment_service_pb2_grpc),
    "FlightService": (FLIGHT_SERVICE, flight_service_pb2, flight_service_pb2_grpc),
    "BookingService": (BOOKING_SERVICE, booking_service_pb2, booking_service_pb2_grpc),
    "GatewayAdmin": (GATEWAY_SERVICE, gateway_admin_pb2, gateway_admin_pb2_grpc),
}
LETTERS: Final = {letter: Role[name] for letter, name in zip("PCAOS-", Role.__members__, strict=True)}
ROLES: Final = [role for role in Role if role is not Role.ANYBODY]
METHODS: Final = [(service, method) for service in SERVICES for method in MAY_CALL[service]]
# A call that passes the guard fails validation of its empty request, or reaches a method that is not implemented.
LET_IN: Final = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED}


@asynccontextmanager
async def guarding(world: World, name: str, declared: Mapping[str, Rpc] | None = None) -> AsyncIterator[Callers]:
    """Serves a service's guard with unimplemented methods behind it."""
    service, _, generated = SERVICES[name]
    verifier = TokenVerifier(keys=Keys(str(world.keys.jwks)), issuer=ISSUER, audience=AUDIENCE)
    server = grpc.aio.server()
    guarded = GuardedServer(
        server, rpcs=service.rpcs() if declared is None else declared, verifier=verifier, watches_per_principal=20
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
        guarding(world, "GatewayAdmin") as gateway,
    ):
        yield {
            "SeatService": seat,
            "CheckInService": checkin,
            "WaitlistService": waitlist,
            "PaymentService": payment,
            "FlightService": flight,
            "BookingService": booking,
            "GatewayAdmin": gateway,
        }


def of_protos() -> dict[str, dict[str, Rpc]]:
    """Returns every declaration by service and RPC, from the descriptors that the gateway reads."""
    return {
        service.name: {
            method.name: rpcs.of_options(f"{file.package}.{service.name}.{method.name}", method.options)
            for method in service.method
        }
        for file in read_descriptors().file
        for service in file.service
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


def may_call(service: str, method: str) -> frozenset[Role]:
    """Returns the roles of the table; ANYBODY if the method needs no token."""
    return frozenset(LETTERS[letter.upper()] for letter in MAY_CALL[service][method].split()[0])


def test_every_rpc_of_the_protos_declares_the_roles_of_the_table() -> None:
    declared = {service: {name: rpc.roles for name, rpc in found.items()} for service, found in of_protos().items()}
    assert declared == {
        service: {method: may_call(service, method) for method in methods} for service, methods in MAY_CALL.items()
    }


def test_every_rpc_of_the_protos_declares_the_ownership_of_the_table() -> None:
    declared = {(service, name) for service, found in of_protos().items() for name, rpc in found.items() if rpc.owned}
    assert declared == {
        (service, method)
        for service, methods in MAY_CALL.items()
        for method, row in methods.items()
        if any(letter.islower() for letter in row.split()[0])
    }


def test_exactly_the_internal_rpcs_of_the_table_declare_no_place_at_the_gateway() -> None:
    declared = {
        (service, name) for service, found in of_protos().items() for name, rpc in found.items() if not rpc.exposed
    }
    assert declared == {
        (service, method)
        for service, methods in MAY_CALL.items()
        for method, row in methods.items()
        if row.endswith(" internal")
    }


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_reads_the_declarations_of_its_proto(service: str) -> None:
    assert SERVICES[service][0].rpcs().items() >= of_protos()[service].items()


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("service", "method"), METHODS)
async def test_a_role_can_call_only_its_methods(
    guards: dict[str, Callers], service: str, method: str, role: Role
) -> None:
    ended = await call(caller_of(guards[service], role), service, method)
    if may_call(service, method) & {role, Role.ANYBODY}:
        assert ended.code() in LET_IN or read(ended).reason == "INTERNAL"
    else:
        assert read(ended).reason == "PERMISSION_DENIED"


@pytest.mark.parametrize(("service", "method"), METHODS)
async def test_calls_without_a_required_token_are_refused(
    guards: dict[str, Callers], service: str, method: str
) -> None:
    ended = await call(guards[service].anybody("nonsense"), service, method)
    if Role.ANYBODY in may_call(service, method):
        assert ended.code() in LET_IN or read(ended).reason == "INTERNAL"
    else:
        assert read(ended).reason == "UNAUTHENTICATED"


async def test_a_method_without_a_declaration_is_not_served(world: World) -> None:
    forgotten = {method: rpc for method, rpc in SEAT_SERVICE.rpcs().items() if method != "GetSeatMap"}
    with pytest.raises(DeclarationError, match="GetSeatMap"):
        async with guarding(world, "SeatService", forgotten):
            pass

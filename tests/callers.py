"""Callers of a service, each with its own token, and refusals that they expect."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

import grpc
from google.rpc import error_details_pb2, status_pb2
from skyhigh.seat.v1 import seat_service_pb2 as pb
from skyhigh.seat.v1.seat_service_pb2_grpc import SeatServiceStub

from deploy.local.secrets import SigningKeys

ISSUER: Final = "https://skyhigh.example/tests"
AUDIENCE: Final = "skyhigh"
LAYOUT: Final = "A320-180Y"
# Two cores answer this many calls at once well within their deadline.
AT_ONCE: Final = 8
# The seat service looks a session's passengers up on the manifest for these methods.
READS_MANIFEST: Final = frozenset(
    {"SuggestSeats", "HoldSeat", "HoldSeats", "ExtendHold", "ChangeHoldSeats", "ConfirmHold"}
)
Result = TypeVar("Result")
_LETTERS: Final = "ABCDEFGHJKMNPQRSTUVWXYZ"


def seat(flight_id: str, seat_number: str, passenger_id: str = "", **profile: Any) -> pb.SeatAssignment:
    """Returns a seat for this passenger, or for a new one if none is named."""
    return pb.SeatAssignment(
        flight_id=flight_id,
        seat_number=seat_number,
        passenger_id=passenger_id or f"P-{secrets.token_hex(4)}",
        profile=pb.PassengerProfile(**profile) if profile else None,
    )


async def a_few_at_once(calls: Iterable[Awaitable[Result]], *, at_once: int = AT_ONCE) -> list[Result]:
    """Awaits all calls, at most `at_once` of them at the same time.

    With hundreds of calls at the same time, some responses would come after their deadline.
    """
    room = asyncio.Semaphore(at_once)

    async def one(call: Awaitable[Result]) -> Result:
        async with room:
            return await call

    return await asyncio.gather(*(one(call) for call in calls))


class Listing:
    """Passengers that must be on a seat service's manifest before their session acts."""

    def __init__(self, checkin: Caller, passengers: Sequence[pb.SyncPassengersRequest.ManifestPassenger]) -> None:
        self._checkin = checkin
        self._passengers = passengers
        self._syncing = asyncio.Lock()
        self._synced = False

    async def sync(self) -> None:
        """Sends the passengers to the seat service, once."""
        async with self._syncing:
            if not self._synced:
                await self._checkin.SyncPassengers(pb.SyncPassengersRequest(passengers=self._passengers))
                self._synced = True


class Caller:
    """One principal and its stub. Each RPC of the contract is an attribute."""

    def __init__(self, stub: Any, name: str, token: str, listing: Listing | None = None) -> None:
        self._stub = stub
        self._listing = listing
        self.name = name
        self.token = token

    def __getattr__(self, method: str) -> Any:
        call = getattr(self._stub, method)

        def with_token(request: Any, **more: Any) -> Any:
            metadata = (("authorization", f"Bearer {self.token}"), *more.pop("metadata", ()))
            return call(request, metadata=metadata, timeout=more.pop("timeout", 20), **more)

        if self._listing is None or method not in READS_MANIFEST:
            return with_token
        listing = self._listing

        async def once_listed(request: Any, **more: Any) -> Any:
            await listing.sync()
            return await with_token(request, **more)

        return once_listed

    async def listed(self) -> Caller:
        """Puts the session's passengers on the manifest; returns the caller.

        For tests that use the token without the methods of this class.
        """
        if self._listing is not None:
            await self._listing.sync()
        return self

    async def provision(self, flight_id: str, layout_id: str = LAYOUT) -> None:
        """Creates a flight."""
        await self.ProvisionSeats(pb.ProvisionSeatsRequest(flight_id=flight_id, layout_id=layout_id))

    async def hold(self, flight_id: str, seat_number: str, passenger_id: str = "", **more: Any) -> pb.Hold:
        """Holds a seat for this passenger, or for a new one if none is named."""
        hold: pb.Hold = await self.HoldSeat(
            pb.HoldSeatRequest(
                flight_id=flight_id,
                seat_number=seat_number,
                passenger_id=passenger_id or f"P-{secrets.token_hex(4)}",
                **more,
            )
        )
        return hold

    async def hold_seats(self, *seats: pb.SeatAssignment, **more: Any) -> pb.Hold:
        """Holds several seats."""
        hold: pb.Hold = await self.HoldSeats(pb.HoldSeatsRequest(seats=seats, **more))
        return hold

    async def confirm(self, hold: pb.Hold) -> pb.Hold:
        """Confirms a hold."""
        confirmed: pb.Hold = await self.ConfirmHold(pb.ConfirmHoldRequest(hold_id=hold.hold_id))
        return confirmed

    async def cancel(self, hold: pb.Hold, reason: str = "") -> pb.Hold:
        """Cancels a hold."""
        cancelled: pb.Hold = await self.CancelHold(pb.CancelHoldRequest(hold_id=hold.hold_id, reason=reason))
        return cancelled

    async def get(self, hold: pb.Hold) -> pb.Hold:
        """Reads a hold."""
        found: pb.Hold = await self.GetHold(pb.GetHoldRequest(hold_id=hold.hold_id))
        return found

    async def states(self, flight_id: str) -> dict[str, str]:
        """Returns the states of the seat map by seat number."""
        seat_map = await self.GetSeatMap(pb.GetSeatMapRequest(flight_id=flight_id))
        return {seat.seat_number: pb.Seat.State.Name(seat.state) for seat in seat_map.seats}


class Callers:
    """Opens callers of one service address. `stub` is the generated stub class."""

    def __init__(
        self, address: str, keys: SigningKeys, stub: Callable[[grpc.aio.Channel], Any] = SeatServiceStub
    ) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self._stub = stub(self._channel)
        self._seats = stub is SeatServiceStub
        self._keys = keys
        self.address = address

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()

    def agent(self, name: str = "desk") -> Caller:
        """Returns an agent."""
        return self._caller("agent", name)

    def service(self, name: str = "booking") -> Caller:
        """Returns a service as a caller."""
        return self._caller("service", name)

    def operations(self, name: str = "ops") -> Caller:
        """Returns a caller with the role operations."""
        return self._caller("operations", name)

    def customer(self, name: str | None = None) -> Caller:
        """Returns a booking customer, a new one if no name is given."""
        return self._caller("customer", name or secrets.token_hex(6))

    def passenger(self, *passengers: str, pnr: str | None = None) -> Caller:
        """Returns a session; each passenger is given as `ID:FLIGHT[:CABIN[:TYPE[+SSR…]]]`.

        The passengers are put on the seat service's manifest before the session takes a seat. A passenger who is
        already on it keeps the locator of the first session. The token has the claims of old tokens, which list the
        passengers.
        """
        pnr = pnr or "".join(secrets.choice(_LETTERS) for _ in range(6))
        claims = [_passenger(text) for text in passengers]
        caller = self._caller("passenger", pnr, passengers=claims)
        if not self._seats:
            return caller
        listed = [
            listed_passenger(
                each["flight"],
                each["id"],
                pnr,
                revision=1,
                cabin=each["cabin"],
                type=each["type"],
                special_services=each["ssr"],
            )
            for each in claims
        ]
        return Caller(self._stub, caller.name, caller.token, Listing(self.service("checkin"), listed))

    def session(self, pnr: str) -> Caller:
        """Returns a session as check-in signs it: the token names only the locator.

        The passengers are not put on any manifest.
        """
        return self._caller("passenger", pnr)

    def anybody(self, token: str) -> Caller:
        """Returns a caller with this token."""
        return Caller(self._stub, "anybody", token)

    def claims(self, role: str, subject: str, **more: Any) -> dict[str, Any]:
        """Returns the claims of a valid token."""
        now = int(time.time())
        return {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "role": role, "iat": now, "exp": now + 3600, **more}

    def _caller(self, role: str, subject: str, **more: Any) -> Caller:
        token = self._keys.sign(self.claims(role, subject, **more))
        return Caller(self._stub, f"{role}:{subject}", token)


def listed_passenger(
    flight_id: str,
    passenger_id: str,
    pnr: str,
    *,
    ended: bool = False,
    seat_included: bool = False,
    revision: int = 0,
    **profile: Any,
) -> pb.SyncPassengersRequest.ManifestPassenger:
    """Returns a passenger of a manifest; the default revision is the newest so far."""
    return pb.SyncPassengersRequest.ManifestPassenger(
        flight_id=flight_id,
        passenger_id=passenger_id,
        pnr=pnr,
        profile=pb.PassengerProfile(**profile),
        ended=ended,
        seat_included=seat_included,
        revision=revision or time.time_ns(),
    )


def _passenger(text: str) -> dict[str, Any]:
    identity, flight_id, cabin, kind = (*text.split(":"), "", "")[:4]
    type_name, *ssr = (kind or "ADULT").split("+")
    return {"id": identity, "flight": flight_id, "cabin": cabin or "ECONOMY", "type": type_name, "ssr": ssr}


class Refused:
    """A refusal; its attributes are set when the block that expects it has ended."""

    code: grpc.StatusCode
    message: str
    status: status_pb2.Status
    info: error_details_pb2.ErrorInfo
    fields: list[str]
    retry_after_seconds: float | None

    @property
    def reason(self) -> str:
        """The reason of its ErrorInfo."""
        reason: str = self.info.reason
        return reason


@contextlib.contextmanager
def refused(code: str, reason: str) -> Iterator[Refused]:
    """Expects the block to be refused with this gRPC code and reason."""
    refusal = Refused()
    try:
        yield refusal
    except grpc.aio.AioRpcError as error:
        read(error, refusal)
        assert (refusal.code.name, refusal.reason) == (code, reason), refusal.message
    else:
        raise AssertionError(f"not refused; expected {code} {reason}")


def read(error: grpc.aio.AioRpcError, refusal: Refused | None = None) -> Refused:
    """Reads the details of a refusal. Fails unless it has exactly one ErrorInfo."""
    refusal = refusal or Refused()
    refusal.code = error.code()
    refusal.message = error.details() or ""
    trailers = dict(error.trailing_metadata() or ())
    details = trailers.get("grpc-status-details-bin")
    assert isinstance(details, bytes), f"no details: {error.code()} {error.details()}"
    refusal.status = status_pb2.Status.FromString(details)
    refusal.fields, refusal.retry_after_seconds, infos = [], None, []
    for detail in refusal.status.details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
            if detail.Is(kind.DESCRIPTOR):
                message: Any = kind()
                detail.Unpack(message)
                if isinstance(message, error_details_pb2.ErrorInfo):
                    infos.append(message)
                elif isinstance(message, error_details_pb2.BadRequest):
                    refusal.fields = [violation.field for violation in message.field_violations]
                else:
                    refusal.retry_after_seconds = message.retry_delay.ToMilliseconds() / 1000
    assert len(infos) == 1
    refusal.info = infos[0]
    assert refusal.info.domain == "skyhigh"
    return refusal

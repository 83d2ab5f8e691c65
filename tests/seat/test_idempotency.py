"""A retry gets the first response and changes nothing (rule 11.6)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

import pytest
from google.protobuf.message import Message
from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service.service import SEAT_SERVICE
from services.rpcs import Effect
from tests.callers import Caller, Callers, refused, seat
from tests.instances import Database
from tests.seat.rules import a_repeat_has_one_effect, answers, at_once, new_flight_id, outcomes, rows, violations


@dataclass(frozen=True)
class Mutation:
    """A valid request, the same with another parameter, and the role of its caller."""

    request: Any
    other: Any
    role: str = "agent"


Prepare = Callable[[Callers, str], Awaitable[Mutation]]


async def _hold(callers: Callers, flight: str, **more: Any) -> str:
    """Returns the id of a hold of the agent "desk", for requests that change a hold."""
    return (await callers.agent().hold(flight, "20A", "P1", **more)).hold_id


async def _provision(callers: Callers, flight: str) -> Mutation:
    fresh = new_flight_id()
    return Mutation(
        pb.ProvisionSeatsRequest(flight_id=fresh, layout_id="E190-100Y"),
        pb.ProvisionSeatsRequest(flight_id=fresh, layout_id="A320-180Y"),
        "operations",
    )


async def _hold_seat(callers: Callers, flight: str) -> Mutation:
    one, other = (
        pb.HoldSeatRequest(flight_id=flight, seat_number=number, passenger_id="P1") for number in ("20A", "20B")
    )
    return Mutation(one, other)


async def _hold_seats(callers: Callers, flight: str) -> Mutation:
    seats = [seat(flight, "20A", "P1"), seat(flight, "20B", "P2")]
    return Mutation(pb.HoldSeatsRequest(seats=seats), pb.HoldSeatsRequest(seats=seats[:1]))


async def _extend(callers: Callers, flight: str) -> Mutation:
    return Mutation(
        pb.ExtendHoldRequest(hold_id=await _hold(callers, flight)), pb.ExtendHoldRequest(hold_id=str(uuid4()))
    )


async def _change(callers: Callers, flight: str) -> Mutation:
    hold_id = await _hold(callers, flight)
    one, other = (
        pb.ChangeHoldSeatsRequest(hold_id=hold_id, seats=[seat(flight, number, "P1")]) for number in ("21A", "21B")
    )
    return Mutation(one, other)


async def _confirm(callers: Callers, flight: str) -> Mutation:
    return Mutation(
        pb.ConfirmHoldRequest(hold_id=await _hold(callers, flight)), pb.ConfirmHoldRequest(hold_id=str(uuid4()))
    )


async def _cancel(callers: Callers, flight: str) -> Mutation:
    hold_id = await _hold(callers, flight)
    return Mutation(pb.CancelHoldRequest(hold_id=hold_id), pb.CancelHoldRequest(hold_id=hold_id, reason="OTHER"))


async def _block(callers: Callers, flight: str) -> Mutation:
    one, other = (pb.BlockSeatRequest(flight_id=flight, seat_number="20A", reason=each) for each in ("ONE", "OTHER"))
    return Mutation(one, other)


async def _unblock(callers: Callers, flight: str) -> Mutation:
    await callers.agent().BlockSeat(pb.BlockSeatRequest(flight_id=flight, seat_number="20A", reason="BROKEN"))
    one, other = (pb.UnblockSeatRequest(flight_id=flight, seat_number=number) for number in ("20A", "20B"))
    return Mutation(one, other)


async def _claim(callers: Callers, flight: str) -> Mutation:
    one, other = (
        pb.ClaimSeatRequest(flight_id=flight, seat_number="20A", passenger_id="W1", owner=f"passenger:{pnr}")
        for pnr in ("AAAAAA", "BBBBBB")
    )
    return Mutation(one, other, "service")


async def _return(callers: Callers, flight: str) -> Mutation:
    await callers.service().SetWaitlistOpen(pb.SetWaitlistOpenRequest(flight_id=flight, open=True))
    await callers.agent().CancelHold(pb.CancelHoldRequest(hold_id=await _hold(callers, flight)))
    one, other = (pb.ReturnSeatRequest(flight_id=flight, seat_number=number) for number in ("20A", "20B"))
    return Mutation(one, other, "service")


async def _release_passenger(callers: Callers, flight: str) -> Mutation:
    held = await callers.agent().hold_seats(seat(flight, "20A", "P1"), seat(flight, "20B", "P2"))
    hold_id = (await callers.agent().confirm(held)).hold_id
    one, other = (
        pb.ReleasePassengerSeatRequest(hold_id=hold_id, flight_id=flight, passenger_id=passenger)
        for passenger in ("P1", "P2")
    )
    return Mutation(one, other, "service")


async def _set_waitlist_open(callers: Callers, flight: str) -> Mutation:
    one, other = (pb.SetWaitlistOpenRequest(flight_id=flight, open=is_open) for is_open in (True, False))
    return Mutation(one, other, "service")


MUTATIONS: Final[dict[str, Prepare]] = {
    "ProvisionSeats": _provision,
    "HoldSeat": _hold_seat,
    "HoldSeats": _hold_seats,
    "ExtendHold": _extend,
    "ChangeHoldSeats": _change,
    "ConfirmHold": _confirm,
    "CancelHold": _cancel,
    "BlockSeat": _block,
    "UnblockSeat": _unblock,
    "ClaimSeat": _claim,
    "ReturnSeat": _return,
    "ReleasePassengerSeat": _release_passenger,
    "SetWaitlistOpen": _set_waitlist_open,
}
every_mutation = pytest.mark.parametrize("method", sorted(MUTATIONS))


def keyed(request: Message, key: str) -> Any:
    """Returns a copy of the request with this idempotency key."""
    copy: Any = type(request)()
    copy.CopyFrom(request)
    copy.request_id = key
    return copy


async def prepared(method: str, callers: Callers, flight: str) -> tuple[Caller, Mutation]:
    """Returns a mutation and the caller who may request it."""
    mutation = await MUTATIONS[method](callers, flight)
    return getattr(callers, mutation.role)(), mutation


def test_every_mutation_has_an_idempotency_test() -> None:
    keyed_methods = {name for name, rpc in SEAT_SERVICE.rpcs().items() if rpc.effect is Effect.MUTATION}
    assert keyed_methods == MUTATIONS.keys()


@every_mutation
async def test_a_repeat_returns_the_first_response(
    callers: Callers, flight: str, database: Database, method: str, request_id: str
) -> None:
    caller, mutation = await prepared(method, callers, flight)
    await a_repeat_has_one_effect(database, caller, method, keyed(mutation.request, request_id), flight)
    assert await violations(database, flight) == []


@every_mutation
async def test_a_key_with_other_parameters_is_refused(
    callers: Callers, flight: str, database: Database, method: str, request_id: str
) -> None:
    caller, mutation = await prepared(method, callers, flight)
    await getattr(caller, method)(keyed(mutation.request, request_id))
    before = await rows(database, flight)
    with refused("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED"):
        await getattr(caller, method)(keyed(mutation.other, request_id))
    assert await rows(database, flight) == before


@every_mutation
async def test_the_header_works_like_the_field(
    callers: Callers, flight: str, database: Database, method: str, request_id: str
) -> None:
    caller, mutation = await prepared(method, callers, flight)
    header = (("idempotency-key", request_id),)
    first = await getattr(caller, method)(mutation.request, metadata=header)
    before = await rows(database, flight)
    assert await getattr(caller, method)(mutation.request, metadata=header) == first
    assert await getattr(caller, method)(keyed(mutation.request, request_id)) == first
    assert await rows(database, flight) == before
    with refused("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED"):
        await getattr(caller, method)(mutation.other, metadata=header)


async def test_a_key_used_by_another_method_is_refused(agent: Caller, flight: str, request_id: str) -> None:
    hold = await agent.hold(flight, "20A", request_id=request_id)
    with refused("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED"):
        await agent.ConfirmHold(pb.ConfirmHoldRequest(hold_id=hold.hold_id, request_id=request_id))
    assert (await agent.get(hold)).state == pb.Hold.HELD


async def test_keys_of_different_principals_are_independent(callers: Callers, flight: str, request_id: str) -> None:
    holds = [
        await caller.hold(flight, number, "P" + number, request_id=request_id)
        for number, caller in {
            "20A": callers.agent("one"),
            "20B": callers.agent("other"),
            "20C": callers.customer("one"),
            "20D": callers.service("one"),
        }.items()
    ]
    assert len({hold.hold_id for hold in holds}) == 4


async def test_a_foreign_key_returns_no_response(callers: Callers, flight: str, request_id: str) -> None:
    owner, stranger = callers.passenger(f"P1:{flight}"), callers.passenger(f"P1:{flight}")
    hold = await owner.hold(flight, "20A", "P1", request_id=request_id)
    await owner.ConfirmHold(pb.ConfirmHoldRequest(hold_id=hold.hold_id, request_id=str(uuid4())))
    with refused("NOT_FOUND", "HOLD_NOT_FOUND"):
        await stranger.ConfirmHold(pb.ConfirmHoldRequest(hold_id=hold.hold_id, request_id=request_id))


async def test_calls_without_a_key_are_separate(agent: Caller, flight: str) -> None:
    await agent.hold(flight, "20A", "P1")
    with refused("ABORTED", "SEAT_TAKEN"):
        await agent.hold(flight, "20A", "P1")


async def test_a_refused_call_is_processed_again_on_retry(callers: Callers, flight: str, request_id: str) -> None:
    first, customer = callers.agent(), callers.customer()
    held = await first.hold(flight, "20A")
    with refused("ABORTED", "SEAT_TAKEN"):
        await customer.hold(flight, "20A", "P1", request_id=request_id)
    await first.cancel(held)
    assert (await customer.hold(flight, "20A", "P1", request_id=request_id)).state == pb.Hold.HELD


async def test_a_repeat_returns_the_first_response_after_later_changes(
    agent: Caller, flight: str, request_id: str
) -> None:
    hold = await agent.hold(flight, "20A", "P1", request_id=request_id)
    await agent.confirm(hold)
    await agent.cancel(hold)
    assert await agent.hold(flight, "20A", "P1", request_id=request_id) == hold


async def test_the_case_of_a_key_is_ignored(agent: Caller, flight: str, request_id: str) -> None:
    hold = await agent.hold(flight, "20A", "P1", request_id=request_id)
    assert await agent.hold(flight, "20A", "P1", request_id=request_id.upper()) == hold


async def test_concurrent_repeats_with_other_parameters_are_refused(
    agent: Caller, flight: str, database: Database, request_id: str
) -> None:
    results = await at_once(
        *(agent.hold(flight, number, "P1", request_id=request_id) for number in ["20A", "20B"] * 10)
    )
    assert outcomes(results) == {"OK": 10, "IDEMPOTENCY_KEY_REUSED": 10}
    assert len({hold.hold_id for hold in answers(results)}) == 1
    assert await violations(database, flight) == []


async def test_a_header_that_differs_from_the_field_is_malformed(agent: Caller, flight: str, request_id: str) -> None:
    request = pb.HoldSeatRequest(flight_id=flight, seat_number="20A", passenger_id="P1", request_id=request_id)
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await agent.HoldSeat(request, metadata=(("idempotency-key", str(uuid4())),))
    assert refusal.fields == ["request_id"]


# Python's UUID class also accepts the last four keys; the contract accepts one form only.
@pytest.mark.parametrize(
    "key",
    [
        "1",
        "not-a-uuid",
        "g" * 32,
        "a" * 5000,
        "123e4567-e89b-12d3-a456-42661417400",
        "123e4567e89b12d3a456426614174000",
        "{123e4567-e89b-12d3-a456-426614174000}",
        "urn:uuid:123e4567-e89b-12d3-a456-426614174000",
        "123e-4567e89b12d3-a456-426614174000",
    ],
)
async def test_a_key_that_is_not_a_uuid_is_malformed(agent: Caller, flight: str, key: str) -> None:
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await agent.hold(flight, "20A", request_id=key)
    assert refusal.fields == ["request_id"]
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await agent.HoldSeat(
            pb.HoldSeatRequest(flight_id=flight, seat_number="20A", passenger_id="P1"),
            metadata=(("idempotency-key", key),),
        )
    assert refusal.fields == ["idempotency-key"]


async def test_two_keys_in_headers_are_malformed(agent: Caller, flight: str, request_id: str) -> None:
    request = pb.HoldSeatRequest(flight_id=flight, seat_number="20A", passenger_id="P1")
    other = ("idempotency-key", str(uuid4()))
    own = ("idempotency-key", request_id)
    for pair in ((own, other), (other, own)):
        with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
            await agent.HoldSeat(request, metadata=pair)
        assert refusal.fields == ["idempotency-key"]
    first = await agent.HoldSeat(request, metadata=(own, own))
    assert await agent.HoldSeat(request, metadata=(own,)) == first

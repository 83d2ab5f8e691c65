"""ImportManifest: a flight's facts and passengers (CHK-1).

A wrong line is rejected alone, and listed.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from skyhigh.checkin.v1 import checkin_service_pb2 as pb

from services import airports, db
from tests.callers import refused
from tests.checkin.airport import HOUR, Airport, facts, new_pnr, outcomes, seconds
from tests.dates import day


def passenger(passenger_id: str, pnr: str, **more: Any) -> pb.ManifestPassenger:
    return pb.ManifestPassenger(
        **{"passenger_id": passenger_id, "pnr": pnr, "given_name": "Ada", "last_name": "Nuñez", **more}
    )


def infant(passenger_id: str, pnr: str, adult: str, **more: Any) -> pb.ManifestPassenger:
    return passenger(passenger_id, pnr, type=pb.INFANT, accompanying_passenger_id=adult, **more)


def counts(answer: pb.ImportManifestResponse) -> tuple[int, int, int]:
    return answer.added, answer.changed, answer.unchanged


async def flight_row(airport: Airport) -> Any:
    async with db.transaction(airport.pool) as conn:
        return await conn.fetchrow("SELECT * FROM flights WHERE flight_id = $1", airport.flight_id)


def wrong_fields(answer: pb.ImportManifestResponse) -> list[tuple[int, str, str, str]]:
    return [
        (each.index, each.passenger_id, wrong.field, wrong.value)
        for each in answer.rejected
        for wrong in each.wrong_fields
    ]


async def test_the_response_counts_added_changed_and_unchanged_passengers(airport: Airport) -> None:
    pnr = new_pnr()
    first = [passenger(f"P{n}", pnr) for n in range(5)]
    assert counts(await airport.imported(*first)) == (5, 0, 0)
    assert counts(await airport.imported(*first)) == (0, 0, 5)
    second = [first[0], passenger("P1", pnr, contact_email="ada@example.org"), passenger("P9", pnr)]
    assert counts(await airport.imported(*second)) == (1, 1, 1)
    trip = await airport.agent.GetTrip(pb.GetTripRequest(pnr=pnr))
    assert [each.passenger_id for each in trip.passengers] == ["P0", "P1", "P2", "P3", "P4", "P9"]


async def test_omitted_fields_have_defaults(airport: Airport) -> None:
    await airport.imported(passenger("P1", new_pnr()))
    found = await airport.checkin.service().GetPassenger(
        pb.GetPassengerRequest(flight_id=airport.flight_id, passenger_id="P1")
    )
    assert (found.type, found.cabin, found.fare) == (pb.ADULT, pb.ECONOMY, "STANDARD")


async def test_five_hundred_passengers_fit_into_one_call(airport: Airport) -> None:
    everybody = [passenger(f"P{n}", new_pnr(), contact_email=f"p{n}@example.org") for n in range(500)]
    assert counts(await airport.imported(*everybody)) == (500, 0, 0)


async def test_a_repeat_returns_the_first_response(airport: Airport, request_id: str) -> None:
    asked = pb.ImportManifestRequest(
        flight_id=airport.flight_id, passengers=[passenger("P1", new_pnr())], request_id=request_id
    )
    first = await airport.operations.ImportManifest(asked)
    assert await airport.operations.ImportManifest(asked) == first
    assert counts(first) == (1, 0, 0)


async def test_concurrent_imports_add_each_passenger_once(airport: Airport) -> None:
    everybody = [passenger(f"P{n}", new_pnr()) for n in range(20)]
    answers = await asyncio.gather(*(airport.imported(*everybody) for _ in range(6)))
    assert sorted(counts(answer) for answer in answers) == [(0, 0, 20)] * 5 + [(20, 0, 0)]


async def test_an_unknown_flight_requires_its_facts(airport: Airport) -> None:
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await airport.operations.ImportManifest(
            pb.ImportManifestRequest(flight_id="SH-NONE-1", passengers=[passenger("P1", new_pnr())])
        )
    assert refusal.fields == ["flight"]


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"departure_date": "2010-02-30"}, "flight.departure_date"),
        ({"departure_date": day(-2)}, "flight.departure_date"),
        ({"departure_date": day(3)}, "flight.departure_date"),
        ({"origin": "QQQ", "departure_date": day(3)}, "flight.departure_date"),
        ({"origin": "LIS", "destination": "LIS"}, "flight.destination"),
        ({"check_in_opens_before": seconds(60)}, "flight.check_in_opens_before"),
        ({"check_in_opens_before": seconds(60), "check_in_closes_before": seconds(60)}, "flight.check_in_opens_before"),
        # The database stores microseconds: less than 1 µs would become 0, which means that the field was omitted.
        ({"check_in_opens_before": Duration(nanos=500)}, "flight.check_in_opens_before"),
        ({"boarding_before": Duration(nanos=500)}, "flight.boarding_before"),
    ],
)
async def test_inconsistent_flight_facts_are_refused(airport: Airport, more: dict[str, Any], field: str) -> None:
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await airport.set_flight(**more)
    assert refusal.fields == [field]


@pytest.mark.parametrize("nanos", [0, 500, 999_999_999])
async def test_an_arrival_at_the_departure_time_is_refused(airport: Airport, nanos: int) -> None:
    flight = facts()
    flight.arrival_time.CopyFrom(flight.departure_time)
    flight.arrival_time.nanos += nanos
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await airport.operations.ImportManifest(pb.ImportManifestRequest(flight_id=airport.flight_id, flight=flight))
    assert refusal.fields == ["flight.arrival_time"]


@pytest.mark.parametrize("year", [1, 1970, 9999])
async def test_a_departure_more_than_two_years_away_is_refused(airport: Airport, year: int) -> None:
    flight = facts()
    flight.departure_time.FromJsonString(f"{year:04}-01-01T10:00:00Z")
    flight.arrival_time.FromSeconds(flight.departure_time.seconds + 2 * HOUR)
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await airport.operations.ImportManifest(pb.ImportManifestRequest(flight_id=airport.flight_id, flight=flight))
    assert "flight.departure_time" in refusal.fields


async def test_a_flight_longer_than_a_day_is_refused(airport: Airport) -> None:
    flight = facts()
    flight.arrival_time.seconds = flight.departure_time.seconds + 24 * HOUR + 1
    with refused("INVALID_ARGUMENT", "INVALID_FIELD"):
        await airport.operations.ImportManifest(pb.ImportManifestRequest(flight_id=airport.flight_id, flight=flight))


async def test_the_default_date_is_local_at_the_origin(airport: Airport) -> None:
    """At any time, the date at UTC+14 or at UTC-11 differs from the UTC date.

    Kiritimati is at UTC+14, Pago Pago at UTC-11.
    """
    for origin in ("CXI", "PPG"):
        flight = facts()
        flight.origin = origin
        await airport.operations.ImportManifest(pb.ImportManifestRequest(flight_id=airport.flight_id, flight=flight))
        zone = airports.zone(origin)
        assert zone is not None
        row = await flight_row(airport)
        assert row["departure_date"] == row["departure_time"].astimezone(zone).date()


async def test_new_facts_move_the_check_in_window(airport: Airport) -> None:
    traveller = await airport.traveller()
    await airport.set_flight(departs_in_seconds=30 * HOUR)
    asked = pb.GetEligibilityRequest(flight_id=airport.flight_id, passenger_id="P1")
    (reason,) = (await traveller.desk.GetEligibility(asked)).reasons
    assert reason.reason == "CHECK_IN_NOT_OPEN"
    await airport.set_flight(departs_in_seconds=30 * HOUR, check_in_opens_before=seconds(36 * HOUR))
    assert (await traveller.desk.GetEligibility(asked)).eligible


async def test_an_inconsistent_line_is_rejected_alone(airport: Airport) -> None:
    pnr, other = new_pnr(), new_pnr()
    answer = await airport.imported(
        passenger("A1", pnr),
        passenger("C1", pnr, type=pb.CHILD),
        infant("I1", pnr, "A1"),
        infant("I2", pnr, "A1"),
        infant("I3", pnr, "C1"),
        infant("I4", pnr, "NOBODY"),
        infant("I5", other, "A2"),
        passenger("A2", pnr),
        passenger("I6", pnr, type=pb.INFANT),
        passenger("A3", pnr, accompanying_passenger_id="A1"),
        infant("I7", pnr, "I7"),
    )
    assert wrong_fields(answer) == [
        (3, "I2", "accompanyingPassengerId", "A1"),
        (4, "I3", "accompanyingPassengerId", "C1"),
        (5, "I4", "accompanyingPassengerId", "NOBODY"),
        (6, "I5", "pnr", other),
        (8, "I6", "accompanyingPassengerId", ""),
        (9, "A3", "accompanyingPassengerId", "A1"),
        (10, "I7", "accompanyingPassengerId", "I7"),
    ]
    assert counts(answer) == (4, 0, 0)
    trip = await airport.agent.GetTrip(pb.GetTripRequest(pnr=pnr))
    assert [each.passenger_id for each in trip.passengers] == ["A1", "A2", "C1", "I1"]


async def test_a_malformed_line_is_rejected_alone(airport: Airport, request_id: str) -> None:
    pnr = new_pnr()
    asked = pb.ImportManifestRequest(
        flight_id=airport.flight_id,
        request_id=request_id,
        passengers=[
            passenger("P1", pnr, last_name="'t Hart"),
            passenger("P2", "1BCDEF", contact_email="nobody"),
            passenger("P3", pnr, fare="GOLD", special_services=["WCHR", "wchr"], cabin=99),
            passenger("P4", pnr, last_name="Col\N{MIDDLE DOT}lell"),
            passenger("P5", pnr, last_name="<b>"),
            passenger("P1", pnr),
        ],
    )
    answer = await airport.operations.ImportManifest(asked)
    assert counts(answer) == (2, 0, 0)
    assert sorted(wrong_fields(answer)) == [
        (1, "P2", "contactEmail", "nobody"),
        (1, "P2", "contactEmail", "nobody"),
        (1, "P2", "pnr", "1BCDEF"),
        (2, "P3", "cabin", "99"),
        (2, "P3", "fare", "GOLD"),
        (2, "P3", "specialServices[1]", "wchr"),
        (4, "P5", "lastName", "<b>"),
        (5, "P1", "passengerId", "P1"),
    ]
    assert {each.reason for each in answer.rejected} == {"INVALID_FIELD"}
    assert await airport.operations.ImportManifest(asked) == answer
    asked.ClearField("request_id")
    again = await airport.operations.ImportManifest(asked)
    assert counts(again) == (0, 0, 2)
    assert again.rejected == answer.rejected


async def test_an_infant_whose_adult_is_rejected_is_rejected_too(airport: Airport) -> None:
    pnr = new_pnr()
    answer = await airport.imported(
        infant("I1", pnr, "A1"), passenger("A1", pnr, given_name="7"), passenger("A2", pnr), infant("I2", pnr, "A2")
    )
    assert wrong_fields(answer) == [(0, "I1", "accompanyingPassengerId", "A1"), (1, "A1", "givenName", "7")]
    assert counts(answer) == (2, 0, 0)


async def test_a_call_with_only_wrong_lines_changes_nothing(airport: Airport) -> None:
    before = await flight_row(airport)
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await airport.operations.ImportManifest(
            pb.ImportManifestRequest(
                flight_id=airport.flight_id,
                flight=facts(departs_in_seconds=7 * HOUR),
                passengers=[passenger("P1", "nothing")],
            )
        )
    assert refusal.fields == ["passengers[0].pnr"]
    assert await flight_row(airport) == before


async def test_omitted_fields_of_a_known_passenger_are_kept(airport: Airport) -> None:
    pnr = new_pnr()
    known = passenger(
        "P1",
        pnr,
        type=pb.CHILD,
        cabin=pb.BUSINESS,
        fare="FLEX",
        special_services=["WCHR"],
        contact_email="ada@example.org",
    )
    await airport.imported(known)
    assert counts(await airport.imported(passenger("P1", pnr))) == (0, 0, 1)
    cleared = passenger("P1", pnr, cleared_fields=["specialServices", "contactEmail"])
    assert counts(await airport.imported(cleared)) == (0, 1, 0)
    found = await airport.checkin.service().GetPassenger(
        pb.GetPassengerRequest(flight_id=airport.flight_id, passenger_id="P1")
    )
    known.ClearField("special_services")
    known.ClearField("contact_email")
    assert found == known


async def test_an_infant_changed_to_a_child_needs_no_adult(airport: Airport) -> None:
    pnr = new_pnr()
    await airport.imported(passenger("A1", pnr), infant("I1", pnr, "A1"))
    assert counts(await airport.imported(passenger("I1", pnr, type=pb.CHILD))) == (0, 1, 0)


async def test_an_inconsistent_manifest_accepts_other_passengers(airport: Airport) -> None:
    """An infant stays on the manifest if the booking of its adult was cancelled."""
    pnr = new_pnr()
    await airport.imported(passenger("A1", pnr), infant("I1", pnr, "A1"))
    async with db.transaction(airport.pool) as conn:
        await conn.execute("DELETE FROM passengers WHERE flight_id = $1 AND passenger_id = 'A1'", airport.flight_id)
    assert counts(await airport.imported(passenger("P2", new_pnr()))) == (1, 0, 0)


async def test_many_wrong_fields_are_counted_after_the_listed_ones(airport: Airport) -> None:
    wrong = [passenger(f"P{n}", new_pnr(), given_name="", last_name="") for n in range(500)]
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await airport.imported(*wrong)
    *listed, last = refusal.fields
    assert listed[:2] == ["passengers[0].given_name", "passengers[0].last_name"]
    assert last == "request"
    assert refusal.status.ByteSize() < 6000


async def test_the_adult_of_a_known_infant_must_stay_adult(airport: Airport) -> None:
    pnr = new_pnr()
    await airport.imported(passenger("A1", pnr), infant("I1", pnr, "A1"))
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await airport.imported(passenger("A1", pnr, type=pb.CHILD))
    assert refusal.fields == ["passengers[0].type"]
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await airport.imported(passenger("A1", new_pnr()))
    assert refusal.fields == ["passengers[0].pnr"]


async def test_two_infants_can_swap_adults_in_one_import(airport: Airport) -> None:
    pnr = new_pnr()
    await airport.imported(passenger("A1", pnr), passenger("A2", pnr), infant("I1", pnr, "A1"), infant("I2", pnr, "A2"))
    assert counts(await airport.imported(infant("I1", pnr, "A2"), infant("I2", pnr, "A1"))) == (0, 2, 0)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"pnr": "ZZZZZZ"}, "pnr"),
        ({"type": pb.CHILD}, "type"),
        ({"cabin": pb.BUSINESS}, "cabin"),
        ({"fare": "FLEX"}, "fare"),
    ],
)
async def test_facts_used_by_a_check_in_cannot_change(airport: Airport, change: dict[str, Any], field: str) -> None:
    traveller = await airport.traveller()
    await traveller.start()
    changed = passenger("P1", traveller.pnr)
    changed.MergeFrom(pb.ManifestPassenger(**change))
    with refused("FAILED_PRECONDITION", "PASSENGER_CHECKED_IN") as refusal:
        await airport.imported(changed)
    assert dict(refusal.info.metadata) == {"passenger_id": "P1"}
    assert refusal.fields == [f"passengers[0].{field}"]
    answer = await airport.imported(passenger("P2", traveller.pnr), changed)
    assert counts(answer) == (1, 0, 0)
    ((index, _, wrong, _),) = wrong_fields(answer)
    assert (index, wrong, answer.rejected[0].reason) == (1, field, "PASSENGER_CHECKED_IN")
    await traveller.cancel()
    assert counts(await airport.imported(passenger("P2", traveller.pnr), changed)) == (0, 1, 1)


async def test_a_checked_in_passengers_name_and_address_can_change(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.completed(10)
    assert counts(await airport.imported(passenger("P1", traveller.pnr, last_name="Ibáñez"))) == (0, 1, 0)
    asked = pb.GetBoardingPassRequest(checkin_id=traveller.checkin_id)
    assert (await traveller.desk.GetBoardingPass(asked)).last_name == "Ibáñez"


async def test_import_and_start_at_once_stay_consistent(airport: Airport) -> None:
    for n in range(4):
        traveller = await airport.traveller(f"P{n}")
        hold = await traveller.hold()
        results = await asyncio.gather(
            airport.imported(passenger(f"P{n}", traveller.pnr, fare="FLEX")),
            traveller.start(hold_id=hold.hold_id),
            return_exceptions=True,
        )
        assert outcomes(results[1:]) == {"OK": 1}
        allowance = (await airport.row(traveller)).allowance_grams
        assert outcomes(results[:1]) == ({"OK": 1} if allowance == 32_000 else {"PASSENGER_CHECKED_IN": 1})

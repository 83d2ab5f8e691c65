"""ListCheckIns: the check-ins of a flight in pages, with the cancelled ones."""

from __future__ import annotations

from skyhigh.checkin.v1 import checkin_service_pb2 as pb

from tests.callers import refused
from tests.checkin.airport import Airport


async def test_pages_list_each_check_in_once_in_order(airport: Airport) -> None:
    travellers = await airport.travellers(*(f"P{n}" for n in range(5)))
    begun = [(await each.start()).checkin_id for each in travellers]
    await travellers[1].cancel()
    shown: list[pb.CheckIn] = []
    token = ""
    while True:
        page = await airport.agent.ListCheckIns(
            pb.ListCheckInsRequest(flight_id=airport.flight_id, page_size=2, page_token=token)
        )
        assert len(page.checkins) <= 2
        shown += page.checkins
        token = page.next_page_token
        if not token:
            break
    assert [each.checkin_id for each in shown] == begun
    assert shown[1].state == pb.CheckIn.CANCELLED
    assert not any(each.history for each in shown)


async def test_a_page_token_of_another_list_is_refused(airport: Airport) -> None:
    for traveller in await airport.travellers("P1", "P2"):
        await traveller.start()
    page = await airport.agent.ListCheckIns(pb.ListCheckInsRequest(flight_id=airport.flight_id, page_size=1))
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await airport.agent.ListCheckIns(
            pb.ListCheckInsRequest(flight_id="SH-OTHER-1", page_token=page.next_page_token)
        )
    assert refusal.fields == ["page_token"]
    with refused("INVALID_ARGUMENT", "INVALID_FIELD"):
        await airport.operations.ListCheckIns(
            pb.ListCheckInsRequest(flight_id=airport.flight_id, page_token=page.next_page_token)
        )


async def test_an_unknown_flight_has_an_empty_list(airport: Airport) -> None:
    answer = await airport.operations.ListCheckIns(pb.ListCheckInsRequest(flight_id="SH-NONE-1"))
    assert answer == pb.ListCheckInsResponse()

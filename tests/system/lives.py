"""The behaviour of a run's clients: whole lives over all public RPCs.

Their steps come in the right order and, on purpose, in wrong ones. A life reacts to responses, and draws every choice
from its own random generator.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

from skyhigh.booking.v1 import booking_service_pb2 as booking_pb
from skyhigh.checkin.v1 import checkin_service_pb2 as checkin_pb
from skyhigh.flight.v1 import flight_service_pb2 as flight_pb
from skyhigh.seat.v1 import seat_service_pb2 as seat_pb
from skyhigh.waitlist.v1 import waitlist_service_pb2 as waitlist_pb

from tests.system.airline import (
    ROUTE,
    Airline,
    Flight,
    Party,
    Passenger,
    day_of,
    new_people,
    timestamp,
)
from tests.system.players import ANYBODY, Actor, Player, Reply
from tests.waiting import pause

OPEN_FLIGHTS: Final = 7
SEATS_LEFT: Final = (6, 20)
WANTED_SEATS: Final = 10
SECONDS_AHEAD: Final = (22.0, 100.0)
CALLS_AT_ONCE: Final = 8
PARTIES_OF_MANIFEST: Final = (3, 7)
GROUP_SIZE: Final = 40
CODES: Final = ("00000", "99999", "41532", "70001", "1234")
CODE_CHANCES: Final = (50, 14, 18, 14, 4)
REASONS: Final = ("CHANGED_MIND", "SICK", "STRIKE", "SEAT_BROKEN")
BAGS: Final[Sequence[Sequence[int]]] = (
    [],
    [9_000],
    [12_000, 11_000],
    [20_000, 20_000],
    [31_000],
    [33_000],
    [1_000] * 6,
)
BAG_CHANCES: Final = (12, 20, 12, 26, 12, 6, 4)
PAYMENT_LOOKS: Final = 12
IDLE_LOOK_SECONDS: Final = 0.25

Step = Callable[[], Awaitable[None]]


class Life:
    """A client that plays one life after another until the run ends."""

    thinking_seconds: ClassVar[float] = 0.12

    def __init__(self, player: Player, airline: Airline) -> None:
        self.player = player
        self.airline = airline
        self.dice = player.dice
        self.stack = player.wires.stack

    async def run(self) -> None:
        """Plays lives until the run ends."""
        while not self.airline.ending:
            await self.live()
            await self.think()

    async def live(self) -> None:
        """Plays one life."""
        raise NotImplementedError

    async def think(self) -> None:
        """Pauses as a client does between two calls."""
        await pause(self.dice.expovariate(1 / self.thinking_seconds))

    async def take(self, steps: Mapping[Step, float]) -> None:
        """Takes one of the steps, at random by weight."""
        step = self.dice.choices(list(steps), list(steps.values()))[0]
        await step()

    async def do(self, rpc: str, actor: Actor, **fields: Any) -> Reply:
        """Makes a call."""
        return await self.player.do(rpc, actor, **fields)

    def chance(self, chance: float) -> bool:
        """Returns True with this probability."""
        return self.dice.random() < chance

    def reason(self) -> str:
        """Draws a reason code, or none."""
        return self.dice.choice(("", *REASONS))

    def code(self) -> str:
        """Draws a payment code: one that succeeds, fails, does either at random, or is malformed."""
        return self.dice.choices(CODES, CODE_CHANCES)[0]

    def some_seats(self, flight: Flight, number: int, cabin: str = "ECONOMY") -> list[str]:
        """Draws seats for a party, mostly different ones."""
        if self.chance(0.03):
            return [flight.some_seat(self.dice, cabin) for _ in range(number)]
        first = flight.business if cabin == "BUSINESS" and flight.business else flight.wanted
        seats = self.dice.sample(first, len(first)) + [each for each in flight.seats if each not in first]
        return seats[:number]

    async def pass_time(self, moment: float, *, longest: float) -> None:
        """Waits until a time if it is near; otherwise returns at once."""
        left = moment - time.time()
        if 0 < left <= longest:
            await self.idle(left)

    async def idle(self, seconds: float) -> None:
        """Waits for so long, or until the run ends."""
        end = time.monotonic() + seconds
        while not self.airline.ending and (left := end - time.monotonic()) > 0:
            await pause(min(left, IDLE_LOOK_SECONDS))


class Operations(Life):
    """Keeps the schedule full.

    Opens flights, blocks most of their seats, imports manifests and changes them.
    """

    thinking_seconds = 0.4

    def __init__(self, player: Player, airline: Airline) -> None:
        super().__init__(player, airline)
        self._actor = self.stack.actor("operations", f"ops-{airline.run}")
        self._agent = self.stack.actor("agent", f"hub-{airline.run}")

    async def live(self) -> None:
        self.airline.forget()
        if len(self.airline.open_flights(seconds=12)) < OPEN_FLIGHTS:
            await self.open_flights()
            return
        await self.take(
            {
                self.change_passenger: 10,
                self.import_party: 3,
                self.move_departure: 1.5,
                self.cancel_flight: 0.7,
                self.set_mode: 2,
                self.import_again: 1,
                self.create_again: 0.5,
            }
        )

    async def open_flights(self) -> None:
        """Opens one flight, or two that connect."""
        leg = self.dice.randrange(len(ROUTE) - 1)
        ahead = self.dice.uniform(*SECONDS_AHEAD)
        connecting = leg + 2 < len(ROUTE) and self.chance(0.5)
        sold = connecting or self.chance(0.65)
        first = self.new_flight(leg, time.time() + ahead, sold=sold)
        flights = [first]
        if connecting:
            flights.append(self.new_flight(leg + 1, first.arrival + self.dice.uniform(2, 40), sold=True))
        flights = [flight for flight in flights if await self.open(flight)]
        for flight in flights:
            self.airline.flights[flight.flight_id] = flight
        parties = [
            self.new_party([flight]) for flight in flights for _ in range(self.dice.randint(*PARTIES_OF_MANIFEST))
        ]
        if len(flights) > 1:
            parties.append(self.new_party(flights))
            if self.chance(0.15):
                parties.append(self.new_party(flights, group=True))
        for flight in flights:
            await self.import_manifest(flight, [party for party in parties if flight in party.flights])
        self.airline.parties += parties

    def new_flight(self, leg: int, departure: float, *, sold: bool) -> Flight:
        """Draws a flight on a leg."""
        number = self.airline.flight_number()
        return Flight(
            flight_id=f"{number}-{self.airline.run}",
            number=number,
            origin=ROUTE[leg],
            destination=ROUTE[leg + 1],
            aircraft=self.dice.choices(("AT72", "A321"), (4, 1))[0],
            departure=departure,
            arrival=departure + self.dice.uniform(8, 25),
            closes_before=self.dice.choice((0, 2, 5, 12)),
            sold=sold,
        )

    async def open(self, flight: Flight) -> bool:
        """Creates a flight, or only its seats, and blocks all but a few.

        Returns whether it succeeded.
        """
        if flight.sold:
            made = await self.do("CreateFlight", self._actor, **self.facts(flight))
            flight.date = made.message.departure_date if made.ok else ""
        else:
            layouts = {"AT72": "AT72-70Y", "A321": "A321-16C"}
            made = await self.do(
                "ProvisionSeats", self._actor, flight_id=flight.flight_id, layout_id=layouts[flight.aircraft]
            )
        seen = await self.do("GetSeatMap", self._agent, flight_id=flight.flight_id) if made.ok else made
        if not seen.ok:
            return False
        economy = [seat.seat_number for seat in seen.message.seats if seat.cabin == seat_pb.Seat.ECONOMY]
        flight.business = [seat.seat_number for seat in seen.message.seats if seat.cabin == seat_pb.Seat.BUSINESS]
        rows = self.dice.sample(economy, len(economy))
        small = flight.aircraft == "AT72" and self.chance(0.8)
        flight.wanted = rows[: self.dice.randint(*SEATS_LEFT) if small else WANTED_SEATS]
        if small:
            await self.block([seat for seat in economy if seat not in flight.wanted], flight)
        flight.seats = economy
        if self.chance(0.6):
            await self.set_mode(flight)
        return True

    async def block(self, seats: list[str], flight: Flight) -> None:
        """Blocks seats."""
        request = seat_pb.BlockSeatRequest(flight_id=flight.flight_id, reason="SMALL_CABIN")

        async def one(seat: str) -> None:
            asked = seat_pb.BlockSeatRequest()
            asked.CopyFrom(request)
            asked.seat_number = seat
            async with room:
                # Recorded as twins, because otherwise the clients of a run await each call before the next.
                await self.player.once("BlockSeat", self._agent, asked, twin=True, patient=True)

        room = asyncio.Semaphore(CALLS_AT_ONCE)
        await asyncio.gather(*map(one, seats))

    def facts(self, flight: Flight) -> dict[str, Any]:
        """Returns the facts of a flight for the schedule."""
        return {
            "flight_id": flight.flight_id,
            "flight_number": flight.number,
            "origin": flight.origin,
            "destination": flight.destination,
            "departure_time": timestamp(flight.departure),
            "arrival_time": timestamp(flight.arrival),
            "aircraft_type": flight.aircraft,
            "price": {"currency_code": "USD", "units": 100 + len(flight.flight_id), "nanos": 500_000_000},
            "gate": "A7",
            "check_in_closes_before": {"seconds": flight.closes_before},
        }

    def manifest_facts(self, flight: Flight) -> dict[str, Any]:
        """Returns the facts of a flight for the manifest."""
        known = self.facts(flight)
        not_checkins = ("flight_id", "aircraft_type", "price")
        return {name: value for name, value in known.items() if name not in not_checkins}

    def new_party(self, flights: list[Flight], *, group: bool = False) -> Party:
        """Draws a party for the manifest."""
        pnr = self.airline.locator()
        if group:
            people = [Passenger(f"{pnr}-{number}", "Flo", "Group") for number in range(1, GROUP_SIZE + 1)]
        else:
            business = all(flight.business for flight in flights) and self.chance(0.3)
            people = list(new_people(self.dice, pnr, business=business))
        return Party(pnr, people, flights)

    def line(self, party: Party, passenger: Passenger) -> dict[str, Any]:
        """Returns a passenger's line of a manifest."""
        return {
            "passenger_id": passenger.passenger_id,
            "pnr": party.pnr,
            "given_name": passenger.given_name,
            "last_name": passenger.last_name,
            "type": passenger.kind,
            "cabin": passenger.cabin,
            "special_services": list(passenger.needs),
            "accompanying_passenger_id": passenger.lap_of,
            "contact_email": f"{passenger.passenger_id.lower()}@passengers.example",
        }

    async def import_manifest(self, flight: Flight, parties: list[Party]) -> None:
        """Imports the parties of a flight, sometimes with an invalid line.

        Check-in needs the flight's facts once.
        """
        lines = [self.line(party, passenger) for party in parties for passenger in party.passengers]
        if self.chance(0.1):
            lines.append({"passenger_id": "X-1", "pnr": "XXXXXX", "given_name": "Max", "last_name": "17"})
        reply = await self.do(
            "ImportManifest",
            self._actor,
            flight_id=flight.flight_id,
            flight=self.manifest_facts(flight) if not flight.in_manifest or self.chance(0.5) else None,
            passengers=lines,
        )
        flight.in_manifest |= reply.ok

    async def import_party(self) -> None:
        """Adds a party to a flight, sometimes with a locator that another party has."""
        flights = self.airline.open_flights()
        if not flights:
            return
        flight = self.dice.choice(flights)
        party = self.new_party([flight])
        others = self.airline.living_parties()
        if others and self.chance(0.25):
            party.pnr = self.dice.choice(others).pnr
        await self.import_manifest(flight, [party])
        self.airline.parties.append(party)

    async def import_again(self) -> None:
        """Imports known passengers once more, including those of bookings."""
        parties = self.airline.living_parties()
        if parties:
            party = self.dice.choice(parties)
            await self.import_manifest(self.dice.choice(party.flights), [party])

    async def change_passenger(self) -> None:
        """Changes a passenger in the manifest: cabin, needs, age, locator."""
        parties = self.airline.living_parties()
        if not parties:
            return
        party = self.dice.choice(parties)
        passenger = self.dice.choice(party.passengers)
        line: dict[str, Any] = {
            "passenger_id": passenger.passenger_id,
            "pnr": party.pnr,
            "given_name": passenger.given_name,
            "last_name": passenger.last_name,
        }
        way = self.dice.choices(("cabin", "needs", "well", "type", "pnr", "fare", "name"), (30, 20, 10, 12, 6, 10, 5))[
            0
        ]
        if way == "cabin":
            passenger.cabin = "BUSINESS" if passenger.cabin == "ECONOMY" else "ECONOMY"
            line["cabin"] = passenger.cabin
        elif way == "needs":
            line["special_services"] = [self.dice.choice(("WCHC", "WCHR", "INFT", "UMNR", "BLND"))]
        elif way == "well":
            line["cleared_fields"] = ["specialServices"]
        elif way == "type":
            passenger.kind = self.dice.choice(("ADULT", "CHILD", "INFANT"))
            line["type"] = passenger.kind
            adults = [each.passenger_id for each in party.passengers if each.kind == "ADULT"]
            if passenger.kind == "INFANT" and adults:
                line["accompanying_passenger_id"] = self.dice.choice(adults)
        elif way == "pnr":
            line["pnr"] = self.airline.locator()
        elif way == "fare":
            line["fare"] = self.dice.choice(("BASIC", "STANDARD", "FLEX", "BUSINESS"))
        else:
            line["given_name"] = passenger.given_name = "Kim"
        flight = self.dice.choice(party.flights)
        await self.do("ImportManifest", self._actor, flight_id=flight.flight_id, passengers=[line])

    async def move_departure(self) -> None:
        """Moves a departure, as for a delayed aircraft."""
        flights = self.airline.open_flights(sold=False)
        if not flights:
            return
        flight = self.dice.choice(flights)
        moved = max(time.time() + 3, flight.departure + self.dice.uniform(-25, 20))
        flight.departure, flight.arrival = moved, moved + flight.arrival - flight.departure
        await self.do("ImportManifest", self._actor, flight_id=flight.flight_id, flight=self.manifest_facts(flight))

    async def cancel_flight(self) -> None:
        """Cancels a flight, sometimes one that has departed."""
        flights = [flight for flight in self.airline.known_flights() if flight.sold and not flight.cancelled]
        if flights:
            flight = self.dice.choice(flights)
            reply = await self.do("CancelFlight", self._actor, flight_id=flight.flight_id, reason=self.reason())
            flight.cancelled = reply.ok

    async def create_again(self) -> None:
        """Creates a flight again, with the same facts or with others."""
        flights = self.airline.open_flights(sold=True)
        if flights:
            flight = self.dice.choice(flights)
            facts = self.facts(flight)
            if self.chance(0.5):
                facts["gate"] = "B1"
            await self.do("CreateFlight", self._actor, **facts)

    async def set_mode(self, flight: Flight | None = None) -> None:
        """Sets how a flight's waitlist assigns seats."""
        flights = [flight] if flight is not None else self.airline.open_flights()
        if flights:
            await self.do(
                "SetWaitlistMode",
                self._agent,
                flight_id=self.dice.choice(flights).flight_id,
                mode=self.dice.choice(("AUTO_CONFIRM", "OFFER", "OFFER")),
            )


class Travelling(Life):
    """Steps of a party: seats, check-in, bags, waitlist.

    A subclass says where the party comes from.
    """

    party: Party

    def session(self) -> Actor:
        """Returns the newest session, sometimes an old one."""
        sessions = self.party.sessions
        if not sessions:
            return ANYBODY
        return self.dice.choice(sessions) if self.chance(0.15) else sessions[-1]

    def flight(self) -> Flight:
        """Draws one of the party's flights."""
        return self.dice.choice(self.party.flights)

    def passenger(self) -> Passenger:
        """Draws one of the party's passengers."""
        return self.dice.choice(self.party.passengers)

    def some(self, kind: str, own: Any) -> str | None:
        """Draws one of the party's ids, mostly the newest; sometimes one of another party."""
        if self.chance(0.04) and (foreign := self.airline.some_id(kind, self.dice)):
            return foreign
        known = list(own)
        if not known:
            return None
        return str(known[-1] if self.chance(0.75) else self.dice.choice(known))

    def steps(self) -> dict[Step, float]:
        """Returns the next possible steps of the party with their weights."""
        party = self.party
        open_checkins = any(state == "INITIATED" for state in party.checkins.values())
        fees = any(state == "WAITING_FOR_PAYMENT" for state in party.checkins.values())
        done = any(state == "COMPLETED" for state in party.checkins.values())
        offered = any(state == "OFFERED" for state in party.entries.values())
        return {
            self.log_in: 0.6 if party.sessions else 60,
            self.look: 5,
            self.hold: 4 if party.holds else 14,
            self.hold_all: 3,
            self.extend: 1 if party.holds else 0,
            self.change: 2 if party.holds else 0,
            self.confirm: 6 if party.holds else 0,
            self.cancel_hold: 2.5 if party.holds else 0,
            self.read_hold: 1 if party.holds else 0,
            self.check_in: 9 if party.holds else 4,
            self.declare: 20 if open_checkins else (2 if party.checkins else 0),
            self.pay_fee: 20 if fees else (0.7 if party.intents else 0),
            self.read_check_in: 6 if fees else (2 if party.checkins else 0),
            self.board: 10 if done else (1 if party.checkins else 0),
            self.cancel_check_in: 1.5 if party.checkins else 0,
            self.watch_check_in: 0.3 if party.checkins else 0,
            self.join: 5,
            self.read_entry: 5 if party.entries else 0,
            self.accept: 12 if offered else (0.6 if party.entries else 0),
            self.confirm_offer: 6 if offered else 0,
            self.decline: 2 if offered else (0.5 if party.entries else 0),
            self.leave: 1.5 if party.entries else 0,
            self.wait: 1.2,
            self.player.repeat_late: 1.5,
        }

    async def log_in(self) -> None:
        """Opens a session with the locator and the last name, sometimes with a wrong name."""
        name = self.party.last_name
        typed = self.dice.choice((name, name.upper(), f" {name.lower()} ")) if self.chance(0.95) else "Nobody"
        reply = await self.do("CreateSession", ANYBODY, pnr=self.party.pnr, last_name=typed)
        if reply.ok:
            self.party.sessions.append(Actor(f"passenger:{self.party.pnr}", reply.message.token))
            self.see_trip(reply.message.trip)

    def see_trip(self, trip: checkin_pb.Trip) -> None:
        """Stores the states of the party's check-ins."""
        for passenger in trip.passengers:
            for segment in passenger.segments:
                if segment.checkin_id:
                    self.party.checkins[segment.checkin_id] = checkin_pb.CheckIn.State.Name(segment.checkin_state)

    async def look(self) -> None:
        """Makes one of the reads that precede a choice."""
        actor, flight, passenger = self.session(), self.flight(), self.passenger()
        way = self.dice.choices(("trip", "eligibility", "map", "suggest"), (3, 2, 4, 2))[0]
        if way == "trip":
            reply = await self.do("GetTrip", actor, pnr=self.party.pnr)
            if reply.ok:
                self.see_trip(reply.message)
        elif way == "eligibility":
            await self.do("GetEligibility", actor, flight_id=flight.flight_id, passenger_id=passenger.passenger_id)
        elif way == "map":
            await self.do("GetSeatMap", actor, flight_id=flight.flight_id)
        else:
            await self.do(
                "SuggestSeats", actor, flight_id=flight.flight_id, party_size=min(9, len(self.party.passengers))
            )

    def held(self, reply: Reply) -> None:
        """Stores a hold."""
        if reply.ok and reply.message.hold_id not in self.party.holds:
            self.party.holds.append(reply.message.hold_id)
            self.airline.hear("hold", reply.message.hold_id)

    async def hold(self) -> None:
        """Holds a seat for one passenger of any type; tries another seat if it is taken."""
        flight, passenger = self.flight(), self.passenger()
        for _ in range(3):
            reply = await self.do(
                "HoldSeat",
                self.session(),
                flight_id=flight.flight_id,
                seat_number=flight.some_seat(self.dice, passenger.cabin),
                passenger_id=passenger.passenger_id,
                purpose=self.dice.choices(("PURPOSE_UNSPECIFIED", "CHECK_IN", "BOOKING"), (5, 4, 1))[0],
            )
            self.held(reply)
            if reply.reason != "SEAT_TAKEN":
                return

    async def hold_all(self) -> None:
        """Holds seats for several passengers on one flight or on all."""
        flights = self.party.flights if self.chance(0.6) else [self.flight()]
        people = self.party.passengers[:4] if self.chance(0.7) else self.party.passengers[:9]
        reply = await self.do("HoldSeats", self.session(), seats=self.seats(flights, people), purpose="CHECK_IN")
        self.held(reply)

    def seats(self, flights: list[Flight], people: list[Passenger]) -> list[dict[str, str]]:
        """Draws a seat on each flight for each passenger who needs one.

        Seldom draws one for an infant too.
        """
        seated = [each for each in people if each.kind != "INFANT" or self.chance(0.1)]
        return [
            {"flight_id": flight.flight_id, "seat_number": seat, "passenger_id": passenger.passenger_id}
            for flight in flights
            for passenger, seat in zip(seated, self.some_seats(flight, len(seated), people[0].cabin), strict=True)
        ] or [{"flight_id": flights[0].flight_id, "seat_number": "2A", "passenger_id": people[0].passenger_id}]

    async def extend(self) -> None:
        """Extends a hold."""
        if hold_id := self.some("hold", self.party.holds):
            await self.do("ExtendHold", self.session(), hold_id=hold_id)

    async def change(self) -> None:
        """Changes the seats of a hold."""
        if hold_id := self.some("hold", self.party.holds):
            people = [self.passenger()] if self.chance(0.6) else self.party.passengers[:4]
            await self.do("ChangeHoldSeats", self.session(), hold_id=hold_id, seats=self.seats([self.flight()], people))

    async def confirm(self) -> None:
        """Confirms a hold."""
        if hold_id := self.some("hold", self.party.holds):
            await self.do("ConfirmHold", self.session(), hold_id=hold_id)

    async def cancel_hold(self) -> None:
        """Cancels a hold, possibly one whose passenger has checked in."""
        if hold_id := self.some("hold", self.party.holds):
            await self.do(
                "CancelHold",
                self.session(),
                hold_id=hold_id,
                reason=self.reason(),
                unless_confirmed=self.chance(0.1),
            )

    async def read_hold(self) -> None:
        """Reads a hold."""
        if hold_id := self.some("hold", self.party.holds):
            await self.do("GetHold", self.session(), hold_id=hold_id)

    def checked(self, reply: Reply) -> None:
        """Stores the present state of a check-in."""
        if reply.ok:
            checkin = reply.message
            self.party.checkins[checkin.checkin_id] = checkin_pb.CheckIn.State.Name(checkin.state)
            self.airline.hear("checkin", checkin.checkin_id)
            if checkin.payment_intent_id and checkin.payment_intent_id not in self.party.intents:
                self.party.intents.append(checkin.payment_intent_id)
                self.airline.hear("intent", checkin.payment_intent_id)

    async def check_in(self) -> None:
        """Starts a check-in, with a hold or with the confirmed seat."""
        hold_id = self.some("hold", self.party.holds) if self.chance(0.7) else None
        self.checked(
            await self.do(
                "StartCheckIn",
                self.session(),
                flight_id=self.flight().flight_id,
                passenger_id=self.passenger().passenger_id,
                hold_id=hold_id or "",
            )
        )

    async def declare(self) -> None:
        """Declares bags: none, light, too many, too heavy."""
        if checkin_id := self.some("checkin", self.party.checkins):
            bags = self.dice.choices(BAGS, BAG_CHANCES)[0]
            self.checked(
                await self.do(
                    "DeclareBaggage",
                    self.session(),
                    checkin_id=checkin_id,
                    bags=[{"weight_grams": grams} for grams in bags],
                )
            )

    async def pay_fee(self) -> None:
        """Pays a fee, and sometimes reads the payment."""
        if intent_id := self.some("intent", self.party.intents):
            await self.do("SubmitPaymentCode", self.session(), intent_id=intent_id, payment_code=self.code())
            if self.chance(0.5):
                await self.do("GetPaymentIntent", self.session(), intent_id=intent_id)

    async def read_check_in(self) -> None:
        """Reads a check-in."""
        if checkin_id := self.some("checkin", self.party.checkins):
            self.checked(await self.do("GetCheckIn", self.session(), checkin_id=checkin_id))

    async def board(self) -> None:
        """Fetches the boarding pass, sometimes as an image."""
        if checkin_id := self.some("checkin", self.party.checkins):
            way = self.dice.choices(("GetBoardingPass", "GetBoardingPassSvg", "GetBoardingPassPng"), (8, 1, 1))[0]
            await self.do(way, self.session(), checkin_id=checkin_id)

    async def cancel_check_in(self) -> None:
        """Cancels a check-in, possibly after the departure."""
        if checkin_id := self.some("checkin", self.party.checkins):
            self.checked(await self.do("CancelCheckIn", self.session(), checkin_id=checkin_id, reason=self.reason()))

    async def watch_check_in(self) -> None:
        """Watches a check-in for some seconds."""
        if checkin_id := self.some("checkin", self.party.checkins):
            await self.player.watch("WatchCheckIn", self.session(), self.dice.uniform(0.5, 3), checkin_id=checkin_id)

    def waits(self, reply: Reply) -> None:
        """Stores the present state of a waitlist entry."""
        if reply.ok:
            entry = reply.message
            self.party.entries[entry.entry_id] = waitlist_pb.WaitlistEntry.State.Name(entry.state)
            self.airline.hear("entry", entry.entry_id)
            if entry.hold_id and entry.hold_id not in self.party.holds:
                self.party.holds.append(entry.hold_id)
                self.airline.hear("hold", entry.hold_id)

    async def join(self) -> None:
        """Joins the waitlist, possibly of a flight that has departed."""
        flight = self.flight()
        wishes: dict[str, Any] = {}
        if self.chance(0.4) and flight.wanted:
            wishes["seat_numbers"] = self.dice.sample(flight.wanted, min(len(flight.wanted), self.dice.randint(1, 3)))
        elif self.chance(0.3):
            wishes["positions"] = self.dice.sample(("WINDOW", "MIDDLE", "AISLE"), self.dice.randint(1, 2))
        self.waits(
            await self.do(
                "JoinWaitlist",
                self.session(),
                flight_id=flight.flight_id,
                passenger_id=self.passenger().passenger_id,
                preferences=wishes or None,
            )
        )

    async def entry(self, rpc: str, **fields: Any) -> None:
        """Makes a call about a waitlist entry."""
        if entry_id := self.some("entry", self.party.entries):
            self.waits(await self.do(rpc, self.session(), entry_id=entry_id, **fields))

    async def read_entry(self) -> None:
        """Reads an entry."""
        await self.entry("GetWaitlistEntry")

    async def accept(self) -> None:
        """Accepts an offer."""
        await self.entry("AcceptOffer")

    async def decline(self) -> None:
        """Declines an offer."""
        await self.entry("DeclineOffer")

    async def leave(self) -> None:
        """Leaves the waitlist."""
        await self.entry("LeaveWaitlist")

    async def confirm_offer(self) -> None:
        """Confirms the hold of an offer at the seat service directly.

        Sometimes leaves the waitlist after that.
        """
        offers = [entry_id for entry_id, state in self.party.entries.items() if state == "OFFERED"]
        reply = await self.do("GetWaitlistEntry", self.session(), entry_id=self.dice.choice(offers))
        self.waits(reply)
        if reply.ok and reply.message.hold_id:
            await self.do("ConfirmHold", self.session(), hold_id=reply.message.hold_id)
            if self.chance(0.5):
                rpc = self.dice.choice(("LeaveWaitlist", "DeclineOffer", "AcceptOffer"))
                self.waits(await self.do(rpc, self.session(), entry_id=reply.message.entry_id))

    async def wait(self) -> None:
        """Waits until a hold may have lapsed, or until about a departure."""
        if self.chance(0.5):
            await self.idle(self.dice.uniform(0.5, 4))
        else:
            await self.pass_time(self.flight().departure + self.dice.uniform(-0.2, 2), longest=15)


class ManifestPassenger(Travelling):
    """A party of the manifest, or a second device of such a party."""

    async def live(self) -> None:
        parties = self.airline.living_parties()
        if not parties:
            await self.idle(0.5)
            return
        self.party = self.dice.choice(parties)
        for _ in range(self.dice.randint(6, 30)):
            if self.airline.ending:
                return
            await self.take(self.steps())
            await self.think()


class Customer(Travelling):
    """A guest who searches, books, changes, pays, cancels.

    Travels after that, sometimes even if the booking was cancelled.
    """

    async def live(self) -> None:
        if not self.airline.open_flights(sold=True):
            await self.idle(0.5)
            return
        guest = await self.do("CreateGuestSession", ANYBODY)
        if not guest.ok:
            return
        self.customer = Actor(f"customer:{guest.message.customer_id}", guest.message.token)
        self.booking: booking_pb.Booking | None = None
        self.booked_flights: list[Flight] = []
        await self.browse()
        await self.book()
        if self.booking is None:
            return
        for _ in range(self.dice.randint(2, 10)):
            if self.airline.ending:
                return
            await self.take(self.ordering())
            await self.think()
            if self.state == "CONFIRMED":
                break
        if self.state != "CONFIRMED" or not self.booking.pnr:
            return
        self.party = self.booked_party()
        self.airline.parties.append(self.party)
        for _ in range(self.dice.randint(8, 30)):
            if self.airline.ending:
                return
            await self.take(self.steps() | self.owning())
            await self.think()

    @property
    def state(self) -> str:
        """The booking's state, as it was last read."""
        return booking_pb.Booking.State.Name(self.booking.state) if self.booking is not None else ""

    def ordering(self) -> dict[Step, float]:
        """Returns the possible steps with a booking that is not confirmed."""
        paying = self.state in ("PAYMENT_PENDING", "PAYMENT_PROCESSING")
        return {
            self.pay: 0.7 if paying else 8,
            self.follow: 10 if paying else 1,
            self.change_booking: 3,
            self.cancel_booking: 1,
            self.watch_booking: 1.5 if paying else 0.3,
            self.browse: 1,
            self.wait_for_expiry: 0.5,
            self.player.repeat_late: 0.7,
            self.hold_as_guest: 0.5,
        }

    def owning(self) -> dict[Step, float]:
        """Returns the possible steps with a confirmed booking besides travelling."""
        return {
            self.cancel_booking: 2.2,
            self.follow: 2,
            self.pay: 0.3,
            self.change_booking: 0.5,
            self.watch_booking: 0.3,
        }

    async def browse(self) -> None:
        """Looks for flights in one of the available ways."""
        flights = self.airline.open_flights(sold=True)
        way = self.dice.choices(("search", "list", "get", "map", "itinerary"), (4, 1, 1, 2, 1))[0]
        if way == "list" or not flights:
            await self.do("ListFlights", ANYBODY, page_size=self.dice.choice((0, 5, 100)))
            return
        flight = self.dice.choice(flights)
        if way == "search":
            await self.do(
                "SearchFlights",
                ANYBODY,
                source=flight.origin,
                destination=self.dice.choice([each for each in ROUTE if each != flight.origin]),
                date=flight.date or day_of(flight.departure),
                seats=self.dice.randint(1, 4),
                sort=self.dice.choice(("PRICE", "DURATION", "DEPARTURE")),
            )
        elif way == "get":
            reply = await self.do("GetFlight", ANYBODY, flight_id=flight.flight_id)
            flight.cancelled |= reply.ok and reply.message.status == flight_pb.Flight.CANCELLED
        elif way == "map":
            await self.do("GetSeatMap", self.customer, flight_id=flight.flight_id)
        else:
            await self.do(
                "GetItinerary", ANYBODY, itinerary_id=f"CF_{flight.origin}_{flight.destination}_{flight.flight_id}"
            )

    def journey(self) -> list[Flight]:
        """Draws a flight, or two that connect."""
        flights = self.airline.open_flights(sold=True)
        if not flights:
            return []
        first = self.dice.choice(flights)
        onward = [each for each in flights if each.origin == first.destination and each.departure > first.arrival]
        return [first, self.dice.choice(onward)] if onward and self.chance(0.7) else [first]

    async def book(self) -> None:
        """Books a journey, with named seats or without.

        Tries again if the seats are taken.
        """
        for _ in range(3):
            flights = self.journey()
            if not flights:
                return
            people = [
                {"given_name": each.given_name, "last_name": each.last_name, "type": each.kind}
                for each in new_people(self.dice, "XXXXXX")
            ]
            business = all(flight.business for flight in flights) and self.chance(0.2)
            cabin = "BUSINESS" if business else "ECONOMY"
            seated = [n for n, person in enumerate(people) if person["type"] != "INFANT"]
            named = [
                {"flight_id": flight.flight_id, "seat_number": seat, "passenger_index": n}
                for flight in flights
                for n, seat in zip(seated, self.some_seats(flight, len(seated), cabin), strict=True)
            ]
            where: dict[str, Any] = {"flight_id": flights[0].flight_id}
            if len(flights) > 1:
                ids = "_".join(flight.flight_id for flight in flights)
                where = {"itinerary_id": f"CF_{flights[0].origin}_{flights[-1].destination}_{ids}"}
            reply = await self.do(
                "CreateBooking",
                self.customer,
                passengers=people,
                seats=named if self.chance(0.5) else [],
                contact_email=f"{self.player.name}@customers.example",
                cabin=cabin,
                **where,
            )
            if reply.ok:
                self.booked_flights = flights
                self.ordered(reply)
                return

    def ordered(self, reply: Reply) -> None:
        """Stores the present state of a booking."""
        if reply.ok:
            self.booking = reply.message
            self.airline.hear("booking", reply.message.booking_id)
            self.airline.hear("hold", reply.message.hold_id)
            self.airline.hear("intent", reply.message.payment_intent_id)

    async def about(self, rpc: str, **fields: Any) -> Reply:
        """Makes a call about the booking."""
        assert self.booking is not None
        return await self.do(rpc, self.customer, booking_id=self.booking.booking_id, **fields)

    async def pay(self) -> None:
        """Pays, and mostly reads the booking until the payment ends."""
        reply = await self.about("PayBooking", payment_code=self.code())
        self.ordered(reply)
        if reply.ok and self.chance(0.8):
            for _ in range(PAYMENT_LOOKS):
                await pause(self.dice.uniform(0.1, 0.5))
                await self.follow()
                if self.state not in ("PAYMENT_PENDING", "PAYMENT_PROCESSING") or self.airline.ending:
                    return

    async def follow(self) -> None:
        """Reads the booking."""
        self.ordered(await self.about("GetBooking"))

    async def change_booking(self) -> None:
        """Changes all seats of the booking."""
        assert self.booking is not None
        seated = [each for each in self.booking.passengers if each.type != booking_pb.INFANT]
        seats = [
            {"flight_id": flight.flight_id, "seat_number": seat, "passenger_id": passenger.passenger_id}
            for flight in self.booked_flights
            for passenger, seat in zip(seated, self.some_seats(flight, len(seated)), strict=True)
        ]
        if seats:
            self.ordered(await self.about("ChangeBookingSeats", seats=seats))

    async def cancel_booking(self) -> None:
        """Cancels the booking at any time, possibly during a payment or after a departure."""
        if self.state == "CONFIRMED" and self.chance(0.3):
            await self.pass_time(self.booked_flights[0].departure + self.dice.uniform(-0.3, 1), longest=20)
        self.ordered(await self.about("CancelBooking", reason=self.reason()))

    async def watch_booking(self) -> None:
        """Watches the booking for some seconds."""
        assert self.booking is not None
        messages = await self.player.watch(
            "WatchBooking", self.customer, self.dice.uniform(0.5, 3), booking_id=self.booking.booking_id
        )
        for message in messages:
            if message.HasField("booking"):
                self.booking = message.booking

    async def wait_for_expiry(self) -> None:
        """Waits until about the expiry of the booking, and then pays or reads it."""
        assert self.booking is not None
        end = self.booking.expire_time.ToNanoseconds() / 1e9
        await self.pass_time(end + self.dice.uniform(-0.4, 0.4), longest=20)
        if self.chance(0.6):
            self.ordered(await self.about("PayBooking", payment_code=self.code()))
        else:
            await self.follow()

    async def hold_as_guest(self) -> None:
        """Holds a seat without a booking, and sometimes uses the booking's own hold."""
        assert self.booking is not None
        if self.booking.hold_id and self.chance(0.5):
            rpc = self.dice.choice(("CancelHold", "ConfirmHold", "ExtendHold", "GetHold"))
            await self.do(rpc, self.customer, hold_id=self.booking.hold_id)
            return
        flight = self.dice.choice(self.booked_flights)
        await self.do(
            "HoldSeat",
            self.customer,
            flight_id=flight.flight_id,
            seat_number=flight.some_seat(self.dice),
            passenger_id=f"G-{self.player.key()[:8]}",
            purpose="BOOKING",
        )

    def booked_party(self) -> Party:
        """Returns the booking's passengers as a party."""
        assert self.booking is not None
        people = [
            Passenger(
                each.passenger_id,
                each.given_name,
                each.last_name,
                kind=booking_pb.PassengerType.Name(each.type),
                cabin=booking_pb.Cabin.Name(self.booking.cabin),
                lap_of=each.accompanying_passenger_id,
            )
            for each in self.booking.passengers
        ]
        return Party(self.booking.pnr, people, self.booked_flights, self.booking.booking_id, self.customer)


class Desk(Life):
    """An airport agent: blocks and unblocks seats, acts for passengers, lists a flight's data."""

    thinking_seconds = 0.2

    def __init__(self, player: Player, airline: Airline) -> None:
        super().__init__(player, airline)
        self._actor = self.stack.actor("agent", f"{player.name}-{airline.run}")

    async def live(self) -> None:
        if self.airline.known_flights():
            await self.take(
                {
                    self.block: 4,
                    self.unblock: 6,
                    self.list: 3,
                    self.cancel_hold: 1.5,
                    self.cancel_check_in: 1,
                    self.cancel_booking: 0.5,
                    self.seat: 4,
                    self.join: 2,
                    self.entry: 2,
                    self.mode: 1,
                    self.refund: 0.5,
                    self.player.repeat_late: 1,
                }
            )

    def flight(self) -> Flight:
        """Draws one of the known flights."""
        return self.dice.choice(self.airline.known_flights())

    async def block(self) -> None:
        """Blocks a seat."""
        await self.mark("BlockSeat")

    async def unblock(self) -> None:
        """Unblocks a seat."""
        await self.mark("UnblockSeat")

    async def mark(self, rpc: str) -> None:
        """Blocks or unblocks a seat, mostly a popular one."""
        flight = self.flight()
        await self.do(
            rpc,
            self._actor,
            flight_id=flight.flight_id,
            seat_number=flight.some_seat(self.dice),
            reason=self.dice.choice(REASONS),
        )

    async def list(self) -> None:
        """Lists check-ins, waitlist entries or seat events of a flight."""
        flight = self.flight()
        rpc = self.dice.choice(("ListCheckIns", "ListWaitlist", "ListSeatEvents"))
        more = {"seat_number": flight.some_seat(self.dice)} if rpc == "ListSeatEvents" else {}
        await self.do(rpc, self._actor, flight_id=flight.flight_id, page_size=self.dice.choice((0, 3, 100)), **more)

    async def cancel(self, rpc: str, kind: str) -> None:
        """Cancels a resource of any passenger or customer."""
        if identifier := self.airline.some_id(kind, self.dice):
            await self.do(rpc, self._actor, **{f"{kind}_id": identifier}, reason=self.reason())

    async def cancel_hold(self) -> None:
        """Cancels any hold."""
        await self.cancel("CancelHold", "hold")

    async def cancel_check_in(self) -> None:
        """Cancels any check-in."""
        await self.cancel("CancelCheckIn", "checkin")

    async def cancel_booking(self) -> None:
        """Cancels any booking."""
        await self.cancel("CancelBooking", "booking")

    async def refund(self) -> None:
        """Tries to refund a payment, which only a service may do."""
        await self.cancel("RefundPayment", "intent")

    def some_passenger(self) -> tuple[Party, Flight, Passenger] | None:
        """Draws a passenger of any party."""
        parties = self.airline.living_parties()
        if not parties:
            return None
        party = self.dice.choice(parties)
        return party, self.dice.choice(party.flights), self.dice.choice(party.passengers)

    async def seat(self) -> None:
        """Holds a seat for a passenger, confirms it and checks the passenger in.

        Sometimes stops in between.
        """
        if (found := self.some_passenger()) is None:
            return
        party, flight, passenger = found
        held = await self.do(
            "HoldSeat",
            self._actor,
            flight_id=flight.flight_id,
            seat_number=flight.some_seat(self.dice, passenger.cabin),
            passenger_id=passenger.passenger_id,
            owner=f"passenger:{party.pnr}" if self.chance(0.7) else "",
        )
        if not held.ok:
            return
        self.airline.hear("hold", held.message.hold_id)
        party.holds.append(held.message.hold_id)
        if self.chance(0.5):
            await self.do("ConfirmHold", self._actor, hold_id=held.message.hold_id)
        if self.chance(0.5):
            started = await self.do(
                "StartCheckIn",
                self._actor,
                flight_id=flight.flight_id,
                passenger_id=passenger.passenger_id,
                hold_id=held.message.hold_id if self.chance(0.5) else "",
            )
            if started.ok:
                party.checkins[started.message.checkin_id] = "INITIATED"
                self.airline.hear("checkin", started.message.checkin_id)
                await self.do("DeclareBaggage", self._actor, checkin_id=started.message.checkin_id)

    async def join(self) -> None:
        """Adds a passenger to the waitlist."""
        if (found := self.some_passenger()) is None:
            return
        party, flight, passenger = found
        reply = await self.do(
            "JoinWaitlist", self._actor, flight_id=flight.flight_id, passenger_id=passenger.passenger_id
        )
        if reply.ok:
            party.entries[reply.message.entry_id] = waitlist_pb.WaitlistEntry.State.Name(reply.message.state)
            self.airline.hear("entry", reply.message.entry_id)

    async def entry(self) -> None:
        """Acts for a waiting passenger."""
        if entry_id := self.airline.some_id("entry", self.dice):
            rpc = self.dice.choices(("GetWaitlistEntry", "AcceptOffer", "DeclineOffer", "LeaveWaitlist"), (4, 3, 1, 1))[
                0
            ]
            await self.do(rpc, self._actor, entry_id=entry_id)

    async def mode(self) -> None:
        """Sets how a waitlist assigns seats."""
        await self.do(
            "SetWaitlistMode",
            self._actor,
            flight_id=self.flight().flight_id,
            mode=self.dice.choice(("AUTO_CONFIRM", "OFFER")),
        )


class Reader(Life):
    """Reads and watches seat maps; the version of a map must never decrease."""

    thinking_seconds = 0.08

    def __init__(self, player: Player, airline: Airline) -> None:
        super().__init__(player, airline)
        self._actor = self.stack.actor("operations", f"{player.name}-{airline.run}")
        self._versions: dict[str, int] = {}

    async def live(self) -> None:
        flights = self.airline.known_flights()
        if not flights:
            return
        flight = self.dice.choice(flights)
        known = self._versions.get(flight.flight_id, 0)
        if self.chance(0.12):
            seconds = self.dice.uniform(1, 6)
            version = known if self.chance(0.6) else 0
            messages = await self.player.watch(
                "WatchSeatMap", self._actor, seconds, flight_id=flight.flight_id, known_version=version
            )
            versions = [message.version for message in messages]
        else:
            version = known if self.chance(0.4) else 0
            reply = await self.do("GetSeatMap", self._actor, flight_id=flight.flight_id, known_version=version)
            versions = [reply.message.version] if reply.ok else []
        for version in versions:
            self._versions[flight.flight_id] = max(version, self._versions.get(flight.flight_id, 0))


class Intruder(Life):
    """Uses other clients' ids, wrong roles, old tokens and no token: every such call must be refused."""

    thinking_seconds = 0.4

    def __init__(self, player: Player, airline: Airline) -> None:
        super().__init__(player, airline)
        self._stranger = self.stack.actor("customer", f"{player.name}-{airline.run}")
        self._expired = self.stack.actor("customer", f"{player.name}-{airline.run}", seconds=-60)

    async def live(self) -> None:
        kind, rpc = self.dice.choice(
            (
                ("hold", "GetHold"), ("hold", "ConfirmHold"), ("hold", "CancelHold"), ("hold", "ExtendHold"),
                ("checkin", "GetCheckIn"), ("checkin", "CancelCheckIn"), ("checkin", "GetBoardingPass"),
                ("checkin", "DeclareBaggage"), ("entry", "GetWaitlistEntry"), ("entry", "AcceptOffer"),
                ("entry", "LeaveWaitlist"), ("booking", "GetBooking"), ("booking", "CancelBooking"),
                ("booking", "PayBooking"), ("intent", "GetPaymentIntent"), ("intent", "SubmitPaymentCode"),
            )
        )  # fmt: skip
        identifier = self.airline.some_id(kind, self.dice)
        if identifier is None:
            return
        parties = [party for party in self.airline.parties if party.sessions]
        actors = [ANYBODY, self._stranger, self._expired]
        if parties:
            # The session may belong to another party, or by chance to the right one.
            actors += [self.dice.choice(parties).sessions[0]] * 3
        more = {"payment_code": "00000"} if rpc in ("PayBooking", "SubmitPaymentCode") else {}
        await self.do(rpc, self.dice.choice(actors), **{f"{kind}_id": identifier}, **more)


LIVES: Final[Mapping[type[Life], int]] = {
    Operations: 2,
    ManifestPassenger: 18,
    Customer: 16,
    Desk: 3,
    Reader: 3,
    Intruder: 1,
}
"""The number of clients of each kind in a run by default."""

"""Makes the schedule of faults from a seed.

The same seed and length always make the same schedule. Faults come one at a time, sometimes two: never two that both
stop all work, and never two that affect the same part. After each there are calm seconds in which the product recovers
and the load makes progress. Every kind comes once before any comes twice, so a few schedules contain all of them.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from tests.system.faults.act import (
    SERVICE_LABELS,
    BackendsKilled,
    BrokerDataLost,
    ClockSkewed,
    Disturbed,
    Fault,
    Killed,
    MessagesDuplicated,
    MockFailing,
    Paused,
    PostgresReadOnly,
    RedisFlushed,
    Restarted,
    RollingRestart,
    Stopped,
    WorkerKilled,
)
from tests.system.faults.proxy import BOTH, Conditions, Cut, Direction

FIRST_SECONDS: Final = 3.0
CALM_SECONDS: Final = (3.0, 6.0)
PAIR_PROBABILITY: Final = 0.35
# A second fault begins within this part of the first one.
PAIR_BEGINS: Final = (0.1, 0.6)
PROVIDER, MAIL, WEIGHT = "SKYHIGH_MOCK_PROVIDER_URL", "SKYHIGH_MOCK_MAIL_URL", "SKYHIGH_MOCK_WEIGHT_CONTROL_URL"
DATABASE_WIRES: Final = r"[a-z]+>postgres"
BROKER_WIRES: Final = r"[a-z]+>rabbitmq"
CACHE_WIRES: Final = r"[a-z]+>redis"
CLIENT_WIRES: Final = r"clients>.+"
PEER_WIRES: Final = rf"({'|'.join(SERVICE_LABELS)})>({'|'.join(SERVICE_LABELS)})\.[0-9]+"
MOCK_WIRES: Final = r"[a-z]+>mock-[a-z]+"
PROVIDER_FAILURES: Final = (
    {"down": True},
    {"failure_rate": 1.0},
    {"decision_delay_seconds": 5},
    {"answer_delay_seconds": 4},
    {"lose_answers": 8},
    {"drop_webhooks": True},
    {"webhook_delay_seconds": 3},
    {"duplicate": 3},
    {"reorder": 4},
    {"forge": "unsigned"},
    {"forge": "wrong_key"},
    {"forge": "altered_body"},
    {"forge": "stale"},
    {"wrong_amount": True},
)
MAIL_FAILURES: Final = ({"refuse": True}, {"refuse": 3}, {"slow_seconds": 4})
WEIGHT_FAILURES: Final = ({"mode": "down"}, {"mode": "hang"}, {"slow_seconds": 2})
# A service accepts tokens that begin up to 30 s after its own time. With a clock that is further behind, it must refuse
# every token, and then the run tests nothing else.
SKEWS_SECONDS: Final = (-25, -3, 3, 45)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault: how to make one, how long it lasts, and what may happen at the same time."""

    name: str
    make: Callable[[random.Random], Fault]
    seconds: tuple[float, float]
    """Its shortest and longest duration, including the time to begin, such as a restart."""
    stops_work: bool = False
    """Whether callers may get no response while it lasts."""
    joins: bool = False
    """Whether it may happen while another fault lasts."""
    extra_calm_seconds: float = 0
    """The time that the product needs to start again, in addition to the calm seconds after every fault."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault with its time."""

    at_seconds: float
    seconds: float
    kind: str
    fault: Fault

    @property
    def ends_at_seconds(self) -> float:
        """The time at which it is undone."""
        return self.at_seconds + self.seconds

    def __str__(self) -> str:
        return f"{self.at_seconds:6.1f} s  {self.seconds:4.1f} s  {self.kind}: {self.fault}"


def _seed(generator: random.Random) -> int:
    return generator.randrange(1 << 32)


def _cuts(wires: str) -> Callable[[random.Random], Fault]:
    """Makes cuts on some connections.

    Half of the time before, half of the time after a request was forwarded.
    """

    def make(generator: random.Random) -> Fault:
        cut = Cut(probability=generator.choice((0.02, 0.1, 0.3)))
        before = generator.random() < 0.5
        return Disturbed(wires, Conditions(cut_before=cut) if before else Conditions(cut_after=cut))

    return make


def _slow(wires: str) -> Callable[[random.Random], Fault]:
    def make(generator: random.Random) -> Fault:
        latency = generator.choice((0.005, 0.02, 0.1))
        return Disturbed(wires, Conditions(latency_seconds=latency, jitter_seconds=generator.choice((0, latency))))

    return make


def _silent(wires: str) -> Callable[[random.Random], Fault]:
    def make(generator: random.Random) -> Fault:
        directions = generator.choice((BOTH, frozenset({Direction.REQUESTS}), frozenset({Direction.ANSWERS})))
        return Disturbed(wires, Conditions(black_hole=directions))

    return make


KINDS: Final[Sequence[Kind]] = (
    Kind("Postgres killed", lambda _: Killed("postgres"), (0.5, 1), stops_work=True, extra_calm_seconds=3),
    Kind("Postgres paused", lambda _: Paused("postgres"), (1, 5), stops_work=True),
    Kind("Postgres down", lambda _: Stopped("postgres"), (2, 6), stops_work=True, extra_calm_seconds=3),
    Kind("Postgres restarted", lambda _: Restarted("postgres"), (2, 4), stops_work=True, extra_calm_seconds=3),
    Kind("Postgres read-only", lambda _: PostgresReadOnly(), (2, 5), stops_work=True),
    Kind("database sessions ended", lambda g: BackendsKilled(g.choice((0.3, 1, 2))), (2, 5), joins=True),
    Kind("Redis killed", lambda _: Killed("redis"), (0.5, 1), joins=True),
    Kind("Redis paused", lambda _: Paused("redis"), (1, 5)),
    Kind("Redis down", lambda _: Stopped("redis"), (3, 8)),
    Kind("Redis flushed", lambda _: RedisFlushed(), (0.1, 0.2), joins=True),
    Kind("RabbitMQ killed", lambda _: Killed("rabbitmq"), (0.5, 1), extra_calm_seconds=8),
    Kind("RabbitMQ paused", lambda _: Paused("rabbitmq"), (2, 6)),
    Kind("RabbitMQ down", lambda _: Stopped("rabbitmq"), (3, 10), extra_calm_seconds=8),
    Kind("RabbitMQ restarted", lambda _: Restarted("rabbitmq"), (10, 14), extra_calm_seconds=8),
    Kind("RabbitMQ's data lost", lambda _: BrokerDataLost(), (3, 6), extra_calm_seconds=8),
    Kind("gateway killed", lambda _: Killed("gateway"), (0.5, 1), stops_work=True),
    Kind("gateway paused", lambda _: Paused("gateway"), (1, 3), stops_work=True),
    Kind("gateway restarted", lambda _: Restarted("gateway"), (2, 4), stops_work=True),
    *(Kind(f"{name} killed", lambda _, n=name: Killed(n), (0.5, 1)) for name in SERVICE_LABELS),  # type: ignore[misc]
    Kind("a service paused", lambda g: Paused(g.choice(SERVICE_LABELS)), (1, 6)),
    Kind("a service down", lambda g: Stopped(g.choice(SERVICE_LABELS)), (1, 5)),
    Kind("a service restarted", lambda g: Restarted(g.choice(SERVICE_LABELS)), (4, 6)),
    Kind("rolling restart", lambda _: RollingRestart(), (25, 32)),
    Kind(
        "a worker killed",
        lambda g: WorkerKilled(g.choice(SERVICE_LABELS), _seed(g), every_seconds=g.choice((2, 5))),
        (1, 8),
        joins=True,
    ),
    Kind("a seat worker paused", lambda g: Paused("seat", worker=g.randrange(2)), (1, 10), joins=True),
    Kind("a service's clock wrong", lambda g: ClockSkewed(g.choice(SERVICE_LABELS), g.choice(SKEWS_SECONDS)), (8, 14)),
    Kind("slow database", _slow(DATABASE_WIRES), (2, 6), joins=True),
    Kind("slow broker", _slow(BROKER_WIRES), (2, 6), joins=True),
    Kind("slow cache", _slow(CACHE_WIRES), (2, 6), joins=True),
    Kind("slow calls between services", _slow(PEER_WIRES), (2, 6), joins=True),
    Kind("slow mocks", _slow(MOCK_WIRES), (2, 6), joins=True),
    Kind("silent database", _silent(DATABASE_WIRES), (1, 5), stops_work=True),
    Kind("silent broker", _silent(BROKER_WIRES), (2, 8)),
    Kind("silent cache", _silent(CACHE_WIRES), (1, 6)),
    Kind("silent services", _silent(PEER_WIRES), (1, 5)),
    Kind("silent mocks", _silent(MOCK_WIRES), (1, 5), joins=True),
    Kind("refused cache", lambda _: Disturbed(CACHE_WIRES, Conditions(refuses=True), cut_first=True), (1, 6)),
    Kind("database connections cut", _cuts(DATABASE_WIRES), (2, 6)),
    Kind(
        "commits cut",
        lambda g: Disturbed(DATABASE_WIRES, Conditions(cut_after=Cut(b"COMMIT", g.choice((0.1, 0.3))))),
        (2, 6),
        joins=True,
    ),
    Kind("broker connections cut", _cuts(BROKER_WIRES), (2, 6), joins=True),
    Kind("cache connections cut", _cuts(CACHE_WIRES), (2, 6), joins=True),
    Kind("calls between services cut", _cuts(PEER_WIRES), (2, 6), joins=True),
    Kind("calls of clients cut", _cuts(CLIENT_WIRES), (2, 6), joins=True),
    Kind("calls of mocks cut", _cuts(MOCK_WIRES), (2, 6), joins=True),
    Kind("messages reordered", lambda _: Disturbed(BROKER_WIRES, Conditions(reorders=True), cut_first=True), (4, 8)),
    Kind("messages duplicated", lambda g: MessagesDuplicated(_seed(g)), (4, 8), joins=True),
    Kind("provider failing", lambda g: MockFailing(PROVIDER, g.choice(PROVIDER_FAILURES)), (3, 8), joins=True),
    Kind("mail server failing", lambda g: MockFailing(MAIL, g.choice(MAIL_FAILURES)), (3, 8), joins=True),
    Kind("scales failing", lambda g: MockFailing(WEIGHT, g.choice(WEIGHT_FAILURES)), (3, 8), joins=True),
)


def schedule(seed: int, seconds: float, kinds: Sequence[Kind] = KINDS) -> list[Planned]:
    """Returns the faults of a run in the order of their beginnings.

    All are undone before its last calm seconds.
    """
    generator = random.Random(seed)
    bag: list[Kind] = []
    planned: list[Planned] = []
    at_seconds = FIRST_SECONDS
    while True:
        first = _draw(bag, kinds, generator, lambda _: True)
        group = [Planned(at_seconds, generator.uniform(*first.seconds), first.name, first.make(generator))]
        extra = first.extra_calm_seconds
        if generator.random() < PAIR_PROBABILITY and any(_together(first, kind) for kind in kinds):
            second = _draw(bag, kinds, generator, partial(_together, first))
            begins = at_seconds + group[0].seconds * generator.uniform(*PAIR_BEGINS)
            other = Planned(begins, generator.uniform(*second.seconds), second.name, second.make(generator))
            if not other.fault.parts & group[0].fault.parts:
                group.append(other)
                extra = max(extra, second.extra_calm_seconds)
        calm_at = max(each.ends_at_seconds for each in group) + extra
        if calm_at + CALM_SECONDS[0] > seconds:
            return planned
        planned += group
        at_seconds = calm_at + generator.uniform(*CALM_SECONDS)


def _together(first: Kind, second: Kind) -> bool:
    # A part that is down needs the others to start again. Two faults that stop all work would leave no progress to
    # check.
    return second.joins and second is not first and not (first.stops_work and second.stops_work)


def _draw(bag: list[Kind], kinds: Sequence[Kind], generator: random.Random, fits: Callable[[Kind], bool]) -> Kind:
    """Takes a fitting kind out of the bag.

    Refills the bag with every kind if none fits.
    """
    if not any(map(fits, bag)):
        more = list(kinds)
        generator.shuffle(more)
        bag += more
    index = next(index for index, kind in enumerate(bag) if fits(kind))
    return bag.pop(index)


def groups(planned: Sequence[Planned]) -> list[list[Planned]]:
    """Returns the faults in groups that do not overlap, in the order of their beginnings."""
    grouped: list[list[Planned]] = []
    for each in planned:
        if grouped and each.at_seconds < max(other.ends_at_seconds for other in grouped[-1]):
            grouped[-1].append(each)
        else:
            grouped.append([each])
    return grouped


def overlaps(planned: Sequence[Planned]) -> list[tuple[Planned, Planned]]:
    """Returns each pair of faults that last at the same time."""
    return [
        (one, other)
        for one, other in itertools.combinations(planned, 2)
        if one.at_seconds < other.ends_at_seconds and other.at_seconds < one.ends_at_seconds
    ]

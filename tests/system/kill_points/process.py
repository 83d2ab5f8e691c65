"""The processes of a lane: each service with one worker.

They are forked from a template that has imported all services.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, Final

import grpc
from skyhigh.booking.v1.booking_service_pb2_grpc import BookingServiceStub
from skyhigh.checkin.v1.checkin_service_pb2_grpc import CheckInServiceStub
from skyhigh.flight.v1.flight_service_pb2_grpc import FlightServiceStub
from skyhigh.payment.v1.payment_service_pb2_grpc import PaymentServiceStub
from skyhigh.seat.v1.seat_service_pb2_grpc import SeatServiceStub
from skyhigh.waitlist.v1.waitlist_service_pb2_grpc import WaitlistServiceStub

from booking_service.service import BOOKING_SERVICE
from checkin_service.service import CHECKIN_SERVICE
from deploy.local.process import LOOPBACK, port_is_free
from flight_service.service import FLIGHT_SERVICE
from payment_service.service import PAYMENT_SERVICE
from seat_service.service import SEAT_SERVICE
from services import app
from services.app import Service
from tests.instances import serves
from tests.system.kill_points import injection, planted
from tests.system.kill_points.planted import PLANTED
from tests.system.kill_points.steps import KILLED, ORDERS_VARIABLE
from tests.waiting import eventually
from waitlist_service.service import WAITLIST_SERVICE

SERVICES: Final[Mapping[str, Service[Any]]] = {
    service.name: service
    for service in (
        SEAT_SERVICE,
        FLIGHT_SERVICE,
        PAYMENT_SERVICE,
        CHECKIN_SERVICE,
        WAITLIST_SERVICE,
        BOOKING_SERVICE,
    )
}
STUBS: Final[Mapping[str, Callable[[grpc.aio.Channel], Any]]] = {
    "seat": SeatServiceStub,
    "flight": FlightServiceStub,
    "payment": PaymentServiceStub,
    "checkin": CheckInServiceStub,
    "waitlist": WaitlistServiceStub,
    "booking": BookingServiceStub,
}


class CannotStart(Exception):
    """A process ended at another place than its point."""


@cache
def _context() -> ForkServerContext:
    """Starts the template.

    Then a new process is ready within some tenths of a second instead of seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.system.kill_points.template"])
    return context


def _end_with_the_tester() -> None:
    """Ends the process when the tester ends.

    Otherwise a killed tester would leave its processes and the template behind.
    """
    tester = multiprocessing.parent_process()
    assert tester is not None
    tester.join()
    os._exit(1)


def _run(name: str, variables: Mapping[str, str], log: str) -> None:
    """Runs one worker of a service until it is stopped or killed."""
    # As for the processes of a stack: the kernel shares the CPU between sessions.
    os.setsid()
    os.environ.update(variables)
    os.environ[app.WORKER_INDEX] = "0"
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    threading.Thread(target=_end_with_the_tester, daemon=True).start()
    injection.install()
    if bug := variables.get(planted.VARIABLE):
        PLANTED[bug]()
    app.run(SERVICES[name])


@dataclass
class Worker:
    """A service that runs as one process, which is killed alone and started again."""

    name: str
    port: int
    variables: Mapping[str, str]
    folder: Path
    _process: ForkServerProcess | None = None
    _started: int = field(default=0)

    @property
    def log(self) -> Path:
        """The log of its processes."""
        return self.folder / f"{self.name}.log"

    @property
    def orders(self) -> Path:
        """The file in which the running process, or else the next one, looks for its orders."""
        return self.folder / f"{self.name}-{self._started + (self._process is None)}.orders"

    @property
    def runs(self) -> bool:
        """Whether its process is alive."""
        return self._process is not None and self._process.is_alive()

    @property
    def was_killed(self) -> bool:
        """Whether its process ended at its point.

        Raises CannotStart if it ended in any other way.
        """
        if self._process is None or self._process.is_alive():
            return False
        if self._process.exitcode != KILLED:
            raise CannotStart(f"{self.name} ended with {self._process.exitcode}; see {self.log}")
        return True

    def launch(self, **variables: str) -> None:
        """Starts a process, which serves a little later."""
        assert not self.runs
        self._process = None
        orders = self.orders
        self._started += 1
        self._process = _context().Process(
            target=_run,
            args=(self.name, {**self.variables, **variables, ORDERS_VARIABLE: str(orders)}, str(self.log)),
            daemon=True,
        )
        self._process.start()

    async def serves(self) -> bool:
        """Returns whether the process serves, or has ended at its point."""
        if self.was_killed:
            return True
        # The look at the port comes first, because it costs less than a health check.
        return not port_is_free(self.port) and await serves(self.port, SERVICES[self.name].descriptor.full_name)

    async def start(self, **variables: str) -> None:
        """Starts a process; waits until it serves, or has ended at its point."""
        self.launch(**variables)
        await eventually(self.serves)

    async def stop(self) -> None:
        """Ends the process as a stop of the service does."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signal.SIGTERM)

        async def ended() -> bool:
            return not process.is_alive()

        await eventually(ended)

    @property
    def address(self) -> str:
        """The address on which it listens."""
        return f"{LOOPBACK}:{self.port}"

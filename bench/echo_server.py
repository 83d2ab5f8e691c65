"""The baseline: grpc.aio that does nothing, with the messages, options and process count of the real server.

    python -m bench.echo_server --port 50099 --processes 2 --hold hold.bin --seat-map seat_map.bin --search search.bin

HoldSeat parses its request and serializes a hold, as any servicer must. GetSeatMap and SearchFlights return ready
bytes: less than that no server can do.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
from pathlib import Path
from typing import Final

import grpc
from skyhigh.flight.v1 import flight_service_pb2
from skyhigh.seat.v1 import seat_service_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["SeatService"].full_name
FLIGHT_SERVICE: Final = flight_service_pb2.DESCRIPTOR.services_by_name["FlightService"].full_name


async def serve(port: int, hold: bytes, seat_map: bytes, search: bytes) -> None:
    """Serves the prepared responses until SIGTERM or SIGINT."""
    answer = pb.Hold.FromString(hold)

    async def hold_seat(request: pb.HoldSeatRequest, context: object) -> pb.Hold:
        return answer

    async def get_seat_map(request: bytes, context: object) -> bytes:
        return seat_map

    async def search_flights(request: bytes, context: object) -> bytes:
        return search

    handlers = {
        "HoldSeat": grpc.unary_unary_rpc_method_handler(
            hold_seat, pb.HoldSeatRequest.FromString, pb.Hold.SerializeToString
        ),
        "GetSeatMap": grpc.unary_unary_rpc_method_handler(get_seat_map),
    }
    server = grpc.aio.server(options=[("grpc.so_reuseport", 1), ("grpc.max_concurrent_streams", 1000)])
    searches: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "SearchFlights": grpc.unary_unary_rpc_method_handler(search_flights)
    }
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(SERVICE, handlers),
            grpc.method_handlers_generic_handler(FLIGHT_SERVICE, searches),
        ]
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    # The real server does this too when it has started.
    gc.collect()
    gc.freeze()
    await stopped.wait()
    await server.stop(grace=1)


def main() -> None:
    """Serves in `--processes` processes until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--hold", type=Path, required=True, help="a serialized Hold")
    parser.add_argument("--seat-map", type=Path, required=True, help="a serialized SeatMap")
    parser.add_argument("--search", type=Path, required=True, help="a serialized SearchFlightsResponse")
    arguments = parser.parse_args()
    hold, seat_map = arguments.hold.read_bytes(), arguments.seat_map.read_bytes()
    search = arguments.search.read_bytes()
    # The processes fork before gRPC starts, because gRPC does not work after a fork.
    children: list[int] = []
    for _ in range(arguments.processes - 1):
        child = os.fork()
        if child == 0:
            children.clear()
            break
        children.append(child)
    asyncio.run(serve(arguments.port, hold, seat_map, search))
    for child in children:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()

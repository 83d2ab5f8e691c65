"""Renders seat maps as protobuf and JSON, once for each version."""

from __future__ import annotations

import functools
import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.message import Message
from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service.layouts.cabin_layouts import Layout
from seat_service.maps.seat_map import STATES, Snapshot
from services.proto import rfc3339, timestamp

# The most rendered maps that a process keeps, about 20 kB each.
RENDERED_MAPS: Final = 1000


class MapRenderer:
    """Renders snapshots as protobuf bytes and as JSON, once for each version.

    A serialized message is the concatenation of its serialized fields, and a seat has only five states. So the pieces
    of a layout are serialized once, and a map is joined from them.
    """

    def __init__(self, layouts: Mapping[str, Layout]) -> None:
        self._layouts = layouts
        for layout in layouts.values():
            _pieces(layout)
        self._rendered: OrderedDict[tuple[str, bool], tuple[int, bytes]] = OrderedDict()

    def protobuf(self, snapshot: Snapshot, *, known_version: int) -> bytes:
        """Returns a serialized SeatMap.

        It is `unchanged` and has no seats if `known_version` is the current version.
        """
        if known_version == snapshot.version:
            return _head(snapshot, unchanged=True).SerializeToString()
        return self._once(snapshot, as_json=False)

    def json(self, snapshot: Snapshot, *, known_version: int) -> bytes:
        """Returns the SeatMap of `protobuf` as proto3 JSON."""
        if known_version == snapshot.version:
            return _json(_head(snapshot, unchanged=True))
        return self._once(snapshot, as_json=True)

    def _once(self, snapshot: Snapshot, *, as_json: bool) -> bytes:
        key = (snapshot.flight_id, as_json)
        known = self._rendered.get(key)
        if known is not None and known[0] == snapshot.version:
            self._rendered.move_to_end(key)
            return known[1]
        pieces = _pieces(self._layouts[snapshot.layout_id])
        body = pieces.json(snapshot) if as_json else pieces.protobuf(snapshot)
        self._rendered[key] = (snapshot.version, body)
        if len(self._rendered) > RENDERED_MAPS:
            self._rendered.popitem(last=False)
        return body


class _Pieces:
    """The serialized pieces of one layout, from which its maps are joined."""

    def __init__(self, layout: Layout) -> None:
        cabins = layout.cabins_message()
        self._cabins = pb.SeatMap(cabins=cabins).SerializeToString()
        self._cabins_json = b",".join(_json(cabin) for cabin in cabins)
        self._seats: list[dict[str, bytes]] = []
        self._seats_json: list[dict[str, bytes]] = []
        for seat in layout.seats:
            messages = {
                letter: pb.Seat(
                    seat_number=seat.seat_number,
                    state=pb.Seat.State.Value(name),
                    cabin=seat.cabin,
                    position=seat.position,
                    characteristics=seat.characteristics,
                )
                for letter, name in STATES.items()
            }
            self._seats.append(
                {letter: pb.SeatMap(seats=[message]).SerializeToString() for letter, message in messages.items()}
            )
            self._seats_json.append({letter: _json(message) for letter, message in messages.items()})

    def protobuf(self, snapshot: Snapshot) -> bytes:
        seats = [piece[letter] for piece, letter in zip(self._seats, snapshot.states, strict=True)]
        return b"".join((_head(snapshot).SerializeToString(), self._cabins, *seats))

    def json(self, snapshot: Snapshot) -> bytes:
        head = {
            "flightId": snapshot.flight_id,
            "layoutId": snapshot.layout_id,
            "version": str(snapshot.version),
            "lastUpdated": rfc3339(snapshot.last_updated),
            "unchanged": False,
        }
        seats = b",".join(piece[letter] for piece, letter in zip(self._seats_json, snapshot.states, strict=True))
        return b'%s,"cabins":[%s],"seats":[%s]}' % (_dump(head)[:-1], self._cabins_json, seats)


@functools.cache
def _pieces(layout: Layout) -> _Pieces:
    """Returns the pieces of a layout, serialized once in each process.

    To serialize the about 5,000 pieces of all layouts takes 0.1 s of CPU.
    """
    return _Pieces(layout)


def _head(snapshot: Snapshot, *, unchanged: bool = False) -> pb.SeatMap:
    return pb.SeatMap(
        flight_id=snapshot.flight_id,
        layout_id=snapshot.layout_id,
        version=snapshot.version,
        last_updated=timestamp(snapshot.last_updated),
        unchanged=unchanged,
    )


def _json(message: Message) -> bytes:
    # The gateway prints fields without presence even if they have their default value: the JSON of a map does so, too.
    return _dump(json_format.MessageToDict(message, always_print_fields_with_no_presence=True))


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()

"""Reorders the deliveries of RabbitMQ by their frames.

See AMQP 0-9-1, section 4.2 (framing) and 4.2.6 (content).
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field
from typing import Final

METHOD, HEADER, BODY = 1, 2, 3
FRAME_HEADER: Final = struct.Struct(">BHI")
# The payload of each frame is followed by one byte.
FRAME_END_BYTES: Final = 1
# Class and method of Basic.Deliver.
DELIVER: Final = struct.pack(">HH", 60, 60)
# The size of the bodies, which follows class and weight in the payload of a content header.
BODY_SIZE: Final = struct.Struct(">Q")
BODY_SIZE_OFFSET: Final = 4
MOST_HELD: Final = 16
HOLD_SECONDS: Final = (0.05, 0.4)


@dataclass(slots=True)
class _Delivery:
    """A delivery of which some frames have arrived."""

    frames: bytearray
    body_left: int | None = None

    @property
    def is_whole(self) -> bool:
        return self.body_left == 0


@dataclass(slots=True)
class Shuffler:
    """Delays whole deliveries of one connection and releases them in another order.

    All other frames pass.
    """

    generator: random.Random
    _unread: bytearray = field(default_factory=bytearray)
    _begun: dict[int, _Delivery] = field(default_factory=dict)
    """By channel, because the contents of one channel do not interleave."""
    _held: list[tuple[int, bytes]] = field(default_factory=list)
    """Delayed deliveries with their channel."""

    @property
    def holds(self) -> bool:
        """Whether deliveries are delayed at present."""
        return bool(self._held)

    def hold_seconds(self) -> float:
        """Returns for how long the next deliveries are delayed."""
        return self.generator.uniform(*HOLD_SECONDS)

    def feed(self, data: bytes) -> bytes:
        """Takes the next bytes of the broker; returns those that pass now."""
        self._unread += data
        passed = bytearray()
        while (frame := self._next_frame()) is not None:
            kind, channel, _ = FRAME_HEADER.unpack_from(frame)
            payload = frame[FRAME_HEADER.size : -FRAME_END_BYTES]
            if kind == METHOD and payload.startswith(DELIVER):
                self._begun[channel] = _Delivery(bytearray(frame))
            elif kind in (HEADER, BODY) and channel in self._begun:
                self._continue(channel, kind, frame, payload)
            else:
                # This frame may close the channel; a delivery after that would violate the protocol.
                passed += self._release_of(channel) + frame
        if len(self._held) >= MOST_HELD:
            passed += self.release()
        return bytes(passed)

    def release(self) -> bytes:
        """Returns the delayed deliveries in a random order."""
        held, self._held = self._held, []
        self.generator.shuffle(held)
        return b"".join(delivery for _, delivery in held)

    def _release_of(self, channel: int) -> bytes:
        own = [delivery for other, delivery in self._held if other == channel]
        self._held = [each for each in self._held if each[0] != channel]
        self.generator.shuffle(own)
        return b"".join(own)

    def _continue(self, channel: int, kind: int, frame: bytes, payload: bytes) -> None:
        delivery = self._begun[channel]
        delivery.frames += frame
        if kind == HEADER:
            (delivery.body_left,) = BODY_SIZE.unpack_from(payload, BODY_SIZE_OFFSET)
        elif delivery.body_left is not None:
            delivery.body_left -= len(payload)
        if delivery.is_whole:
            del self._begun[channel]
            self._held.append((channel, bytes(delivery.frames)))

    def _next_frame(self) -> bytes | None:
        if len(self._unread) < FRAME_HEADER.size:
            return None
        size = FRAME_HEADER.size + FRAME_HEADER.unpack_from(self._unread)[2] + FRAME_END_BYTES
        if len(self._unread) < size:
            return None
        frame = bytes(self._unread[:size])
        del self._unread[:size]
        return frame

"""Between Python's types and protobuf's well-known ones."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from google.protobuf import timestamp_pb2

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def timestamp(moment: datetime) -> timestamp_pb2.Timestamp:
    """Returns a Timestamp for an aware datetime, exact to the microsecond."""
    microseconds = (moment - _EPOCH) // _MICROSECOND
    return timestamp_pb2.Timestamp(seconds=microseconds // 1_000_000, nanos=microseconds % 1_000_000 * 1000)


def rfc3339(moment: datetime) -> str:
    """Returns the moment as proto3 JSON prints it: UTC with Z, and fractions of 0, 3 or 6 digits."""
    return timestamp(moment).ToJsonString()

"""Converts Python times to protobuf, and reads the rules of a contract's field."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from buf.validate import validate_pb2
from google.protobuf import timestamp_pb2
from google.protobuf.descriptor import FieldDescriptor

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def timestamp(moment: datetime) -> timestamp_pb2.Timestamp:
    """Converts an aware datetime to a Timestamp, exact to the microsecond."""
    microseconds = (moment - _EPOCH) // _MICROSECOND
    return timestamp_pb2.Timestamp(seconds=microseconds // 1_000_000, nanos=microseconds % 1_000_000 * 1000)


def rfc3339(moment: datetime) -> str:
    """Formats a moment as proto3 JSON does: UTC with Z, 0, 3 or 6 decimals."""
    return timestamp(moment).ToJsonString()


def pattern_of(field: FieldDescriptor) -> str:
    """Returns the pattern of the contract for a text field, or '' if it has none.

    For a list of texts it returns the pattern of the items.
    """
    rules = field.GetOptions().Extensions[validate_pb2.field]
    pattern: str = (rules.repeated.items if field.is_repeated else rules).string.pattern
    return pattern

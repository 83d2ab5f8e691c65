"""Between Python's types and protobuf's well-known ones, and what a contract says of a field."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from buf.validate import validate_pb2
from google.protobuf import timestamp_pb2
from google.protobuf.descriptor import FieldDescriptor

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def timestamp(moment: datetime) -> timestamp_pb2.Timestamp:
    """Returns a Timestamp for an aware datetime, exact to the microsecond."""
    microseconds = (moment - _EPOCH) // _MICROSECOND
    return timestamp_pb2.Timestamp(seconds=microseconds // 1_000_000, nanos=microseconds % 1_000_000 * 1000)


def rfc3339(moment: datetime) -> str:
    """Returns the moment as proto3 JSON prints it: UTC with Z, and fractions of 0, 3 or 6 digits."""
    return timestamp(moment).ToJsonString()


def pattern_of(field: FieldDescriptor) -> str:
    """Returns the regular expression that the contract has for a text field, or for each text of a list; else ''."""
    rules = field.GetOptions().Extensions[validate_pb2.field]
    pattern: str = (rules.repeated.items if field.is_repeated else rules).string.pattern
    return pattern

"""When check-in opens and closes and boarding begins: defaults and their rule.

Both the schedule of sold flights and the manifests of imported flights use them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from google.protobuf.message import Message

from services.errors import FieldViolation


@dataclass(frozen=True, slots=True)
class CheckInTimes:
    """Check-in and boarding times, each as a duration before departure."""

    opens_before: timedelta = timedelta(hours=24)
    closes_before: timedelta = timedelta(minutes=60)
    boarding_before: timedelta = timedelta(minutes=40)

    @classmethod
    def of(cls, facts: Message) -> Self:
        """Returns the times in a flight message; a missing field gets its default."""
        given = {field.name: value for field, value in facts.ListFields()}
        names = {
            "opens_before": "check_in_opens_before",
            "closes_before": "check_in_closes_before",
            "boarding_before": "boarding_before",
        }
        return cls(**{name: given[field].ToTimedelta() for name, field in names.items() if field in given})

    def violations(self, path: str = "") -> Iterator[FieldViolation]:
        """Yields a violation if check-in does not open before it closes.

        `path` is the prefix of the field names in the request.
        """
        if self.opens_before <= self.closes_before:
            yield FieldViolation(f"{path}check_in_opens_before", f"must be longer than {path}check_in_closes_before")

"""When check-in opens and closes and boarding begins, before a departure: the defaults, and the rule between them.

The schedule has them for flights that are sold, a manifest for flights that are imported, and both go by this.
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
    """Each is counted back from the departure."""

    opens_before: timedelta = timedelta(hours=24)
    closes_before: timedelta = timedelta(minutes=60)
    boarding_before: timedelta = timedelta(minutes=40)

    @classmethod
    def of(cls, facts: Message) -> Self:
        """Returns what a flight's facts say; each has its default if it is left out."""
        given = {field.name: value for field, value in facts.ListFields()}
        names = {
            "opens_before": "check_in_opens_before",
            "closes_before": "check_in_closes_before",
            "boarding_before": "boarding_before",
        }
        return cls(**{name: given[field].ToTimedelta() for name, field in names.items() if field in given})

    def violations(self, path: str = "") -> Iterator[FieldViolation]:
        """Yields what is wrong with them together; `path` leads to the facts in the request."""
        if self.opens_before <= self.closes_before:
            yield FieldViolation(f"{path}check_in_opens_before", f"must be longer than {path}check_in_closes_before")

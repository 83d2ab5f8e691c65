"""One rule for names at login, import and booking (CHK-1).

The boarding pass can write each valid name (CHK-8).
"""

from __future__ import annotations

import re

import pytest
from buf.validate import validate_pb2
from google.protobuf.message import Message
from skyhigh.booking.v1 import booking_service_pb2 as booking
from skyhigh.checkin.v1 import checkin_service_pb2 as checkin

from checkin_service.boarding.transliteration import transliterate
from services.errors import InvalidArgument
from services.validation import validate

FIELDS = [
    (booking.CreateBookingRequest.NewPassenger, "given_name"),
    (booking.CreateBookingRequest.NewPassenger, "last_name"),
    (checkin.ManifestPassenger, "given_name"),
    (checkin.ManifestPassenger, "last_name"),
    (checkin.CreateSessionRequest, "last_name"),
]
PASSPORT_NAMES = [
    "'t Hart",
    "\N{RIGHT SINGLE QUOTATION MARK}t Hart",
    "O\N{ACUTE ACCENT}Brien",
    "O`Brien",
    "Ka\N{MODIFIER LETTER TURNED COMMA}iulani",
    "Col\N{MIDDLE DOT}lell",
    "マリア\N{KATAKANA MIDDLE DOT}ローズ",
    "王\N{IDEOGRAPHIC SPACE}小明",
    "Müller-Lüdenscheidt",
    "Smith\N{NON-BREAKING HYPHEN}Jones",
    "J. R.",
    "Жуков",
    "Nguye\N{COMBINING CIRCUMFLEX ACCENT}\N{COMBINING TILDE}n",
    "علی\N{ZERO WIDTH NON-JOINER}رضا",
    "ශ්\N{ZERO WIDTH JOINER}රී",
    "राम",
]
REFUSED_NAMES = [
    "",
    " ",
    "-",
    "'",
    "7up",
    "Roe\n",
    "Ro\0e",
    "<b>",
    "Roe, Kim",
    "Ro\N{ZERO WIDTH JOINER}e",
    "\N{RIGHT-TO-LEFT OVERRIDE}eoR",
    "R" * 61,
]


def violations(kind: type[Message], field: str, name: str) -> set[str]:
    try:
        validate(kind(**{field: name}))
    except InvalidArgument as refusal:
        return {violation.field for violation in refusal.fields}
    return set()


def rules(message: Message, field: str) -> validate_pb2.FieldRules:
    return message.DESCRIPTOR.fields_by_name[field].GetOptions().Extensions[validate_pb2.field]


@pytest.mark.parametrize(("kind", "field"), FIELDS)
def test_every_name_field_has_the_same_rule(kind: type[Message], field: str) -> None:
    assert rules(kind(), field) == rules(FIELDS[0][0](), FIELDS[0][1])


@pytest.mark.parametrize("name", PASSPORT_NAMES)
def test_a_passport_name_is_accepted_and_transliterated(name: str) -> None:
    assert "last_name" not in violations(checkin.CreateSessionRequest, "last_name", name)
    assert re.fullmatch("[A-Z]{2,}", transliterate(name))


@pytest.mark.parametrize("name", REFUSED_NAMES)
def test_a_text_that_is_no_name_is_refused(name: str) -> None:
    assert "last_name" in violations(checkin.CreateSessionRequest, "last_name", name)

"""The string of the boarding pass, with items as in IATA Resolution 792 (CHK-8)."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkin_service.boarding.bcbp import COMPARTMENTS, BcbpError, Pass, decode, encode

# IATA's example, with a real carrier and real airports. Its compartment J is not one of ours.
IATA_EXAMPLE = "M1DESMARAIS/LUC       EABC123 YULFRAAC 0834 326J001A0025 100"
DESMARAIS = Pass(
    last_name="DESMARAIS",
    given_name="LUC",
    pnr="ABC123",
    origin="YUL",
    destination="FRA",
    flight_number="AC834",
    day_of_year=326,
    cabin="BUSINESS",
    seat_number="1A",
    sequence_number=25,
    bags_checked=False,
)
# Taken from the resolution, not from the code: position of the first character (from 1), length, content.
ITEMS = [
    (1, 1, "M"),
    (2, 1, "1"),
    (3, 20, "SOERENSEN/ZOE       "),
    (23, 1, "E"),
    (24, 7, "XK4T7Q "),
    (31, 3, "FRA"),
    (34, 3, "LIS"),
    (37, 3, "SH "),
    (40, 5, "0101 "),
    (45, 3, "007"),
    (48, 1, "Y"),
    (49, 4, "012A"),
    (53, 5, "0042 "),
    (58, 1, "3"),
    (59, 2, "00"),
]
LETTERS = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=1, max_size=30)
NAMES = st.from_regex(re.compile(r"[^\W\d_][^\W\d_ .'-]{0,39}"), fullmatch=True)
CODES = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=3, max_size=3)
PASSES = st.builds(
    Pass,
    last_name=NAMES,
    given_name=NAMES,
    pnr=st.from_regex(r"[A-HJ-NP-Z][2-9A-HJ-NP-Z]{5}", fullmatch=True),
    origin=CODES,
    destination=CODES,
    flight_number=st.from_regex(r"[A-Z0-9]{2}[1-9][0-9]{0,3}[A-Z]?", fullmatch=True),
    day_of_year=st.integers(1, 366),
    cabin=st.sampled_from(list(COMPARTMENTS)),
    seat_number=st.from_regex(r"[1-9][0-9]{0,2}[A-HJ-NP-Z]|INF", fullmatch=True),
    sequence_number=st.integers(1, 9999),
    bags_checked=st.booleans(),
)


def test_the_iata_example_is_reproduced() -> None:
    assert encode(DESMARAIS) == IATA_EXAMPLE.replace("326J", "326C")


def test_each_item_has_its_position() -> None:
    bcbp = encode(
        Pass(
            last_name="Sørensen",
            given_name="Zoë",
            pnr="XK4T7Q",
            origin="FRA",
            destination="LIS",
            flight_number="SH101",
            day_of_year=7,
            cabin="ECONOMY",
            seat_number="12A",
            sequence_number=42,
            bags_checked=True,
        )
    )
    assert len(bcbp) == sum(length for _, length, _ in ITEMS) == 60
    assert [bcbp[first - 1 : first - 1 + length] for first, length, _ in ITEMS] == [item for _, _, item in ITEMS]


@pytest.mark.parametrize(
    ("last_name", "given_name", "shown"),
    [
        ("Weiß", "Jörg", "WEISS/JOERG"),
        ("Müller-Lüdenscheid", "Hans-Peter", "MUELLERLUEDENSCHEID"),
        ("O'Brien", "Mary Ann", "OBRIEN/MARYANN"),
        ("'t Hart", "Åse", "THART/AASE"),
        ("O\N{ACUTE ACCENT}Brien", "Seán", "OBRIEN/SEAN"),
        ("Col·lell", "Pau", "COLLELL/PAU"),
        ("Ærø", "Þór", "AEROE/THOR"),
        # The name has 19 letters; with the stroke it would have 20.
        ("Abcdefghijklmnopqrs", "Tuv", "ABCDEFGHIJKLMNOPQRS"),
        ("Wolfeschlegelsteinhausen", "Adolph", "WOLFESCHLEGELSTEINHA"),
        ("王", "小明", "WANG/XIAOMING"),
        ("Жуков", "Юрий", "ZHUKOV/IURII"),
        ("Щербина", "Ёлка", "SHCHERBINA/ELKA"),
        ("Київський", "Єгор", "KIIVSKII/IEGOR"),
        ("Παπαδόπουλος", "Νίκος", "PAPADOPOULOS/NIKOS"),
        ("カ・トー", "アリス", "KATO/ARISU"),
        # Scripts without a table use the Unicode names of their letters.
        ("\N{EGYPTIAN HIEROGLYPH A001}", "\N{CUNEIFORM SIGN AN}", "A/AN"),
    ],
)
def test_a_name_is_transliterated_and_cut_off_at_20(last_name: str, given_name: str, shown: str) -> None:
    bcbp = encode(replace(DESMARAIS, last_name=last_name, given_name=given_name))
    assert bcbp[2:22] == shown.ljust(20)
    assert decode(bcbp).last_name == shown.partition("/")[0]


@pytest.mark.parametrize(
    ("change", "shown", "first"),
    [
        ({"seat_number": "INF"}, "INF ", 49),
        ({"seat_number": "123K"}, "123K", 49),
        ({"flight_number": "SH0101"}, "SH 0101 ", 37),
        ({"flight_number": "U21234B"}, "U2 1234B", 37),
        ({"cabin": "FIRST"}, "F", 48),
        ({"cabin": "PREMIUM_ECONOMY"}, "W", 48),
        ({"day_of_year": 366}, "366", 45),
        ({"sequence_number": 9999}, "9999 ", 53),
        ({"bags_checked": True}, "3", 58),
    ],
)
def test_an_item_is_written_as_the_resolution_says(change: dict[str, object], shown: str, first: int) -> None:
    assert encode(replace(DESMARAIS, **change))[first - 1 :].startswith(shown)  # type: ignore[arg-type]


@given(PASSES)
def test_a_pass_reads_back(boarding_pass: Pass) -> None:
    bcbp = encode(boarding_pass)
    assert len(bcbp) == 60
    assert bcbp.isascii()
    read = decode(bcbp)
    assert encode(read) == bcbp
    assert replace(read, last_name="", given_name="") == replace(boarding_pass, last_name="", given_name="")


@given(LETTERS, LETTERS)
def test_decoded_names_equal_the_transliterated_ones(last_name: str, given_name: str) -> None:
    read = decode(encode(replace(DESMARAIS, last_name=last_name, given_name=given_name)))
    assert read.last_name == last_name[:20]
    assert read.given_name == given_name[: max(0, 19 - len(last_name))]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"pnr": "ABC12"}, "record locator"),
        ({"pnr": "ABC12345"}, "61 characters"),
        ({"origin": "yul"}, "airport of departure"),
        ({"destination": "FR1"}, "airport of arrival"),
        ({"flight_number": "A1"}, "flight number"),
        ({"flight_number": "AC12345"}, "flight number"),
        ({"day_of_year": 0}, "day of the year"),
        ({"day_of_year": 367}, "day of the year"),
        ({"cabin": "COACH"}, "compartment"),
        ({"seat_number": "12I"}, "seat"),
        ({"seat_number": "0A"}, "seat"),
        ({"sequence_number": 0}, "check-in sequence number"),
        ({"sequence_number": 10_000}, "61 characters"),
    ],
)
def test_an_invalid_fact_is_named(change: dict[str, object], told: str) -> None:
    with pytest.raises(BcbpError, match=told):
        encode(replace(DESMARAIS, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bcbp", "told"),
    [
        ("", "0 characters instead of 60"),
        (IATA_EXAMPLE + "^", "61 characters"),
        (IATA_EXAMPLE, "compartment, character 48: 'J'"),
        ("S" + IATA_EXAMPLE[1:], "format code, character 1: 'S'"),
        ("M2" + IATA_EXAMPLE[2:], "number of legs"),
        (IATA_EXAMPLE.replace("DESMARAIS", "DESMAR\N{LATIN CAPITAL LETTER A WITH DIAERESIS}IS"), "passenger name"),
        (IATA_EXAMPLE.replace("326J001A", "400C001A"), "day of the year, character 45"),
        (IATA_EXAMPLE.replace("326J001A", "326C000A"), "seat, character 49"),
        (IATA_EXAMPLE.replace("326J", "326C")[:-2] + "06", "size of the conditional items"),
    ],
)
def test_an_invalid_barcode_text_is_named(bcbp: str, told: str) -> None:
    with pytest.raises(BcbpError, match=told):
        decode(bcbp)

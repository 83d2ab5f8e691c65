"""Folded names: all spellings of a name are equal, other names differ (CHK-2)."""

from __future__ import annotations

import re
import string
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkin_service.manifests.names import fold, login_key

LATIN_LETTERS = [chr(code) for code in range(0x41, 0x250) if unicodedata.name(chr(code), "").startswith("LATIN ")]
LATIN = st.text(st.sampled_from(LATIN_LETTERS), min_size=1)
ANY_NAME = st.text(st.characters(categories=("L", "M")), max_size=60)


@pytest.mark.parametrize(
    ("name", "folded"),
    [
        ("Müller-Lüdenscheidt", "MULLERLUDENSCHEIDT"),
        ("O\N{RIGHT SINGLE QUOTATION MARK}Brien", "OBRIEN"),
        ("O'BRIEN", "OBRIEN"),
        ("Nuñez", "NUNEZ"),
        ("SØRENSEN", "SORENSEN"),
        ("Weiß", "WEISS"),
        ("van der Berg", "VANDERBERG"),
        ("Đặng", "DANG"),
        ("Łukasiewicz", "LUKASIEWICZ"),
        ("Þórðardóttir", "THORDARDOTTIR"),
        ("Ærø", "AERO"),
        ("Œuvray", "OEUVRAY"),
        ("Əliyev", "ELIYEV"),
        ("İnönü", "INONU"),
        ("Y\N{LATIN SMALL LETTER DOTLESS I}ld\N{LATIN SMALL LETTER DOTLESS I}z", "YILDIZ"),
        ("Ka\N{MODIFIER LETTER TURNED COMMA}iulani", "KAIULANI"),
        ("St. John", "STJOHN"),
        ("\N{LATIN SMALL LIGATURE FI}nch", "FINCH"),
        ("Ёлкина", "елкина"),
        ("Παπαδόπουλος", "παπαδοπουλοσ"),
        ("山田", "山田"),
        ("-", ""),
    ],
)
def test_a_name_is_folded_to_its_letters(name: str, folded: str) -> None:
    assert fold(name) == folded


@given(LATIN)
def test_a_latin_name_folds_to_a_to_z(name: str) -> None:
    assert set(fold(name)) <= set(string.ascii_uppercase)


@given(ANY_NAME)
def test_folding_again_changes_nothing(name: str) -> None:
    assert fold(fold(name)) == fold(name)


@given(ANY_NAME)
def test_composed_and_decomposed_names_fold_alike(name: str) -> None:
    assert fold(unicodedata.normalize("NFD", name)) == fold(name) == fold(unicodedata.normalize("NFC", name))


@given(LATIN)
def test_upper_and_lower_case_names_fold_alike(name: str) -> None:
    assert fold(name.upper()) == fold(name) == fold(name.casefold())


@given(LATIN, st.lists(st.tuples(st.integers(0, 60), st.sampled_from(" -'\u2019.")), max_size=5))
def test_punctuation_in_names_is_ignored(name: str, signs: list[tuple[int, str]]) -> None:
    typed = name
    for place, sign in signs:
        typed = typed[:place] + sign + typed[place:]
    assert fold(typed) == fold(name)


@given(st.text(string.ascii_uppercase))
def test_different_plain_names_fold_differently(name: str) -> None:
    assert fold(name) == name


@pytest.mark.parametrize(
    ("name", "typed"),
    [
        ("Müller", "MUELLER"),
        ("Mueller", "müller"),
        ("Sørensen", "Soerensen"),
        ("Åberg", "aaberg"),
        ("Jäger", "Jaeger"),
        ("Bäer", "Baeer"),
        ("Äaltonen", "Aeaaltonen"),
    ],
)
def test_a_login_matches_umlauts_in_both_spellings(name: str, typed: str) -> None:
    assert login_key("XK4T7Q", name) == login_key("xk4t7q", typed)


@pytest.mark.parametrize(("pnr", "name"), [("XK4T7R", "Miller"), ("XK4T7Q", "Millar"), ("XK4T7", "QMiller")])
def test_another_locator_or_name_has_another_key(pnr: str, name: str) -> None:
    assert login_key(pnr, name) != login_key("XK4T7Q", "Miller")


def test_a_key_does_not_show_the_name() -> None:
    key = login_key("XK4T7Q", "Miller")
    assert len(key) == 16
    assert not re.search(rb"MILLER|XK4T7Q", key)

"""Transliterates names to the Latin capitals of travel documents (ICAO Doc 9303).

These are the letters of the machine-readable zone (part 3, section 6). Tables A (Latin letters with diacritics) and B
(Cyrillic) of the document are here, with the first spelling where it permits several. The package `anyascii`
transliterates the scripts that have no table here.
"""

# ruff: noqa: RUF001, SIM905  The tables have letters that look like others, and are read more easily as text.
from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Final

from anyascii import anyascii

# Letters of table A that do not simply lose their diacritic.
_LATIN: Final = {
    "Ä": "AE",
    "Å": "AA",
    "Æ": "AE",
    "Ð": "D",
    "Ö": "OE",
    "Ø": "OE",
    "Ü": "UE",
    "Þ": "TH",
    "ß": "SS",
    "ẞ": "SS",
    "Đ": "D",
    "Ħ": "H",
    "ı": "I",
    "Ĳ": "IJ",
    "ĸ": "Q",
    "Ł": "L",
    "Ŋ": "N",
    "Œ": "OE",
    "Ŧ": "T",
}
_CYRILLIC: Final = dict(
    pair.split("=")
    for pair in (
        "А=A Б=B В=V Г=G Д=D Е=E Ё=E Ж=ZH З=Z И=I Й=I К=K Л=L М=M Н=N О=O П=P Р=R С=S Т=T У=U Ф=F Х=KH Ц=TS Ч=CH Ш=SH "
        "Щ=SHCH Ъ=IE Ы=Y Ь= Э=E Ю=IU Я=IA Ѓ=G Ђ=D Є=IE Ѕ=DZ І=I Ї=I Ј=J Љ=LJ Њ=NJ Ћ=C Ќ=K Ў=U Џ=DZ Ґ=G"
    ).split()
)
_TABLE: Final = {**_LATIN, **_CYRILLIC}
# Greek passports (ISO 843) write this pair of letters OU; each letter alone is O and Y.
_GREEK_OU: Final = re.compile("(?<=[ΟοΌό])[Υυύ]")
_NOT_LATIN: Final = re.compile(r"[^A-Z]+")
_NO_LETTER: Final = "X"


def transliterate(name: str) -> str:
    """Returns the name in A to Z, without spaces and signs; never empty.

    A boarding pass can't have an empty name. `Müller` is `MUELLER`, `Жуков` is `ZHUKOV`, `王` is `WANG`.
    """
    composed = _GREEK_OU.sub("u", unicodedata.normalize("NFC", name))
    return "".join(map(_letter, composed)) or "".join(map(_named, composed)) or _NO_LETTER


@lru_cache(maxsize=4096)
def _letter(character: str) -> str:
    for known in (character, character.upper()):
        if known in _TABLE:
            return _TABLE[known]
    base = unicodedata.normalize("NFD", character)[0]
    return _NOT_LATIN.sub("", anyascii(base if "A" <= base.upper() <= "Z" else character).upper())


def _named(character: str) -> str:
    """Returns the last word of a letter's Unicode name; empty if it is no letter.

    Used for a name without any letter that a table or `anyascii` transliterates.
    """
    words = unicodedata.name(character, "").split() if character.isalpha() else []
    return _NOT_LATIN.sub("", words[-1]) if words else ""

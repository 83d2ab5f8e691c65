"""Folds names, so that a name matches in any spelling at login.

For the name on a boarding pass see `transliteration`.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from hashlib import blake2b
from typing import Final

# Latin letters whose Unicode name does not end with their transcription. The transcriptions are those of ICAO Doc 9303
# part 3, section 6 A; similar letters of West Africa are added.
_LETTERS: Final = {"ð": "D", "þ": "TH", "ŋ": "N", "ə": "E", "\u0131": "I", "ĸ": "Q", "ɛ": "E", "ɔ": "O", "ǝ": "E"}
_NAMED: Final = re.compile(r"LATIN SMALL (?:LETTER|LIGATURE) ([A-Z]{1,2})(?: WITH .*)?")
# Ä, Ö, Ü, Ø and Å are also written AE, OE, UE, OE and AA: tickets say MUELLER, passports MÜLLER.
_SPELT_OUT: Final = re.compile(r"(?<=A)[AE]+|(?<=[OU])E+")
_DIGEST_BYTES: Final = 16


def fold(name: str) -> str:
    """Returns only the letters of a name: Latin as A to Z, other scripts casefolded.

    Removes case, spaces, hyphens, apostrophes, dots and diacritics: `Nuñez` is `NUNEZ`, `Weiß` is `WEISS`.
    """
    # Casefolding can undo a composition, and decomposing can bring up capitals, so each runs twice.
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", name).casefold()).casefold()
    return "".join(map(_letter, decomposed))


@lru_cache(maxsize=1024)
def _letter(character: str) -> str:
    if "a" <= character <= "z":
        return character.upper()
    if unicodedata.category(character) not in ("Ll", "Lo"):
        return ""
    name = unicodedata.name(character, "")
    if character in _LETTERS or not name.startswith("LATIN "):
        return _LETTERS.get(character, character)
    match = _NAMED.fullmatch(name)
    return match[1] if match else ""


def login_key(pnr: str, last_name: str) -> bytes:
    """Returns the digest by which a login is looked up.

    One index lookup says whether the locator and the name match. Different spellings have the same digest: `Mueller`
    and `Müller`, `Oe` and `Ø`, `Aa` and `Å`.
    """
    name = _SPELT_OUT.sub("", fold(last_name))
    return blake2b(f"{pnr.upper()}\0{name}".encode(), digest_size=_DIGEST_BYTES).digest()

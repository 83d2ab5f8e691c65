"""Values that attackers write into fields."""

from __future__ import annotations

from typing import Any, Final

# Values that could be taken for a part of an SQL statement. Some are valid in a name or a reason; there they must stay
# unchanged.
SQL: Final = (
    "' OR '1'='1",
    "O' OR 'a",
    "'; DROP TABLE seats; --",
    '" OR 1=1 --',
    "1) UNION SELECT usename, passwd FROM pg_shadow --",
    "x'; SELECT pg_sleep(9); --",
    "$1",
    "\\'; --",
    "E'\\047'",
    "12A'--",
    "a'-'b",
    "version DESC; --",
)
# Values that could be taken for a log line, a format string, a command, a page, an address or a file.
CODE: Final = (
    "%s%n",
    "{0.__class__}",
    "${jndi:ldap://127.0.0.1:1/a}",
    '\r\n{"level":"info","event":"paid"}',
    "\x1b[2J\x1b[31mgone",
    "=cmd|' /C calc'!A0",
    "../../../../etc/passwd",
    "file:///etc/passwd",
    "<script>alert(1)</script>",
    "{{7*7}}",
    "`id`",
)
# Values that are not valid text of ours, or only look like it.
TEXTS: Final = (
    "\x00",
    "12A\x00",
    "\x7f",
    "\u202e21A",
    "12\u200bA",
    "\ufeff12A",
    "12\U0001f4baA",
    "\U0001f1e9\U0001f1ea",
    "١٢A",  # noqa: RUF001
    "１２A",  # noqa: RUF001
    "12А",  # Cyrillic  # noqa: RUF001
    "A\u0301" * 200,
    "\ufdfa" * 100,
    "\U000e0041",
    "A" * 10_240,
    "ß" * 61,
    "\uffff",
)
# Invalid UTF-8: a byte that never occurs, a lone continuation byte, overlong encodings of a slash in two and three
# bytes, half of a surrogate pair, a code point beyond the last one, and a lead byte without a continuation.
BROKEN: Final = (b"\xff", b"\x80", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc3")
# JSON values that are not valid for any number field of ours: -1, 2^31, 2^63, and values that are not integers at all.
NO_NUMBERS: Final[tuple[Any, ...]] = (
    -1,
    2**31,
    -(2**31) - 1,
    2**63,
    -(2**63) - 1,
    25.0000001,
    "25.0000001",
    "1e309",
    "NaN",
    "Infinity",
    "-Infinity",
    "0x10",
    "1_000",
    "",
    "١",  # noqa: RUF001
    True,
    [],
    {},
    "1" * 400,
)

"""Money without floats: integer minor units in Python and SQL.

The contracts have units and nanos.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from google.type import money_pb2

from services.errors import FieldViolation, InvalidArgument

NANOS: Final = 1_000_000_000
# The number of decimal digits by ISO 4217 currency. Other currencies are refused: a wrong guess of the digits could
# charge a hundred times too much.
MINOR_DIGITS: Final = {
    currency: digits
    for digits, currencies in {
        0: "CLP ISK JPY KRW PYG UGX VND XAF XOF XPF",
        2: "AED ARS AUD BGN BRL CAD CHF CNY COP CZK DKK EGP EUR GBP HKD HUF IDR ILS INR KES MAD MXN MYR NGN NOK NZD "
        "PEN PHP PKR PLN QAR RON RSD SAR SEK SGD THB TRY TWD UAH USD ZAR",
        3: "BHD IQD JOD KWD LYD OMR TND",
    }.items()
    for currency in currencies.split()
}


@dataclass(frozen=True, slots=True)
class Amount:
    """An amount of money in minor units of its currency."""

    currency: str
    minor_units: int


def amount_of(money: money_pb2.Money, *, field: str = "amount") -> Amount:
    """Converts a contract's money to an amount, exactly.

    `field` is its path in the request. Raises InvalidArgument for a currency that is not accepted and for fractions of
    a minor unit.
    """
    digits = MINOR_DIGITS.get(money.currency_code)
    if digits is None:
        raise InvalidArgument.of(
            FieldViolation(
                f"{field}.currency_code", f"must be an accepted ISO 4217 currency, not {money.currency_code!r}"
            )
        )
    per_unit: int = 10**digits
    minor_of_nanos, left = divmod(money.nanos, NANOS // per_unit)
    if left:
        raise InvalidArgument.of(
            FieldViolation(f"{field}.nanos", f"must have at most {digits} decimal digits in {money.currency_code}")
        )
    return Amount(money.currency_code, money.units * per_unit + minor_of_nanos)


def money_of(amount: Amount) -> money_pb2.Money:
    """Converts an amount to a contract's money."""
    per_unit: int = 10 ** MINOR_DIGITS[amount.currency]
    units, minor = divmod(amount.minor_units, per_unit)
    return money_pb2.Money(currency_code=amount.currency, units=units, nanos=minor * (NANOS // per_unit))


def text_of(amount: Amount) -> str:
    """Formats an amount for people: `12000 JPY`, `120.00 USD`, `1.200 KWD`."""
    digits = MINOR_DIGITS[amount.currency]
    units, minor = divmod(abs(amount.minor_units), 10**digits)
    sign = "-" if amount.minor_units < 0 else ""
    return f"{sign}{units}{f'.{minor:0{digits}}' if digits else ''} {amount.currency}"


def text_of_money(money: money_pb2.Money) -> str:
    """Formats a contract's money as `text_of` does.

    Raises InvalidArgument as `amount_of` does.
    """
    return text_of(amount_of(money))

"""The mocks of a stack: one row for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Mock:
    """A mock of an external system. It is left out if the real system is given."""

    name: str
    number: int
    """Its number among the mocks; its port is computed from it."""
    module: str
    real: str
    """The setting with the address of the real system."""
    control_number: int
    """The number of its control port, where HTTP calls read and change its behaviour."""
    control_url: str
    """The variable in which `skyhigh env` prints the URL of that port."""
    settings: tuple[str, ...] = ()
    """The names of the settings that it gets from `Stack.values`."""


MOCKS: Final = (
    Mock(
        "weight",
        number=1,
        module="deploy.mocks.weight",
        real="SKYHIGH_WEIGHT_ADDRESS",
        control_number=5,
        control_url="SKYHIGH_MOCK_WEIGHT_CONTROL_URL",
    ),
    Mock(
        "provider",
        number=2,
        module="deploy.mocks.payment_provider",
        real="SKYHIGH_PAYMENT_PROVIDER_URL",
        control_number=2,
        control_url="SKYHIGH_MOCK_PROVIDER_URL",
        settings=(
            "SKYHIGH_MOCK_PROVIDER_WEBHOOK_URL",
            "SKYHIGH_MOCK_PROVIDER_WEBHOOK_SECRET",
            "SKYHIGH_MOCK_PROVIDER_WEBHOOK_AUTHORITY",
        ),
    ),
    Mock(
        "mail",
        number=3,
        module="deploy.mocks.mail",
        real="SKYHIGH_SMTP_ADDRESS",
        control_number=4,
        control_url="SKYHIGH_MOCK_MAIL_URL",
    ),
)

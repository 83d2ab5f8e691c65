"""The variables with the addresses and certificates of a stack, as `skyhigh env` prints them."""

from __future__ import annotations

from typing import Final

from deploy.local.mocks import MOCKS
from deploy.local.services import SERVICES

# Only with TLS: the certificate and key of a caller from outside the stack, and the authority that it trusts.
CERTIFICATE_NAMES: Final = ("SKYHIGH_CLIENT_CERTIFICATE", "SKYHIGH_CLIENT_KEY", "SKYHIGH_CA")


def address_names() -> list[str]:
    """Returns the variables with the addresses and certificates of a stack."""
    return [
        "SKYHIGH_GATEWAY_URL",
        "SKYHIGH_DATABASE_URL",
        "SKYHIGH_AMQP_URL",
        "SKYHIGH_REDIS_URL",
        *(address_variable(service.name) for service in SERVICES),
        *(mock.control_url for mock in MOCKS),
        *CERTIFICATE_NAMES,
    ]


def address_variable(service: str) -> str:
    """Returns the variable with the address of a service."""
    return f"SKYHIGH_{service.upper()}_ADDRESS"

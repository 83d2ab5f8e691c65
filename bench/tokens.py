"""Tokens for many callers, signed with a key that only the measured stack trusts."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from joserfc import jwt
from joserfc.jwk import ECKey

from deploy.local.stack import AUDIENCE, ISSUER

ALGORITHM: Final = "ES256"
# Longer than any run.
LIFE_SECONDS: Final = 6 * 3600


class Signer:
    """Signs tokens with a new key of its own."""

    def __init__(self) -> None:
        self._key = ECKey.generate_key("P-256", {"use": "sig", "alg": ALGORITHM}, auto_kid=True)

    def write_jwks(self, file: Path, *, others: Path) -> None:
        """Writes a JWKS of the public key and of the keys of the JWKS `others`."""
        keys = json.loads(others.read_text())["keys"]
        file.write_text(json.dumps({"keys": [self._key.as_dict(private=False), *keys]}))

    def agent(self, name: str) -> str:
        """Returns a token for an agent."""
        return self._sign(name, role="agent")

    def customer(self, name: str) -> str:
        """Returns a token for a booking customer."""
        return self._sign(name, role="customer")

    def service(self, name: str) -> str:
        """Returns a token for a service."""
        return self._sign(name, role="service")

    def passengers(self, pnr: str, passenger_ids: Sequence[str], flight_id: str) -> str:
        """Returns a token for a check-in session of a PNR's passengers on one flight."""
        named = [
            {"id": passenger, "flight": flight_id, "cabin": "ECONOMY", "type": "ADULT"} for passenger in passenger_ids
        ]
        return self._sign(pnr, role="passenger", passengers=named)

    def _sign(self, subject: str, **claims: Any) -> str:
        now = int(time.time())
        claims |= {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "iat": now, "exp": now + LIFE_SECONDS}
        return jwt.encode({"alg": ALGORITHM, "kid": self._key.kid}, claims, self._key)

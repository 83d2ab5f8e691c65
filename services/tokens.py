"""Tokens that a service signs for sessions, or sends to other services."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from joserfc import jwt
from joserfc.jwk import ECKey

from services.auth import ALGORITHM, Role
from services.errors import Unavailable

# After this time at most, calls use a token file that was replaced.
REREAD_SECONDS: Final = 60


class TokenSigner:
    """Signs tokens with the private key of a JWK file.

    The issuer's JWKS must contain the public key.
    """

    def __init__(self, key_file: Path, *, issuer: str, audience: str) -> None:
        self._key = ECKey.import_key(json.loads(key_file.read_text()))
        self._issuer = issuer
        self._audience = audience

    def sign(self, role: Role, subject: str, *, ttl: timedelta, **claims: Any) -> tuple[str, datetime]:
        """Returns a token and the time when it expires."""
        now = int(time.time())
        end = now + int(ttl.total_seconds())
        content = {"iss": self._issuer, "aud": self._audience, "sub": subject, "role": str(role)}
        token = jwt.encode(
            {"alg": ALGORITHM, "kid": self._key.kid}, content | {"iat": now, "exp": end} | claims, self._key
        )
        return token, datetime.fromtimestamp(end, UTC)


class OwnToken:
    """The token that a service sends to other services.

    Another program, such as Kubernetes, renews its file.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._token = ""
        self._read_at = -float("inf")

    def __str__(self) -> str:
        """Returns the token. Raises Unavailable if its file was never readable.

        If a later read fails, the last token stays in use.
        """
        if time.monotonic() - self._read_at > REREAD_SECONDS:
            try:
                self._token = self._file.read_text().strip()
                self._read_at = time.monotonic()
            except OSError as error:
                if not self._token:
                    raise Unavailable("this service could not read its own token; retry") from error
        return self._token

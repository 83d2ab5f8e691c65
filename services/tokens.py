"""Tokens that a service issues or shows: passenger sessions, and its own name when it calls another service."""

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

# Whoever rotates the file needs not wait longer than this for us to show the new token.
REREAD_SECONDS: Final = 60


class TokenSigner:
    """Signs tokens with a private key from a JWK file; whoever trusts the issuer's JWKS trusts them."""

    def __init__(self, key_file: Path, *, issuer: str, audience: str) -> None:
        self._key = ECKey.import_key(json.loads(key_file.read_text()))
        self._issuer = issuer
        self._audience = audience

    def sign(self, role: Role, subject: str, *, ttl: timedelta, **claims: Any) -> tuple[str, datetime]:
        """Returns a token and when it ends."""
        now = int(time.time())
        end = now + int(ttl.total_seconds())
        content = {"iss": self._issuer, "aud": self._audience, "sub": subject, "role": str(role)}
        token = jwt.encode(
            {"alg": ALGORITHM, "kid": self._key.kid}, content | {"iat": now, "exp": end} | claims, self._key
        )
        return token, datetime.fromtimestamp(end, UTC)


class OwnToken:
    """The token that a service shows to others, from a file that somebody else keeps fresh, as Kubernetes does."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._token = ""
        self._read_at = -float("inf")

    def __str__(self) -> str:
        """Returns the token. Raises Unavailable where the file can't be read and never could."""
        if time.monotonic() - self._read_at > REREAD_SECONDS:
            try:
                self._token = self._file.read_text().strip()
                self._read_at = time.monotonic()
            except OSError as error:
                if not self._token:
                    raise Unavailable("this service has no token of its own, try again") from error
        return self._token

"""Passwords and token keys of a local stack.

They are random, created when they are first needed, and readable only by their owner.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from pathlib import Path
from typing import Final

ALGORITHM: Final = "ES256"
# Each start of a service replaces its token, so the token has to outlast one run.
SERVICE_TOKEN_SECONDS: Final = 30 * 86400


class Secrets:
    """Named random secrets, kept in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Several servers are prepared at the same time, in threads.
        self._lock = threading.Lock()
        self._values: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}

    def __getitem__(self, name: str) -> str:
        """Returns the secret; creates and stores it if there is none.

        Its characters are safe in URLs, SQL and configuration files.
        """
        with self._lock:
            if name not in self._values:
                self._values[name] = secrets.token_hex(24)
                write_private(self._path, json.dumps(self._values, indent=1).encode())
            return self._values[name]


class SigningKeys:
    """The key pairs that sign the local stack's tokens, and their JWKS.

    One key signs tokens of every role. The other signs only tokens of passengers and customers; the services that open
    sessions have it. Production trusts the JWKS of another issuer and never uses these keys.
    """

    def __init__(self, folder: Path) -> None:
        self._private = folder / "token_key.json"
        self.session_key = folder / "session_key.json"
        self.jwks = folder / "jwks.json"
        self._folder = folder

    def ensure(self) -> None:
        """Creates the pairs that are missing."""
        if self._private.exists() and self.session_key.exists() and self.jwks.exists():
            return
        from joserfc.jwk import ECKey

        public = []
        for file, more in ((self._private, {}), (self.session_key, {"skyhigh_roles": ["passenger", "customer"]})):
            if file.exists():
                key = ECKey.import_key(json.loads(file.read_text()))
            else:
                key = ECKey.generate_key("P-256", {"use": "sig", "alg": ALGORITHM}, auto_kid=True)
                write_private(file, json.dumps(key.as_dict(private=True)).encode())
            public.append({**key.as_dict(private=False), **more})
        self.jwks.write_text(json.dumps({"keys": public}))

    def sign(self, claims: dict[str, object]) -> str:
        """Returns a JWT with these claims."""
        from joserfc import jwt
        from joserfc.jwk import ECKey

        self.ensure()
        key = ECKey.import_key(json.loads(self._private.read_text()))
        return jwt.encode({"alg": ALGORITHM, "kid": key.kid}, claims, key)

    def token_file(self, service: str) -> Path:
        """Returns the file of the token that a service sends to other services."""
        return self._folder / f"{service}.token"

    def write_service_token(self, service: str, *, issuer: str, audience: str) -> Path:
        """Writes the token that a service sends to other services; returns its file."""
        now = int(time.time())
        claims = {"iss": issuer, "aud": audience, "sub": service, "role": "service", "iat": now}
        file = self.token_file(service)
        write_private(file, self.sign(claims | {"exp": now + SERVICE_TOKEN_SECONDS}).encode())
        return file


def write_private(path: Path, content: bytes) -> None:
    """Replaces a file atomically; at every moment only its owner may read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    part.replace(path)

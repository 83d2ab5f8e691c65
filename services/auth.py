"""Verifies tokens and returns the principals of callers.

Tokens are JWTs signed with ES256. The algorithm is fixed here and never read from the token. The gateway verifies
tokens too, but a service verifies each token again and trusts no identity header.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from services.errors import Unauthenticated, Unavailable

ALGORITHM: Final = "ES256"
# Verifying a signature costs more than the rest of a call's overhead, and clients send the same token many times.
CACHED_TOKENS: Final = 20_000
MAX_TOKEN_BYTES: Final = 8192
# The accepted prefixes of the `authorization` header. Envoy compares them case-sensitively, so both usual spellings are
# listed (`gateway/render.py` reads this).
TOKEN_PREFIXES: Final = ("Bearer ", "bearer ")
# The `sub` claim, which is the part of a principal's name after its role. The contracts accept only owners of this
# form.
SUBJECT: Final = re.compile(r"[A-Za-z0-9._@-]{1,64}")
# Accepted difference between the issuer's clock and ours, before and after. It is the smallest value that Envoy can be
# configured with.
CLOCK_SKEW_SECONDS: Final = 1
# The JWKS key parameter that lists the roles whose tokens this key may sign. A key without it may sign for all roles.
KEY_ROLES: Final = "skyhigh_roles"
# How far the `iat` claim may lie in the future. `iat` grants nothing and Envoy does not check it, so a larger
# difference of the issuer's clock is accepted.
ISSUE_SKEW_SECONDS: Final = 30
# Minimum time between two reads of the keys after unknown key ids. An unknown id may come from a key rotation or from
# an attack, and an attacker must not cause a read with each call.
JWKS_REFRESH_SECONDS: Final = 30
# Calls that wait for the first keys share a failed read: each read of its own could take five seconds, one after the
# other.
SHARED_FAILURE_SECONDS: Final = 1
_UNREADABLE: Final = "the keys of the token issuer can't be read; retry"


class Role(StrEnum):
    """The kinds of callers."""

    PASSENGER = "passenger"
    CUSTOMER = "customer"
    AGENT = "agent"
    OPERATIONS = "operations"
    SERVICE = "service"
    ANYBODY = "anybody"
    """A caller without a token, on methods that need none.

    No token carries this role.
    """


@dataclass(frozen=True, slots=True)
class SessionPassenger:
    """A passenger on one flight, as the token of a passenger session lists it."""

    passenger_id: str
    flight_id: str
    cabin: str
    type: str
    special_services: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller of a method.

    `name`, such as `passenger:XK4T7Q`, is stored as the owner of the caller's resources.
    """

    role: Role
    name: str
    passengers: Mapping[tuple[str, str], SessionPassenger] = field(default_factory=dict)
    """By (flight id, passenger id); empty except for passenger sessions."""
    expire_time: float = field(default=math.inf, compare=False)
    """When the token expires, in seconds since 1970.

    It is the `exp` claim plus CLOCK_SKEW_SECONDS.
    """

    @property
    def acts_for_others(self) -> bool:
        """Whether the principal may act on resources that it does not own."""
        return self.role in (Role.AGENT, Role.SERVICE)


ANYBODY: Final = Principal(Role.ANYBODY, "anybody")


class Keys:
    """The issuer's public keys, from a file or an https URL.

    They are read again when a token names an unknown key, at most once per JWKS_REFRESH_SECONDS.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._set: KeySet | None = None
        self._read_at = self._failed_at = -math.inf
        self._reading = asyncio.Lock()

    async def current(self) -> KeySet:
        """Returns the keys, and reads them at the first call.

        Raises Unavailable if they cannot be read; calls within the next second share this outcome.
        """
        if self._set is None:
            async with self._reading:
                if self._set is None:
                    if time.monotonic() - self._failed_at < SHARED_FAILURE_SECONDS:
                        raise Unavailable(_UNREADABLE)
                    await self._load()
        assert self._set is not None
        return self._set

    async def refresh(self) -> bool:
        """Reads the keys again; returns False if the last read is too recent.

        The last read must be at least JWKS_REFRESH_SECONDS ago. Raises Unavailable if the keys cannot be read; then the
        former keys stay in use.
        """
        async with self._reading:
            if time.monotonic() - self._read_at < JWKS_REFRESH_SECONDS:
                return False
            await self._load()
            return True

    async def _load(self) -> None:
        self._read_at = time.monotonic()
        try:
            document = await asyncio.to_thread(self._read)
            self._set = KeySet.import_key_set(json.loads(document))
        except (OSError, ValueError, JoseError) as error:
            self._failed_at = time.monotonic()
            raise Unavailable(_UNREADABLE) from error

    def _read(self) -> bytes:
        if self._source.startswith("https://"):
            with urllib.request.urlopen(self._source, timeout=5) as answer:  # noqa: S310
                body: bytes = answer.read(1 << 20)
                return body
        return Path(self._source).read_bytes()


class TokenVerifier:
    """Returns the principal of a bearer token, or refuses without naming the reason."""

    def __init__(self, *, keys: Keys, issuer: str, audience: str) -> None:
        self._keys = keys
        self._registry = jwt.JWTClaimsRegistry(
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "value": audience},
            exp={"essential": True},
            sub={"essential": True},
            leeway=CLOCK_SKEW_SECONDS,
        )
        self._issue = jwt.JWTClaimsRegistry(leeway=ISSUE_SKEW_SECONDS)
        self._known: dict[str, Principal] = {}

    async def principal(self, authorization: str | None) -> Principal:
        """Returns the principal of an `authorization` header.

        Raises Unauthenticated, or Unavailable if the issuer's keys cannot be read.
        """
        known = self._known.get(authorization or "")
        if known is not None and known.expire_time > time.time():
            return known
        if authorization is None or len(authorization) > MAX_TOKEN_BYTES:
            raise Unauthenticated
        if not authorization.startswith(TOKEN_PREFIXES):
            raise Unauthenticated
        claims = await self._claims(authorization.partition(" ")[2])
        principal = _principal(claims)
        if len(self._known) >= CACHED_TOKENS:
            self._known.pop(next(iter(self._known)))
        self._known[authorization] = principal
        return principal

    async def _claims(self, token: str) -> dict[str, Any]:
        keys = await self._keys.current()
        try:
            if not _has_key(keys, token):
                # The issuer may have rotated a key in since the keys were read.
                await self._keys.refresh()
                keys = await self._keys.current()
            return self._decode(token, keys)
        except (JoseError, ValueError, KeyError, TypeError) as error:
            raise Unauthenticated from error

    def _decode(self, token: str, keys: KeySet) -> dict[str, Any]:
        decoded = jwt.decode(token, keys, algorithms=[ALGORITHM])
        claims = decoded.claims
        self._registry.validate({name: value for name, value in claims.items() if name != "iat"})
        self._issue.validate({name: value for name, value in claims.items() if name == "iat"})
        # A leaked key that may sign only passenger sessions must not be able to sign agent tokens.
        roles = keys.get_by_kid(decoded.header["kid"]).as_dict(private=False).get(KEY_ROLES)
        if roles is not None and claims.get("role") not in roles:
            raise ValueError("this key signs for no such role")
        return claims


def _has_key(keys: KeySet, token: str) -> bool:
    """Returns whether the key that a token names is among the keys. Raises ValueError if the token names none."""
    key_id = jws.extract_compact(token.encode()).headers()["kid"]
    return any(key.kid == key_id for key in keys.keys)


def _principal(claims: Mapping[str, Any]) -> Principal:
    try:
        role = Role(claims["role"])
        if role is Role.ANYBODY:
            raise Unauthenticated
        subject = claims["sub"]
        if not isinstance(subject, str) or not SUBJECT.fullmatch(subject):
            raise Unauthenticated
        passengers = {
            (entry["flight"], entry["id"]): SessionPassenger(
                passenger_id=entry["id"],
                flight_id=entry["flight"],
                cabin=entry.get("cabin", "ECONOMY"),
                type=entry.get("type", "ADULT"),
                special_services=tuple(entry.get("ssr", ())),
            )
            for entry in (claims.get("passengers", ()) if role is Role.PASSENGER else ())
        }
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise Unauthenticated from error
    expire_time = float(claims["exp"]) + CLOCK_SKEW_SECONDS
    return Principal(role=role, name=f"{role}:{subject}", passengers=passengers, expire_time=expire_time)

"""Who calls, and what each role may do.

Tokens are JWTs signed with ES256 and nothing else: the algorithm is pinned here, never read from the token. The
gateway checks them too; a service trusts neither the gateway nor any header but the token itself.
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
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any, Final

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from services.errors import Unauthenticated, Unavailable
from services.time_limits import FACTOR

ALGORITHM: Final = "ES256"
# Verifying a signature costs more than the rest of a call's overhead, and a token comes many times in its life.
CACHED_TOKENS: Final = 20_000
MAX_TOKEN_BYTES: Final = 8192
# What stands before the token in its header. The edge compares it letter by letter, so that the two usual ways to write
# it are listed (`gateway/render.py` reads this).
TOKEN_PREFIXES: Final = ("Bearer ", "bearer ")
# A principal's own part of its name. The contracts take owners of this form alone.
SUBJECT: Final = re.compile(r"[A-Za-z0-9._@-]{1,64}")
# The clock of the issuer may be ahead of ours by so much, or behind it: the least that the edge can be told.
CLOCK_SKEW_SECONDS: Final = 1
# A parameter of a key in the JWKS: the roles that its tokens may have; all where it is missing.
KEY_ROLES: Final = "skyhigh_roles"
# The time of issue opens nothing, and the edge does not look at it; an issuer's clock may be ahead by so much.
ISSUE_SKEW_SECONDS: Final = 30
# An unknown key id may be a rotation or an attack; the keys are asked for again no more often than this.
JWKS_REFRESH_SECONDS: Final = 30


class Role(StrEnum):
    """The kinds of callers."""

    PASSENGER = "passenger"
    CUSTOMER = "customer"
    AGENT = "agent"
    OPERATIONS = "operations"
    SERVICE = "service"
    ANYBODY = "anybody"
    """Who shows no token, on methods that need none. No token gives this role."""


class Effect(Enum):
    """What a method does; its longest duration follows from it."""

    READ = 2.0 * FACTOR
    WRITE = 5.0 * FACTOR
    STREAM = None


@dataclass(frozen=True, slots=True)
class Access:
    """One row of an authorization table: who may call a method, and whether only on what they own.

    `owned` says that roles other than agents, operations and services reach only their own resources. The SQL of the
    method holds that predicate; here it is for readers and for the test matrix.
    """

    roles: frozenset[Role]
    effect: Effect
    owned: bool = False

    @property
    def public(self) -> bool:
        """Whether it is called without a token; one that is sent all the same is not looked at."""
        return Role.ANYBODY in self.roles


def allow(*roles: Role, effect: Effect, owned: bool = False) -> Access:
    """Writes a row of an authorization table."""
    return Access(frozenset(roles), effect, owned)


@dataclass(frozen=True, slots=True)
class SessionPassenger:
    """A passenger whom a passenger session names, on one flight."""

    passenger_id: str
    flight_id: str
    cabin: str
    type: str
    special_services: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls. `name`, such as `passenger:XK4T7Q`, is what resources are owned by."""

    role: Role
    name: str
    passengers: Mapping[tuple[str, str], SessionPassenger] = field(default_factory=dict)
    """By (flight id, passenger id); empty but for passenger sessions."""
    expire_time: float = field(default=math.inf, compare=False)
    """Until when the token is taken, in seconds since 1970: its end, and the skew of its issuer's clock."""

    @property
    def acts_for_others(self) -> bool:
        """Whether it may act on resources that it does not own."""
        return self.role in (Role.AGENT, Role.SERVICE)


ANYBODY: Final = Principal(Role.ANYBODY, "anybody")


class Keys:
    """The issuer's public keys, from a file or an https URL, read again when an unknown key id appears."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._set: KeySet | None = None
        self._read_at = -float("inf")
        self._reading = asyncio.Lock()

    async def current(self) -> KeySet:
        """Returns the keys; reads them first where that was never done. Raises Unavailable where they can't be read."""
        if self._set is None:
            async with self._reading:
                if self._set is None:
                    await self._load()
        assert self._set is not None
        return self._set

    async def refresh(self) -> bool:
        """Reads the keys again, unless that was done just now. Returns whether it was done."""
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
            raise Unavailable("the issuer's keys can't be read, try again") from error

    def _read(self) -> bytes:
        if self._source.startswith("https://"):
            with urllib.request.urlopen(self._source, timeout=5) as answer:  # noqa: S310
                body: bytes = answer.read(1 << 20)
                return body
        return Path(self._source).read_bytes()


class TokenVerifier:
    """Turns a bearer token into a principal, or refuses without saying why."""

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
        """Returns who sent this `authorization` header. Raises Unauthenticated."""
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
        try:
            return self._decode(token, await self._keys.current())
        except (JoseError, ValueError, KeyError, TypeError) as first:
            # A key that was rotated in looks like a forgery until the keys are read again.
            if not await self._keys.refresh():
                raise Unauthenticated from first
        try:
            return self._decode(token, await self._keys.current())
        except (JoseError, ValueError, KeyError, TypeError) as error:
            raise Unauthenticated from error

    def _decode(self, token: str, keys: KeySet) -> dict[str, Any]:
        decoded = jwt.decode(token, keys, algorithms=[ALGORITHM])
        claims = decoded.claims
        self._registry.validate({name: value for name, value in claims.items() if name != "iat"})
        self._issue.validate({name: value for name, value in claims.items() if name == "iat"})
        # A key that only opens passenger sessions makes no agent, whoever gets hold of it.
        roles = keys.get_by_kid(decoded.header["kid"]).as_dict(private=False).get(KEY_ROLES)
        if roles is not None and claims.get("role") not in roles:
            raise ValueError("this key signs for no such role")
        return claims


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

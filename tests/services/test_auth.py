"""Authentication: what a token must contain, and which roles a key may sign for."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from skyhigh.payment.v1 import payment_service_pb2 as payment
from skyhigh.seat.v1 import seat_service_pb2 as seat

from services import auth
from services.auth import ANYBODY, CLOCK_SKEW_SECONDS, SUBJECT, Keys, Principal, Role, TokenVerifier
from services.errors import Unauthenticated, Unavailable
from services.proto import pattern_of
from services.running_call import Call
from services.tokens import TokenSigner
from tests.callers import AUDIENCE, ISSUER
from tests.dates import flight_id
from tests.waiting import pause

if TYPE_CHECKING:
    from tests.conftest import World


@pytest.fixture
def verifier(world: World) -> TokenVerifier:
    """Returns a verifier with a service's settings."""
    return TokenVerifier(keys=Keys(str(world.keys.jwks)), issuer=ISSUER, audience=AUDIENCE)


@pytest.fixture
def sessions(world: World) -> TokenSigner:
    """Returns the signer of the check-in service's session tokens."""
    return TokenSigner(world.keys.session_key, issuer=ISSUER, audience=AUDIENCE)


async def test_a_session_token_names_its_passengers(verifier: TokenVerifier, sessions: TokenSigner) -> None:
    passenger = {"id": "P1", "flight": flight_id(), "cabin": "BUSINESS", "type": "ADULT", "ssr": ["WCHR"]}
    ttl = timedelta(minutes=30)
    before = datetime.now(UTC)
    token, end = sessions.sign(Role.PASSENGER, "XK4T7Q", ttl=ttl, passengers=[passenger])
    after = datetime.now(UTC)
    principal = await verifier.principal(f"Bearer {token}")
    assert principal.name == "passenger:XK4T7Q"
    named = principal.passengers[flight_id(), "P1"]
    assert (named.cabin, named.special_services) == ("BUSINESS", ("WCHR",))
    # The times in a token are whole seconds.
    assert before - timedelta(seconds=1) < end - ttl <= after


@pytest.mark.parametrize("role", [Role.AGENT, Role.OPERATIONS, Role.SERVICE])
async def test_the_session_key_cannot_sign_agent_tokens(
    verifier: TokenVerifier, sessions: TokenSigner, role: Role
) -> None:
    token, _ = sessions.sign(role, "somebody", ttl=timedelta(minutes=1))
    with pytest.raises(Unauthenticated):
        await verifier.principal(f"Bearer {token}")


async def test_a_token_with_role_anybody_is_refused(world: World, verifier: TokenVerifier) -> None:
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "x", "iat": now, "exp": now + 60}
    for role in ("anybody", "root", "", None):
        with pytest.raises(Unauthenticated):
            await verifier.principal(f"Bearer {world.keys.sign({**claims, 'role': role})}")


@pytest.mark.parametrize("subject", ["", "a b", "a:b", "desk\n", "\u00e9", "a" * 65, 7])
async def test_an_invalid_subject_is_refused(world: World, verifier: TokenVerifier, subject: object) -> None:
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "role": "agent", "iat": now, "exp": now + 60}
    with pytest.raises(Unauthenticated):
        await verifier.principal(f"Bearer {world.keys.sign(claims)}")


@pytest.mark.parametrize(
    ("claim", "ahead_seconds", "is_valid"),
    [("iat", 0, True), ("iat", 20, True), ("iat", 90, False), ("nbf", CLOCK_SKEW_SECONDS, True), ("nbf", 20, False)],
)
async def test_a_token_issued_slightly_ahead_is_valid(
    world: World, verifier: TokenVerifier, claim: str, ahead_seconds: int, is_valid: bool
) -> None:
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "desk", "role": "agent", "iat": now, "exp": now + 600}
    token = world.keys.sign({**claims, claim: now + ahead_seconds})
    if is_valid:
        assert (await verifier.principal(f"Bearer {token}")).role is Role.AGENT
    else:
        with pytest.raises(Unauthenticated):
            await verifier.principal(f"Bearer {token}")


async def test_a_token_is_invalid_after_its_expiry(world: World, verifier: TokenVerifier) -> None:
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "desk", "role": "agent", "iat": now - 60}
    claims["exp"] = now - CLOCK_SKEW_SECONDS - 1
    with pytest.raises(Unauthenticated):
        await verifier.principal(f"Bearer {world.keys.sign(claims)}")


def _claims() -> dict[str, Any]:
    now = int(time.time())
    return {"iss": ISSUER, "aud": AUDIENCE, "sub": "desk", "role": "agent", "iat": now, "exp": now + 60}


async def test_an_expired_token_is_refused_without_keys_too(world: World, tmp_path: Path) -> None:
    source = tmp_path / "jwks.json"
    source.write_bytes(world.keys.jwks.read_bytes())
    verifier = TokenVerifier(keys=Keys(str(source)), issuer=ISSUER, audience=AUDIENCE)
    await verifier.principal(f"Bearer {world.keys.sign(_claims())}")
    source.unlink()
    with pytest.raises(Unauthenticated):
        await verifier.principal(f"Bearer {world.keys.sign({**_claims(), 'exp': 0})}")


async def test_a_rotated_key_is_read_once_for_waiting_calls(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "JWKS_REFRESH_SECONDS", 0.5)
    document = json.loads(world.keys.jwks.read_text())
    source = tmp_path / "jwks.json"
    former = [{**key, "kid": f"former-{key['kid']}"} for key in document["keys"]]
    source.write_text(json.dumps({"keys": former}))
    verifier = TokenVerifier(keys=Keys(str(source)), issuer=ISSUER, audience=AUDIENCE)
    authorization = f"Bearer {world.keys.sign(_claims())}"
    with pytest.raises(Unauthenticated):
        await verifier.principal(authorization)
    source.write_text(json.dumps(document))
    await pause(0.6)
    found = await asyncio.gather(*(verifier.principal(authorization) for _ in range(3)))
    assert [each.role for each in found] == [Role.AGENT] * 3


async def test_waiting_calls_share_a_failed_key_read(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []

    def read(self: Keys) -> bytes:
        reads.append("read")
        raise OSError("the issuer is down")

    monkeypatch.setattr(Keys, "_read", read)
    verifier = TokenVerifier(keys=Keys(str(tmp_path / "jwks.json")), issuer=ISSUER, audience=AUDIENCE)
    authorization = f"Bearer {world.keys.sign(_claims())}"
    outcomes = await asyncio.gather(*(verifier.principal(authorization) for _ in range(10)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unavailable] * 10
    assert reads == ["read"]


def test_an_owner_is_a_role_and_a_subject() -> None:
    roles = "|".join(role for role in Role if role not in (Role.OPERATIONS, Role.ANYBODY))
    for request in (seat.HoldSeatRequest, seat.HoldSeatsRequest, seat.ConfirmHoldRequest, seat.ClaimSeatRequest):
        field = request.DESCRIPTOR.fields_by_name["owner"]
        assert pattern_of(field) == f"^({roles}):{SUBJECT.pattern}$", request.DESCRIPTOR.name
    field = payment.CreatePaymentIntentRequest.DESCRIPTOR.fields_by_name["owner"]
    assert pattern_of(field) == f"^({roles}):{SUBJECT.pattern}$"


class Context:
    """The context of a call from `peer` with these headers."""

    def __init__(self, peer: str, *headers: tuple[str, str]) -> None:
        self._peer = peer
        self._headers = headers

    def peer(self) -> str:
        return self._peer

    def invocation_metadata(self) -> Any:
        return self._headers


PROXIES = [ip_network("127.0.0.0/8"), ip_network("::1/128")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("ipv4:127.0.0.1:4711", None, "127.0.0.1"),
        ("ipv4:127.0.0.1:4711", "203.0.113.9", "203.0.113.9"),
        ("ipv6:%5B::1%5D:4711", "2001:db8::7", "2001:db8::7"),
        ("ipv4:198.51.100.3:4711", "203.0.113.9", "198.51.100.3"),
        ("ipv4:127.0.0.1:4711", "nonsense", "127.0.0.1"),
        # An IPv4 address in IPv6 notation is the same address, both for a gateway and for a client.
        ("ipv6:%5B::ffff:127.0.0.1%5D:4711", "203.0.113.9", "203.0.113.9"),
        ("ipv4:127.0.0.1:4711", "::ffff:203.0.113.9", "203.0.113.9"),
    ],
)
def test_only_a_trusted_gateways_address_is_accepted(peer: str, forwarded: str | None, address: str) -> None:
    headers = [("x-forwarded-for", "192.0.2.1"), *([("x-skyhigh-client", forwarded)] if forwarded else [])]
    call = Call("Method", ANYBODY, "", None, Context(peer, *headers), PROXIES)  # type: ignore[arg-type]
    assert call.client_address() == address


SERVICE = Principal(Role.SERVICE, "service:booking")


@pytest.mark.parametrize(
    ("peer", "principal", "named", "address"),
    [
        ("ipv4:127.0.0.1:4711", ANYBODY, None, ""),
        ("ipv4:127.0.0.1:4711", ANYBODY, "203.0.113.9", "203.0.113.9"),
        ("ipv4:127.0.0.1:4711", ANYBODY, "nonsense", ""),
        # The caller is not a gateway. The header is trusted if the caller is one of our services, and else ignored.
        ("ipv4:198.51.100.3:4711", ANYBODY, "203.0.113.9", ""),
        ("ipv4:198.51.100.3:4711", SERVICE, "203.0.113.9", "203.0.113.9"),
        ("ipv4:198.51.100.3:4711", SERVICE, None, ""),
    ],
)
def test_only_gateways_and_services_name_the_client_address(
    peer: str, principal: Principal, named: str | None, address: str
) -> None:
    headers = [("x-skyhigh-client", named)] if named else []
    call = Call("Method", principal, "", None, Context(peer, *headers), PROXIES)  # type: ignore[arg-type]
    assert call.outside_address() == address

"""No caller can impersonate another, neither by a token nor by a header (attacks 5 and 6)."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
import httpx
import pytest

from deploy.local.secrets import SigningKeys
from services.auth import Role
from services.tokens import TokenSigner
from tests.callers import AUDIENCE, ISSUER
from tests.seat.test_bad_input import b64, bad_tokens, forged
from tests.security.belongings import Belongings
from tests.security.messages import NO_FLIGHT, valid
from tests.security.system import RPCS, SERVICES, System

if TYPE_CHECKING:
    from tests.conftest import World

# One RPC of each service, to which the tokens are sent.
DOORS: Final = ("HoldSeat", "CancelFlight", "GetPaymentIntent", "GetTrip", "JoinWaitlist", "CreateBooking", "SetLimit")
IDENTITY_HEADERS: Final = (
    "x-skyhigh-principal",
    "x-skyhigh-role",
    "x-skyhigh-subject",
    "x-skyhigh-client",
    "x-auth-subject",
    "x-user-id",
    "x-forwarded-user",
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "x-real-ip",
    "x-envoy-external-address",
    "x-envoy-internal",
    "x-envoy-original-path",
    "x-original-url",
    "x-http-method-override",
    "x-jwt-payload",
)


def hostile_tokens(world: World, folder: Path) -> dict[str, str]:
    """Returns invalid tokens by the reason.

    Some refer to other keys, some have foreign signatures, and so on.
    """
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "desk", "role": "agent", "iat": now, "exp": now + 600}
    head, _, signature = world.keys.sign(claims).split(".")
    kids = [key["kid"] for key in json.loads(world.keys.jwks.read_bytes())["keys"]]
    own = SigningKeys(folder)
    own.ensure()
    jwk = json.loads(own.jwks.read_text())["keys"][0]
    sessions = TokenSigner(world.keys.session_key, issuer=ISSUER, audience=AUDIENCE)

    twice = f'{json.dumps(claims)[:-1]}, "role": "service"}}'

    def signed_by_us(header: dict[str, Any]) -> str:
        """Returns a token whose signature does not cover its header."""
        return f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}.{signature}"

    return {
        "kid is a path": forged({"alg": "HS256", "kid": "../../../../../dev/null"}, claims),
        "kid is SQL": forged({"alg": "ES256", "kid": "x' UNION SELECT 'key' --"}, claims),
        "kid is a command": forged({"alg": "ES256", "kid": "|/usr/bin/id"}, claims),
        "kid of the other key": signed_by_us({"alg": "ES256", "kid": kids[-1]}),
        "kid of a wrong type": signed_by_us({"alg": "ES256", "kid": kids}),
        "kid is a megabyte's beginning": signed_by_us({"alg": "ES256", "kid": "k" * 7_000}),
        "jku": forged({"alg": "ES256", "kid": jwk["kid"], "jku": "http://127.0.0.1:1/jwks.json"}, claims),
        "x5u": forged({"alg": "ES256", "x5u": "http://127.0.0.1:1/key.pem"}, claims),
        "x5c": forged({"alg": "ES256", "x5c": [b64(b"certificate")]}, claims),
        "jwk with our kid": forged({"alg": "ES256", "kid": kids[0], "jwk": {**jwk, "kid": kids[0]}}, claims),
        "another type of token": signed_by_us({"alg": "ES256", "kid": kids[0], "typ": "secevent+jwt"}),
        "an encrypted one": f"{b64(b'{}')}.{b64(b'key')}.{b64(b'iv')}.{b64(b'text')}.{b64(b'tag')}",
        "compressed": signed_by_us({"alg": "ES256", "kid": kids[0], "zip": "DEF"}),
        "unencoded": signed_by_us({"alg": "ES256", "kid": kids[0], "b64": False, "crit": ["b64"]}),
        "claims twice": f"{head}.{b64(twice.encode())}.{signature}",
        "header twice": forged('{"alg":"ES256","alg":"none"}', claims),
        "a key that signs for passengers": sessions.sign(Role.AGENT, "desk", ttl=timedelta(minutes=5))[0],
        "a role of everybody": world.keys.sign({**claims, "role": "anybody"}),
        "signature of zeros": f"{head}.{b64(json.dumps(claims).encode())}.{b64(bytes(64))}",
        "large": f"{head}.{b64(b'A' * 6_500)}.{signature}",
    }


@pytest.mark.usefixtures("nothing_changed")
async def test_an_invalid_token_is_refused_everywhere(system: System, world: World, tmp_path: Path) -> None:
    tokens = bad_tokens(system.callers["seat"], world, tmp_path / "first") | hostile_tokens(world, tmp_path / "second")
    assert len(SERVICES) == len(DOORS)
    inside, outside = set(), set()
    for what, token in tokens.items():
        for door in DOORS:
            rpc = RPCS[door]
            answer = await system.ask(rpc, valid(rpc.request()), token or " ")
            assert answer.code is grpc.StatusCode.UNAUTHENTICATED, (what, door)
            inside.add(answer)
        rpc = RPCS["HoldSeat"]
        answer = await system.ask(rpc, valid(rpc.request()), token or " ", outside=True)
        assert answer.code is grpc.StatusCode.UNAUTHENTICATED, what
        response = await system.ask_json(rpc, valid(rpc.request()), token)
        assert response.status_code == 401, what
        outside.add(json.dumps(response.json(), sort_keys=True))
    # The responses are the same, so that none reveals the reason.
    assert len(inside) == len(outside) == 1


@pytest.mark.usefixtures("nothing_changed")
async def test_a_token_is_accepted_only_in_its_header(system: System) -> None:
    token = system.token(Role.AGENT)
    path = f"/v1/flights/{NO_FLIGHT}/seatmap"
    for query in (f"access_token={token}", f"token={token}", f"authorization=Bearer%20{token}"):
        answer = await system.http.get(f"{path}?{query}")
        assert answer.status_code in (400, 401)
        assert token not in answer.text
    assert (await system.http.get(path, headers={"cookie": f"access_token={token}"})).status_code == 401
    assert (await system.http.get(path, headers={"authorization": f"Basic {token}"})).status_code == 401


@pytest.mark.usefixtures("nothing_changed")
async def test_two_tokens_count_as_none(system: System) -> None:
    """Otherwise one component could check the valid token, and another could use the other token."""
    rpc = RPCS["BlockSeat"]
    agent, customer = system.token(Role.AGENT), system.token(Role.CUSTOMER)
    poor = forged({"alg": "none"}, {"role": "agent", "sub": "desk"})
    for first, second in ((agent, poor), (poor, agent), (customer, agent), (agent, customer), (agent, agent)):
        pair = [("authorization", f"Bearer {first}"), ("authorization", f"Bearer {second}")]
        for outside in (False, True):
            answer = await system.ask(rpc, valid(rpc.request()), metadata=pair, outside=outside)
            assert answer.code is grpc.StatusCode.UNAUTHENTICATED
        response = await system.http.post(
            f"/v1/flights/{NO_FLIGHT}/seats/12A/block", json={"reason": "X"}, headers=httpx.Headers(pair)
        )
        assert response.status_code == 401


@pytest.mark.usefixtures("nothing_changed")
async def test_a_forged_identity_header_is_ignored(system: System, belongings: Belongings) -> None:
    rpc = RPCS["GetHold"]
    values = belongings.values[Role.PASSENGER]
    request = rpc.request(hold_id=values["hold_id"])
    stranger = belongings.stranger[Role.PASSENGER]
    honest = await system.ask_json(rpc, request, stranger)
    assert honest.status_code == 404
    for header in IDENTITY_HEADERS:
        for value in (f"passenger:{values['pnr']}", "operations:root", "/v1/flights", "DELETE"):
            dashed = {header: value}
            answer = await system.http.get(
                f"/v1/holds/{values['hold_id']}", headers={**dashed, "authorization": f"Bearer {stranger}"}
            )
            assert (answer.status_code, answer.content) == (honest.status_code, honest.content), header
            assert (await system.http.get(f"/v1/holds/{values['hold_id']}", headers=dashed)).status_code == 401, header
            native = await system.ask(rpc, request, stranger, outside=True, metadata=[(header, value)])
            assert native.code is grpc.StatusCode.NOT_FOUND, header
            # The service ignores these headers too.
            assert (await system.ask(rpc, request, stranger, metadata=[(header, value)])) == native, header
        underscored = {header.replace("-", "_"): "operations:root", "authorization": f"Bearer {stranger}"}
        answer = await system.http.get(f"/v1/holds/{values['hold_id']}", headers=underscored)
        assert answer.status_code == 400, header

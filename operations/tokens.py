"""Demo tokens, signed with the key of the local stack."""

from __future__ import annotations

import time
from typing import Any, Final

TTL_SECONDS: Final = 8 * 3600


def mint(role: str, subject: str, *, ttl_seconds: int = TTL_SECONDS, **claims: Any) -> str:
    """Returns a token signed with the local stack's key, for its issuer and audience."""
    from deploy.local.stack import Stack

    stack = Stack.from_environment()
    now = int(time.time())
    return stack.signing_keys.sign(
        {
            "iss": stack.tokens["SKYHIGH_TOKEN_ISSUER"],
            "aud": stack.tokens["SKYHIGH_TOKEN_AUDIENCE"],
            "sub": subject,
            "iat": now,
            "exp": now + ttl_seconds,
            "role": str(role),
            **claims,
        }
    )

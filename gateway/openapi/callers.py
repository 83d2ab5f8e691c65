"""The callers of an RPC in words."""

from __future__ import annotations

from typing import Final

from services.auth import Role
from services.rpcs import Rpc

ROLES: Final = tuple(role for role in Role if role is not Role.ANYBODY)


def in_words(rpc: Rpc) -> str:
    """Returns a sentence that says which roles may call."""
    if rpc.public:
        return "Needs no token."
    names = [f"`{role}`" for role in ROLES if role in rpc.roles]
    everybody = len(names) == len(ROLES)
    who = "Whoever has a token" if everybody else " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return f"Callers: {who}.{' A passenger or a customer reaches only what is its own.' if rpc.owned else ''}"

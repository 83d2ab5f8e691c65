"""Mutations: one transition in one transaction, a repeat answered as before, and others told after the commit.

For changes that come one by one; those that come by the thousand are batched (services/batch.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from google.protobuf.message import Message

from services import db, idempotency
from services.db import Conn, Pool
from services.errors import Refusal
from services.idempotency import RequestKey

# Whoever is overtaken this often in a row is told to try again.
ATTEMPTS: Final = 4

Answer = TypeVar("Answer", bound=Message)


class Mutations:
    """Runs a service's transitions. `tell` wakes whoever looks for what a transaction left to be done."""

    def __init__(self, pool: Pool, *, tell: Callable[[], None]) -> None:
        self._pool = pool
        self._tell = tell

    async def run(
        self,
        key: RequestKey | None,
        answer_type: type[Answer],
        transition: Callable[[Conn], Awaitable[Answer]],
    ) -> Answer:
        """Returns the transition's answer, or the first one to a repeat. A Refusal undoes what it did.

        A transition that was overtaken, by a unique index or a deadlock, is judged anew.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._attempt(key, answer_type, transition)
            except db.OVERTAKEN:
                if attempt == ATTEMPTS:
                    raise
            except Refusal:
                # What refused it may have been its own first attempt.
                known = await self.known(key, answer_type)
                if known is None:
                    raise
                return known
        raise AssertionError

    async def known(self, key: RequestKey | None, answer_type: type[Answer]) -> Answer | None:
        """Returns the answer to the first request with this key, or None. Raises IDEMPOTENCY_KEY_REUSED.

        For who has to ask others before the transition: a repeat must not ask them again.
        """
        if key is None:
            return None
        async with db.transaction(self._pool) as conn:
            return await idempotency.recall(conn, key, answer_type)

    async def _attempt(
        self,
        key: RequestKey | None,
        answer_type: type[Answer],
        transition: Callable[[Conn], Awaitable[Answer]],
    ) -> Answer:
        async with db.decided(self._pool) as conn:
            known = await idempotency.recall(conn, key, answer_type) if key is not None else None
            if known is not None:
                return known
            answer = await transition(conn)
            if key is not None:
                await idempotency.remember(conn, key, answer)
        self._tell()
        return answer

"""Runs transitions one by one: one transition in one transaction, once per idempotency key.

A retry gets the stored response. Transitions that arrive by the thousand use services/batch.py instead.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from google.protobuf.message import Message

from services import db, idempotency
from services.db import Conn, Pool
from services.errors import Refusal
from services.idempotency import RequestKey

# A request that loses the race this often in a row fails, and its caller retries.
ATTEMPTS: Final = 4

Answer = TypeVar("Answer", bound=Message)


class Transitions:
    """Runs a service's transitions.

    `tell` is called after each commit; it wakes the tasks that do the follow-up work.
    """

    def __init__(self, pool: Pool, *, tell: Callable[[], None]) -> None:
        self._pool = pool
        self._tell = tell

    async def run(
        self,
        key: RequestKey | None,
        answer_type: type[Answer],
        transition: Callable[[Conn], Awaitable[Answer]],
    ) -> Answer:
        """Returns the transition's response, or the stored one to a retry.

        A Refusal rolls the transaction back. A transition that loses a race, by a unique index or a deadlock, or whose
        session ends before the commit, is evaluated again up to ATTEMPTS times.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._attempt(key, answer_type, transition)
            except (db.SessionEnded, *db.CONFLICTS):
                if attempt == ATTEMPTS:
                    raise
            except Refusal:
                # The request's own first attempt may be the reason for the refusal.
                known = await self.known(key, answer_type)
                if known is None:
                    raise
                return known
        raise AssertionError

    async def known(self, key: RequestKey | None, answer_type: type[Answer]) -> Answer | None:
        """Returns the stored response to the first request with this key, or None.

        For a mutation that calls other services before its transition: a retry must not call them again. Raises
        IDEMPOTENCY_KEY_REUSED if the first request had other parameters.
        """
        if key is None:
            return None
        async with db.transaction(self._pool) as conn:
            return await idempotency.find_response(conn, key, answer_type)

    async def _attempt(
        self,
        key: RequestKey | None,
        answer_type: type[Answer],
        transition: Callable[[Conn], Awaitable[Answer]],
    ) -> Answer:
        async with db.decided(self._pool) as conn:
            known = await idempotency.find_response(conn, key, answer_type) if key is not None else None
            if known is not None:
                return known
            answer = await transition(conn)
            if key is not None:
                await idempotency.store_response(conn, key, answer)
        self._tell()
        return answer

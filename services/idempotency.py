"""Idempotency keys: a retry of a mutation gets the first response, no new effect.

The response is stored in the transaction of the effect, by principal and key. Only effects are stored: a refused call
changed nothing, so that its retry is processed as new (docs/decisions/0006).
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar, cast
from uuid import UUID

from google.protobuf.message import Message

from services.db import Conn
from services.errors import AlreadyExists, Refusal

# The contract promises 24 h. With 48 h a retry on the next day still finds the response.
KEPT_HOURS: Final = 48


@dataclass(frozen=True, slots=True)
class RequestKey:
    """The identity of one mutation: principal, key, and digest of its parameters."""

    principal: str
    key: UUID
    fingerprint: bytes


class Repeatable(Protocol):
    """A request that may carry an idempotency key."""

    @property
    def request_key(self) -> RequestKey | None: ...


AnyRequest = TypeVar("AnyRequest", bound=Repeatable)
Answer = TypeVar("Answer", bound=Message)


def fingerprint(method: str, request: Message) -> bytes:
    """Returns a digest of the method and of all parameters except the key."""
    parameters = type(request)()
    parameters.CopyFrom(request)
    parameters.ClearField("request_id")
    return hashlib.blake2b(
        method.encode() + b"\0" + parameters.SerializeToString(deterministic=True), digest_size=16
    ).digest()


async def once(
    conn: Conn,
    requests: Sequence[AnyRequest],
    answer_type: type[Answer],
    transition: Callable[[Conn, Sequence[AnyRequest]], Awaitable[Sequence[Answer | Refusal]]],
    *,
    expect_repeats: bool,
) -> list[Answer | Refusal]:
    """Runs the transition for new requests, and returns stored responses for retries.

    All statements run in the caller's transaction. Retries are rare. Therefore, with `expect_repeats` False, no
    statement looks for stored responses first. A retry that would repeat its effect then violates the primary key of
    `idempotency` (UniqueViolationError), which rolls back the transaction; the caller runs all requests again with
    `expect_repeats` True. A retry that is refused is looked up afterwards.
    """
    first_answers: Sequence[Answer | Refusal | None] = (
        await _find_responses(conn, requests, answer_type) if expect_repeats else [None] * len(requests)
    )
    fresh: list[AnyRequest] = []
    twins: dict[int, int] = {}
    seen: dict[tuple[str, UUID], int] = {}
    for position, request in enumerate(requests):
        if first_answers[position] is not None:
            continue
        key = request.request_key
        if key is not None and (key.principal, key.key) in seen:
            twins[position] = seen[(key.principal, key.key)]
            continue
        if key is not None:
            seen[(key.principal, key.key)] = position
        fresh.append(request)
    outcomes = iter(await transition(conn, fresh) if fresh else ())
    answers: list[Answer | Refusal] = []
    for position, known in enumerate(first_answers):
        if known is not None:
            answers.append(known)
        elif position in twins:
            answers.append(_response_of_repeat(requests[position], requests[twins[position]], answers[twins[position]]))
        else:
            answers.append(next(outcomes))
    replayed = {n for n, known in enumerate(first_answers) if known is not None} | set(twins)
    replayed |= await _replace_repeats(conn, requests, answers, answer_type)
    await _store_responses(conn, requests, answers, replayed)
    return answers


def _response_of_repeat(request: AnyRequest, first: AnyRequest, answer: Answer | Refusal) -> Answer | Refusal:
    assert request.request_key is not None
    assert first.request_key is not None
    return answer if request.request_key.fingerprint == first.request_key.fingerprint else _reused()


async def _replace_repeats(
    conn: Conn, requests: Sequence[AnyRequest], answers: list[Answer | Refusal], answer_type: type[Answer]
) -> set[int]:
    """Replaces the refusals of retries by their stored responses.

    A request's own first attempt may be the reason for its refusal. Returns the positions of the replaced refusals.
    """
    refused = [
        n for n, answer in enumerate(answers) if isinstance(answer, Refusal) and requests[n].request_key is not None
    ]
    known = await _find_responses(conn, [requests[n] for n in refused], answer_type)
    found = {n: answer for n, answer in zip(refused, known, strict=True) if answer is not None}
    for n, answer in found.items():
        answers[n] = answer
    return set(found)


async def find_response(conn: Conn, key: RequestKey, answer_type: type[Answer]) -> Answer | None:
    """Returns the stored response to the first request with this key, or None.

    Raises IDEMPOTENCY_KEY_REUSED if that request had other parameters.
    """
    row = await conn.fetchrow(
        "SELECT fingerprint, response FROM idempotency WHERE principal = $1 AND key = $2", key.principal, key.key
    )
    if row is None:
        return None
    if row["fingerprint"] != key.fingerprint:
        raise _reused()
    return answer_type.FromString(row["response"])


async def store_response(conn: Conn, key: RequestKey, answer: Message) -> None:
    """Stores a response in the transaction of its effect.

    Raises UniqueViolationError if a duplicate request has stored its response first.
    """
    await conn.execute(
        "INSERT INTO idempotency (principal, key, fingerprint, response) VALUES ($1, $2, $3, $4)",
        key.principal,
        key.key,
        key.fingerprint,
        answer.SerializeToString(),
    )


async def delete_response(conn: Conn, principal: str, key: UUID) -> None:
    """Deletes the stored response of a failed request.

    So a retry is processed as new.
    """
    await conn.execute("DELETE FROM idempotency WHERE principal = $1 AND key = $2", principal, key)


async def _find_responses(
    conn: Conn, requests: Sequence[AnyRequest], answer_type: type[Answer]
) -> list[Answer | Refusal | None]:
    keys = [(n, request.request_key) for n, request in enumerate(requests) if request.request_key is not None]
    known: list[Answer | Refusal | None] = [None] * len(requests)
    if not keys:
        return known
    rows = await conn.fetch(
        """
        SELECT asked.n, idempotency.fingerprint, idempotency.response
        FROM unnest($1::int[], $2::text[], $3::uuid[]) AS asked (n, principal, key)
        JOIN idempotency USING (principal, key)
        """,
        [n for n, _ in keys],
        [key.principal for _, key in keys],
        [key.key for _, key in keys],
    )
    for row in rows:
        key = cast("RequestKey", requests[row["n"]].request_key)
        known[row["n"]] = (
            answer_type.FromString(row["response"]) if row["fingerprint"] == key.fingerprint else _reused()
        )
    return known


async def _store_responses(
    conn: Conn, requests: Sequence[AnyRequest], answers: Sequence[Answer | Refusal], replayed: set[int]
) -> None:
    new = [
        (key, answer.SerializeToString())
        for n, (request, answer) in enumerate(zip(requests, answers, strict=True))
        if n not in replayed and not isinstance(answer, Refusal) and (key := request.request_key) is not None
    ]
    if new:
        await conn.execute(
            """
            INSERT INTO idempotency (principal, key, fingerprint, response)
            SELECT principal, key, fingerprint, response
            FROM unnest($1::text[], $2::uuid[], $3::bytea[], $4::bytea[]) AS new (principal, key, fingerprint, response)
            """,
            [key.principal for key, _ in new],
            [key.key for key, _ in new],
            [key.fingerprint for key, _ in new],
            [response for _, response in new],
        )


async def forget_old(conn: Conn, *, limit: int) -> int:
    """Deletes up to `limit` of the oldest responses that are older than KEPT_HOURS.

    Returns how many it deleted.
    """
    status = await conn.execute(
        """
        WITH old AS MATERIALIZED (
            SELECT principal, key FROM idempotency WHERE create_time < now() - make_interval(hours => $1)
            ORDER BY create_time LIMIT $2 FOR UPDATE SKIP LOCKED
        )
        DELETE FROM idempotency USING old
        WHERE idempotency.principal = old.principal AND idempotency.key = old.key
        """,
        KEPT_HOURS,
        limit,
    )
    return int(status.split()[-1])


def _reused() -> AlreadyExists:
    return AlreadyExists(
        "IDEMPOTENCY_KEY_REUSED",
        "this idempotency key was already used with other parameters; use a new key for a new request",
    )

"""Plants bugs in a running service: SQL is rewritten between the service and Postgres.

A suite that stays green proves something only if it turns red when the code is wrong. Each plant names a fragment of a
statement, so that a rewritten statement shows that its plant has to be moved too.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from tests.instances import Database, Instance, instance, own_database

if TYPE_CHECKING:
    from tests.conftest import World

Plant = tuple[str, str]
"""A fragment of SQL, whitespace aside, and what stands there instead."""


class Saboteur:
    """Rewrites statements; remembers what it met, and what Postgres thought of it."""

    def __init__(self, plants: Sequence[Plant]) -> None:
        self._plants = [(_pattern(fragment), replacement) for fragment, replacement in plants]
        self._missing = {pattern.pattern for pattern, _ in self._plants}
        self._errors: list[asyncpg.PostgresError] = []

    def connection_class(self) -> type[Database]:
        """Returns the class of connections that obey."""
        saboteur = self

        class Sabotaged(Database):
            async def execute(self, query: str, *args: Any, **more: Any) -> Any:
                with saboteur.watching():
                    return await super().execute(saboteur.rewrite(query), *args, **more)

            async def fetch(self, query: str, *args: Any, **more: Any) -> Any:
                with saboteur.watching():
                    return await super().fetch(saboteur.rewrite(query), *args, **more)

            async def fetchrow(self, query: str, *args: Any, **more: Any) -> Any:
                with saboteur.watching():
                    return await super().fetchrow(saboteur.rewrite(query), *args, **more)

            async def fetchval(self, query: str, *args: Any, **more: Any) -> Any:
                with saboteur.watching():
                    return await super().fetchval(saboteur.rewrite(query), *args, **more)

        return Sabotaged

    def rewrite(self, query: str) -> str:
        """Returns the statement with all bugs that it can have."""
        for pattern, replacement in self._plants:
            query, hits = pattern.subn(replacement.replace("\\", r"\\"), query)
            if hits:
                self._missing.discard(pattern.pattern)
        return query

    def check(self) -> None:
        """Fails where a plant met no statement, or made one that is no SQL: then nothing was proved."""
        assert not self._missing, f"no statement has {self._missing}"
        assert not self._errors, self._errors

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Notes what is wrong with a rewritten statement itself."""
        try:
            yield
        except asyncpg.SyntaxOrAccessError as error:
            self._errors.append(error)
            raise


def _pattern(fragment: str) -> re.Pattern[str]:
    return re.compile(r"\s+".join(re.escape(word) for word in fragment.split()))


@asynccontextmanager
async def sabotaged(world: World, *plants: Plant, **variables: str) -> AsyncIterator[Instance]:
    """A seat service with these bugs on a database of its own. Fails if they were not really there."""
    saboteur = Saboteur(plants)
    url = await own_database(world)
    async with AsyncExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            obedient = partial(asyncpg.create_pool, connection_class=saboteur.connection_class())
            patch.setattr(asyncpg, "create_pool", obedient)
            serving: Any = instance(world, database_url=url, **variables)  # type: ignore[arg-type]
            broken: Instance = await stack.enter_async_context(serving)
        try:
            yield broken
        finally:
            saboteur.check()

"""Plants bugs in a running service by rewriting the SQL between it and Postgres.

A passing suite proves something only if it fails when the code is wrong. Each plant names a fragment of a statement. If
the statement is rewritten, `check` reports that its plant has to be moved too.
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
"""A fragment of SQL, in which white space does not matter, and its replacement."""


class Saboteur:
    """Rewrites statements, and records which plants matched and which SQL errors Postgres returned."""

    def __init__(self, plants: Sequence[Plant]) -> None:
        self._plants = [(_pattern(fragment), replacement) for fragment, replacement in plants]
        self._missing = {pattern.pattern for pattern, _ in self._plants}
        self._errors: list[asyncpg.PostgresError] = []

    def connection_class(self) -> type[Database]:
        """Returns a connection class that executes the rewritten statements."""
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
        """Returns the statement with every plant that matches it."""
        for pattern, replacement in self._plants:
            query, hits = pattern.subn(replacement.replace("\\", r"\\"), query)
            if hits:
                self._missing.discard(pattern.pattern)
        return query

    def check(self) -> None:
        """Fails if a plant matched no statement or produced invalid SQL, because then nothing was proved."""
        assert not self._missing, f"no statement has {self._missing}"
        assert not self._errors, self._errors

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Records the error if Postgres rejects the rewritten statement itself."""
        try:
            yield
        except asyncpg.SyntaxOrAccessError as error:
            self._errors.append(error)
            raise


def _pattern(fragment: str) -> re.Pattern[str]:
    return re.compile(r"\s+".join(re.escape(word) for word in fragment.split()))


@asynccontextmanager
async def sabotaged(world: World, *plants: Plant, **variables: str) -> AsyncIterator[Instance]:
    """Serves a seat service with these bugs on a database of its own.

    Fails if a plant never matched or produced invalid SQL.
    """
    saboteur = Saboteur(plants)
    url = await own_database(world)
    async with AsyncExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            obedient = partial(asyncpg.create_pool, connection_class=saboteur.connection_class())
            patch.setattr(asyncpg, "create_pool", obedient)
            serving: Any = instance(world, database_url=url, **variables)
            broken: Instance = await stack.enter_async_context(serving)
        try:
            yield broken
        finally:
            saboteur.check()

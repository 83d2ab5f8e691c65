"""Fixtures with a database in which only the chassis' tables are used."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from services.db import Pool
from tests.instances import own_database, pooled

if TYPE_CHECKING:
    from tests.conftest import World


@pytest.fixture(scope="module")
async def pool(world: World) -> AsyncIterator[Pool]:
    """Yields a service's pool, on a database that no service uses."""
    async with pooled(await own_database(world)) as own:
        yield own

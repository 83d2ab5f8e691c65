"""A database of one's own with nothing but the chassis' tables in use."""

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
    """A pool as a service has it, on a database that no service works on."""
    async with pooled(await own_database(world)) as own:
        yield own

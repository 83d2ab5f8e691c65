"""`python -m gateway.guard`: see services.app."""

import asyncio
import os

from gateway.guard.former_name import copy_migration_records
from gateway.guard.service import GATEWAY_SERVICE
from services import app
from services.settings import load

# Only in the process that applies the migrations, not in its workers.
if app.WORKER_INDEX not in os.environ:
    asyncio.run(
        copy_migration_records(
            load(GATEWAY_SERVICE.settings).database_url,
            schema=GATEWAY_SERVICE.name,
            package=GATEWAY_SERVICE.package,
        )
    )
app.run(GATEWAY_SERVICE)

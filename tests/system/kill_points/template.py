"""The template of the processes.

All services are imported, and hidden from the garbage collector. A process collects garbage when it begins to serve.
The collector writes into each object that it looks at, and each memory page that a process writes to becomes its own
copy: a hundred megabytes at each restart.
"""

from __future__ import annotations

import gc

from tests.system.kill_points import process

__all__ = ["process"]

gc.collect()
gc.freeze()

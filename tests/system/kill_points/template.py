"""The template of the processes: all services imported, and out of the collector's sight.

A process collects garbage when it begins to serve. The collector writes into each object that it looks at, and each
page that a process writes to becomes a copy of its own: a hundred megabytes at each restart.
"""

from __future__ import annotations

import gc

from tests.system.kill_points import process

__all__ = ["process"]

gc.collect()
gc.freeze()

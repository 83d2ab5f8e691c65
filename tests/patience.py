"""Multiplies the services' time limits, so that a busy machine exceeds none.

Imported before any service. Tests of the limits themselves read them from the services.
"""

from __future__ import annotations

import os

os.environ.setdefault("SKYHIGH_TIME_LIMITS_FACTOR", "4")

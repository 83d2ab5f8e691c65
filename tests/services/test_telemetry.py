"""Log lines: one JSON object each, also where a library writes them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Final

PROGRAM: Final = """
import logging
from services import telemetry

telemetry.configure_logging("seat", "info")
telemetry.log("x").info("ours", count=1)
logging.getLogger("aiormq").warning("it's '%s'", "lost")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("aiormq").exception("failed")
"""


def test_a_librarys_log_line_is_json_too() -> None:
    printed = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
    ours, lost, failed = [json.loads(line) for line in printed.splitlines()]
    assert (ours["event"], ours["count"], ours["level"]) == ("ours", 1, "info")
    assert (lost["event"], lost["logger"], lost["level"]) == ("it's 'lost'", "aiormq", "warning")
    assert failed["exception"][0]["exc_type"] == "ZeroDivisionError"
    assert ours["service"] == lost["service"] == "seat"

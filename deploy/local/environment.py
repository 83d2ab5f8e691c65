"""Which variables of a user's environment reach the stack's processes and the `skyhigh` command."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from typing import Final

# A list of what is allowed, not of what is forbidden: each server and driver reads variables of its own (PGSSLMODE,
# RABBITMQ_NODENAME, ERL_FLAGS, PYTHONPATH, …), and a forbidden list would miss those of its next version.
INHERITED: Final = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TZDIR", "TMPDIR"),
        # Python, or what measures and moves its clock, may need them to run at all.
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "DONT_FAKE_MONOTONIC"),
        # For what is outside of this machine: the keys of a given issuer.
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"),
    }
)
# Without COVERAGE_: tests of the services measure them in their own process, and tracing would slow each stack down.
INHERITED_PREFIXES: Final = ("SKYHIGH_", "LC_", "FAKETIME")
LOOPBACK_NAMES: Final = ("127.0.0.1", "localhost", "::1")
NO_PROXY: Final = ("no_proxy", "NO_PROXY")


def inherited(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns what a process of the stack inherits of this environment."""
    kept = {
        name: value for name, value in environment.items() if name in INHERITED or name.startswith(INHERITED_PREFIXES)
    }
    # `python -m` would otherwise prefer a module of the folder in which the command was typed.
    return kept | _no_proxy(environment) | {"PYTHONSAFEPATH": "1"}


def clean(environment: MutableMapping[str, str] = os.environ) -> None:
    """Makes this process connect to loopback directly, and to Postgres as its URL says and nothing else."""
    for name in [name for name in environment if name.startswith("PG")]:
        del environment[name]
    environment.update(_no_proxy(environment))


def _no_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that keep HTTP clients from a proxy for loopback."""
    given = next((environment[name] for name in NO_PROXY if environment.get(name)), "")
    listed = [name for name in (part.strip() for part in given.split(",")) if name]
    hosts = ",".join([*listed, *(name for name in LOOPBACK_NAMES if name not in listed)])
    return dict.fromkeys(NO_PROXY, hosts)

"""The variables that the stack's processes and the `skyhigh` command inherit."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from typing import Final

# A list of allowed variables, not of forbidden ones: each server and driver reads variables of its own (PGSSLMODE,
# RABBITMQ_NODENAME, ERL_FLAGS, PYTHONPATH, …), and a list of forbidden ones would miss those of its next version.
INHERITED: Final = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TZDIR", "TMPDIR"),
        # Python may need these to start, and so may the libraries that measure it or change its clock (libfaketime).
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "DONT_FAKE_MONOTONIC"),
        # For connections to other machines, such as to the public keys of a given token issuer.
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"),
    }
)
# Without COVERAGE_: the tests measure the services in the test process, and tracing would slow each stack down.
INHERITED_PREFIXES: Final = ("SKYHIGH_", "LC_", "FAKETIME")
LOOPBACK_NAMES: Final = ("127.0.0.1", "localhost", "::1")
NO_PROXY: Final = ("no_proxy", "NO_PROXY")


def inherited(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the variables of this environment that a process of the stack inherits."""
    kept = {
        name: value for name, value in environment.items() if name in INHERITED or name.startswith(INHERITED_PREFIXES)
    }
    # `python -m` would otherwise import modules of the current folder first.
    return kept | _no_proxy(environment) | {"PYTHONSAFEPATH": "1"}


def clean(environment: MutableMapping[str, str] = os.environ) -> None:
    """Removes the PG variables of this process and excludes loopback from its proxy.

    It then connects to loopback directly, and to Postgres as its URL says.
    """
    for name in [name for name in environment if name.startswith("PG")]:
        del environment[name]
    environment.update(_no_proxy(environment))


def _no_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that make HTTP clients connect to loopback without a proxy."""
    given = next((environment[name] for name in NO_PROXY if environment.get(name)), "")
    listed = [name for name in (part.strip() for part in given.split(",")) if name]
    hosts = ",".join([*listed, *(name for name in LOOPBACK_NAMES if name not in listed)])
    return dict.fromkeys(NO_PROXY, hosts)

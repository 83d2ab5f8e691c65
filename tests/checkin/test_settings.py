"""Settings that the database cannot store end the start of the check-in service."""

from __future__ import annotations

import pytest

from checkin_service.settings import MOST_LOGIN_TRIES, CheckInSettings
from tests.conftest import World


@pytest.mark.parametrize("variable", ["LOGIN_TRIES_PER_PNR", "LOGIN_TRIES_PER_ADDRESS"])
def test_login_limit_above_a_smallint_ends_the_start(
    world: World, variable: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"SKYHIGH_CHECKIN_{variable}"
    highest = world.settings_of(CheckInSettings, **{name: str(MOST_LOGIN_TRIES)})
    assert MOST_LOGIN_TRIES in (highest.login_tries_per_pnr, highest.login_tries_per_address)
    with pytest.raises(SystemExit):
        world.settings_of(CheckInSettings, **{name: str(MOST_LOGIN_TRIES + 1)})
    assert name in capsys.readouterr().err

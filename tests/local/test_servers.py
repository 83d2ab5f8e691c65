"""The servers of a stack, as the operating system sees them."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local.secrets import Secrets
from deploy.local.servers.private import ServerPorts, Servers
from tests.conftest import World


def _command_of(pid: int | None) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")


async def test_a_list_of_processes_says_which_stack_a_broker_belongs_to(world: World) -> None:
    (pid,) = (status.pid for status in world.supervisor.statuses if status.name == "rabbitmq")
    words = _command_of(pid)
    assert words[words.index("-skyhigh_folder") + 1] == str(world.folder)


@pytest.mark.parametrize("name", ["two words", "a -detached", "one +S 1", "star*", "quote'"])
def test_a_path_that_the_brokers_script_would_split_is_not_passed(tmp_path: Path, name: str) -> None:
    servers = Servers(folder=tmp_path / name, ports=ServerPorts.free(), secrets=Secrets(tmp_path / "s"), services=())
    arguments = servers.rabbitmq.process().environment["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"]
    assert arguments == "-kernel inet_dist_use_interface {127,0,0,1}"

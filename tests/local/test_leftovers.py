"""All processes that a killed supervisor left running are ended, and no others."""

from __future__ import annotations

import signal
from dataclasses import replace

from deploy.local import proc
from deploy.local.leftovers import end_leftovers
from tests.local.processes import ended, leader_with_child, status_of


def test_a_leader_and_its_children_are_ended_by_sigquit() -> None:
    with leader_with_child() as (leader, child):
        assert end_leftovers([status_of(leader)]) == sorted([leader.pid, child])
        assert leader.wait() == -signal.SIGQUIT
        assert proc.find(child) is None


def test_a_process_that_ignores_sigquit_is_killed() -> None:
    with leader_with_child(deaf=True) as (leader, child):
        end_leftovers([status_of(leader)])
        assert leader.wait() == -signal.SIGKILL
        assert proc.find(child) is None


async def test_children_of_a_leader_that_has_ended_are_ended() -> None:
    with leader_with_child() as (leader, child):
        status = status_of(leader)
        leader.kill()
        leader.wait()
        await ended(leader.pid)
        assert end_leftovers([status]) == [child]
        assert proc.find(child) is None


def test_another_process_with_the_same_number_is_spared() -> None:
    with leader_with_child() as (leader, child):
        status = status_of(leader)
        assert status.start_ticks is not None
        assert end_leftovers([replace(status, start_ticks=status.start_ticks - 1)]) == []
        assert leader.poll() is None
        assert proc.find(child) is not None


def test_a_status_without_a_process_ends_nothing() -> None:
    with leader_with_child() as (leader, _):
        assert end_leftovers([replace(status_of(leader), pid=None), replace(status_of(leader), start_ticks=None)]) == []
        assert leader.poll() is None

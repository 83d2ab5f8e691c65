"""The local stack of this home: its addresses, its folder and its supervisor's report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from operations.terminal import fail

if TYPE_CHECKING:
    from deploy.local.report import Report
    from deploy.local.stack import Stack


def environment() -> dict[str, str]:
    """Returns the addresses of this home's stack, as `skyhigh env` prints them.

    A variable of the environment takes precedence, so that the commands also work with a stack that was not started
    here. Ends the command if no address is known.
    """
    from deploy.local.addresses import address_names

    report = report_of()
    known = report.addresses if report is not None else {}
    addresses = {name: value for name in address_names() if (value := os.environ.get(name) or known.get(name))}
    if not addresses:
        fail(f"no stack was started in {home()}: `make up` starts one")
    return addresses


def address_of(variable: str) -> str:
    """Returns one of the addresses. Ends the command if it is unknown."""
    address = environment().get(variable)
    return address if address is not None else fail(f"{variable} is not set")


def home() -> Path:
    """Returns the folder of the stack's data."""
    from deploy.local.home import home_of

    return home_of()


def named_stack() -> Stack:
    """Returns the stack that the environment describes. Ends the command if a setting is wrong."""
    from deploy.local.stack import Stack

    try:
        return Stack.from_environment()
    except ValueError as error:
        fail(str(error))


def usable_home(stack: Stack) -> None:
    """Creates the folder of the stack's data. Ends the command if a stack cannot use it."""
    from deploy.local.home import UnusableHomeError, ensure_home

    try:
        ensure_home(stack.home)
    except UnusableHomeError as error:
        fail(str(error))


def report_of() -> Report | None:
    """Returns the last report of this home's supervisor, or None."""
    from deploy.local.report import Report

    return Report.read(home())

"""Servers that were given by URL: prepares them like the private ones."""

from __future__ import annotations

from functools import partial

from deploy.local.servers.postgres import provision_schemas
from deploy.local.servers.rabbitmq import EXCHANGES
from deploy.local.services import SERVICES
from deploy.local.stack import Stack


class GivenServerError(Exception):
    """A server that was given by URL cannot be used as it is."""


async def provision_given_servers(stack: Stack) -> None:
    """Prepares servers that were given by URL like the private ones.

    Leaves out a service whose own database URL is given. Raises GivenServerError if a server cannot be prepared.
    """
    for variable, provision in (
        ("SKYHIGH_DATABASE_URL", partial(_provision_database, stack)),
        ("SKYHIGH_AMQP_URL", _provision_broker),
    ):
        if variable not in stack.given:
            continue
        try:
            await provision(stack.given[variable])
        # Drivers raise many errors for servers that are down or refuse a call. Each of them ends this start.
        except Exception as error:
            raise GivenServerError(f"the server of {variable} could not be prepared: {error}") from error


async def _provision_database(stack: Stack, url: str) -> None:
    import asyncpg

    own_urls = {service.name: f"SKYHIGH_{service.name.upper()}_DATABASE_URL" for service in SERVICES}
    passwords = {
        name: stack.secrets[f"postgres/{name}"] for name, variable in own_urls.items() if variable not in stack.given
    }
    if not passwords:
        return
    connection = await asyncpg.connect(url, timeout=10)
    try:
        await provision_schemas(connection, passwords)
    except asyncpg.InsufficientPrivilegeError as error:
        raise GivenServerError(
            f"{error}. Its user must own the database and be able to create roles; otherwise set a URL "
            f"for each service: {', '.join(own_urls.values())}"
        ) from error
    finally:
        await connection.close()


async def _provision_broker(url: str) -> None:
    import aio_pika

    async with await aio_pika.connect(url, timeout=10) as broker:
        channel = await broker.channel()
        for exchange in EXCHANGES:
            await channel.declare_exchange(exchange, aio_pika.ExchangeType.TOPIC, durable=True)

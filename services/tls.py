"""Mutual TLS between our services, with certificates of one authority.

Each process shows a certificate of this authority and trusts no other one. A certificate proves that a process is one
of our services, and its name says which one; the token decides what a caller may do. The files may be replaced at any
time, as Kubernetes does: the next connection uses the new ones.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

import grpc

from services import telemetry
from services.tls_identity import Identity, Pems

_log = telemetry.log("tls")

# After this time at most, a channel uses certificate files that were replaced.
REREAD_SECONDS: Final = 60
# Calls in flight on the replaced channel may run this long.
OLD_CHANNEL_SECONDS: Final = 10


class Reader:
    """Reads an identity again when its files change.

    Files that cannot be used are ignored; the last good ones stay in use.
    """

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._version = identity.version()
        self.pems = identity.read()
        """The last good contents."""

    def newer(self) -> Pems | None:
        """Returns the new contents if the files have changed and are good, else None."""
        try:
            version = self._identity.version()
            if version == self._version:
                return None
            self.pems = self._identity.read()
        except (OSError, ValueError) as error:
            _log.warning("new certificate is unusable; keeping the former one", error=str(error))
            return None
        self._version = version
        _log.info("certificate replaced", file=str(self._identity.certificate))
        return self.pems


def server_credentials(identity: Identity) -> grpc.ServerCredentials:
    """Returns credentials of a server that requires a certificate of the authority."""
    reader = Reader(identity)

    def newer() -> Any:
        """Returns the new configuration, or None if nothing changed.

        gRPC calls it before each handshake. The return type is Any because gRPC's stubs do not allow None.
        """
        pems = reader.newer()
        return None if pems is None else _configuration(pems)

    return grpc.dynamic_ssl_server_credentials(_configuration(reader.pems), newer, require_client_authentication=True)


def channel_credentials(pems: Pems) -> grpc.ChannelCredentials:
    """Returns credentials of a client that shows its certificate.

    The client accepts only servers with a certificate of the authority.
    """
    return grpc.ssl_channel_credentials(pems.authority, pems.key, pems.certificate)


def expected_name(name: str) -> tuple[str, str]:
    """Returns the channel option that sets the name in the callee's certificate.

    Without it gRPC would compare the certificate with the callee's address.
    """
    return ("grpc.ssl_target_name_override", name)


def _configuration(pems: Pems) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pems.key, pems.certificate)], root_certificates=pems.authority)


class RenewedChannel(grpc.aio.Channel):
    """A channel that reopens with the new certificate when the files are replaced.

    Stubs are created once and stay valid.
    """

    def __init__(self, identity: Identity, open_channel: Callable[[grpc.ChannelCredentials], grpc.aio.Channel]) -> None:
        self._reader = Reader(identity)
        self._open = open_channel
        self._channel = open_channel(channel_credentials(self._reader.pems))
        self._read_at = time.monotonic()
        self._closing: set[asyncio.Task[None]] = set()

    def _latest(self) -> grpc.aio.Channel:
        if time.monotonic() - self._read_at > REREAD_SECONDS:
            self._read_at = time.monotonic()
            pems = self._reader.newer()
            if pems is not None:
                closing = asyncio.create_task(self._channel.close(OLD_CHANNEL_SECONDS))
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
                self._channel = self._open(channel_credentials(pems))
        return self._channel

    def _callable(self, kind: str, method: tuple[Any, ...], handlers: dict[str, Any]) -> Any:
        def call(*request: Any, **options: Any) -> Any:
            return getattr(self._latest(), kind)(*method, **handlers)(*request, **options)

        return call

    def unary_unary(self, *method: Any, **handlers: Any) -> Any:
        """Behaves as in grpc.aio.Channel, like all methods below."""
        return self._callable("unary_unary", method, handlers)

    def unary_stream(self, *method: Any, **handlers: Any) -> Any:
        return self._callable("unary_stream", method, handlers)

    def stream_unary(self, *method: Any, **handlers: Any) -> Any:
        return self._callable("stream_unary", method, handlers)

    def stream_stream(self, *method: Any, **handlers: Any) -> Any:
        return self._callable("stream_stream", method, handlers)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._latest().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._latest().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._latest().channel_ready()

    async def close(self, grace: float | None = None) -> None:
        await asyncio.gather(self._channel.close(grace), *self._closing)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

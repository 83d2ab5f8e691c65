"""Opaque page tokens: signed, and good only for the query and the principal that they were made for."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any, Final

from services.errors import FieldViolation, InvalidArgument

DEFAULT_PAGE_SIZE: Final = 50
LARGEST_PAGE_SIZE: Final = 100
_SIGNATURE_BYTES: Final = 16


def page_size(asked: int) -> int:
    """0 means the default; too large is clamped. Negative ones are refused by the proto's rule."""
    return min(asked, LARGEST_PAGE_SIZE) if asked else DEFAULT_PAGE_SIZE


class PageTokens:
    """Writes and reads the tokens of one service."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    def write(self, position: Any, *, query: str, principal: str) -> str:
        """Returns a token for the position (JSON-able) after the last row of a page."""
        body = json.dumps(position).encode()
        return base64.urlsafe_b64encode(self._signature(body, query, principal) + body).decode()

    def read(self, token: str, *, query: str, principal: str) -> Any:
        """Returns the position; None for an empty token. Raises InvalidArgument for a token of anything else."""
        if not token:
            return None
        try:
            # Strictly, or else a token with anything behind it would be another spelling of the same.
            raw = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
        except ValueError as error:
            raise InvalidArgument.of(_FOREIGN) from error
        signature, body = raw[:_SIGNATURE_BYTES], raw[_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._signature(body, query, principal)):
            raise InvalidArgument.of(_FOREIGN)
        return json.loads(body)

    def _signature(self, body: bytes, query: str, principal: str) -> bytes:
        message = b"\0".join((query.encode(), principal.encode(), body))
        return hashlib.blake2b(message, key=self._key[:64], digest_size=_SIGNATURE_BYTES).digest()


_FOREIGN: Final = FieldViolation("page_token", "is not a token of this query")

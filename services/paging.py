"""Opaque page tokens: signed, and valid for one query and one principal."""

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
    """Returns the page size: the default for 0, at most LARGEST_PAGE_SIZE.

    The proto's rule refuses negative sizes.
    """
    return min(asked, LARGEST_PAGE_SIZE) if asked else DEFAULT_PAGE_SIZE


class PageTokens:
    """Writes and reads the page tokens of one service."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    def write(self, position: Any, *, query: str, principal: str) -> str:
        """Returns a token for the position after the last row of a page.

        The position must be serializable as JSON.
        """
        body = json.dumps(position).encode()
        return base64.urlsafe_b64encode(self._signature(body, query, principal) + body).decode()

    def read(self, token: str, *, query: str, principal: str) -> Any:
        """Returns the position of a token, or None for an empty token.

        Raises InvalidArgument for a token that is malformed or belongs to another query or principal.
        """
        if not token:
            return None
        try:
            # Without `validate` the decoder skips foreign characters, so that one token would have many spellings.
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


_FOREIGN: Final = FieldViolation(
    "page_token", "must be the next_page_token of the same query; leave it out to read the first page"
)

"""The files that the edge itself serves.

They are the OpenAPI document, and Swagger UI to read and try it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

OWN_FILES: Final = Path(__file__).parents[1] / "docs"
# npm installs it there, in the version of gateway/docs/package-lock.json.
SWAGGER_UI: Final = OWN_FILES / "node_modules" / "swagger-ui-dist"
METHODS: Final = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class ServedFile:
    """A file, and the path at which the edge serves it."""

    path: str
    file: Path
    content_type: str


def served_files(openapi: Path) -> Iterator[ServedFile]:
    """Yields the files to serve; `openapi` is the path of the written document.

    Without an installed Swagger UI there is only the document: Envoy does not start if a configured file is missing.
    """
    yield ServedFile("/openapi.json", openapi, "application/json")
    page = [
        ServedFile("/docs", OWN_FILES / "index.html", "text/html; charset=utf-8"),
        ServedFile("/docs/page.js", OWN_FILES / "page.js", "application/javascript; charset=utf-8"),
        ServedFile("/docs/page.css", OWN_FILES / "page.css", "text/css; charset=utf-8"),
        # Without the charset a browser decodes the bundle as Latin-1, which is not valid JavaScript.
        ServedFile("/docs/swagger-ui.js", SWAGGER_UI / "swagger-ui-bundle.js", "application/javascript; charset=utf-8"),
        ServedFile("/docs/swagger-ui.css", SWAGGER_UI / "swagger-ui.css", "text/css; charset=utf-8"),
        ServedFile("/docs/favicon.png", SWAGGER_UI / "favicon-32x32.png", "image/png"),
    ]
    if all(served.file.exists() for served in page):
        yield from page

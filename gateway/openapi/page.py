"""The files that the edge itself serves: the document, and Swagger UI to read and try it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

OWN_FILES: Final = Path(__file__).parents[1] / "docs"
# npm puts it there; gateway/docs/package-lock.json says which version.
SWAGGER_UI: Final = OWN_FILES / "node_modules" / "swagger-ui-dist"
METHODS: Final = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class ServedFile:
    """A file at a path of the edge."""

    path: str
    file: Path
    content_type: str


def served_files(openapi: Path) -> Iterator[ServedFile]:
    """What is served; `openapi` is where the document was written.

    Where Swagger UI is not installed there is no page, because Envoy would not start with a file that is missing.
    """
    yield ServedFile("/openapi.json", openapi, "application/json")
    page = [
        ServedFile("/docs", OWN_FILES / "index.html", "text/html; charset=utf-8"),
        ServedFile("/docs/page.js", OWN_FILES / "page.js", "application/javascript; charset=utf-8"),
        ServedFile("/docs/page.css", OWN_FILES / "page.css", "text/css; charset=utf-8"),
        # Without the charset a browser reads the bundle as Latin-1, and its text is no JavaScript then.
        ServedFile("/docs/swagger-ui.js", SWAGGER_UI / "swagger-ui-bundle.js", "application/javascript; charset=utf-8"),
        ServedFile("/docs/swagger-ui.css", SWAGGER_UI / "swagger-ui.css", "text/css; charset=utf-8"),
        ServedFile("/docs/favicon.png", SWAGGER_UI / "favicon-32x32.png", "image/png"),
    ]
    if all(served.file.exists() for served in page):
        yield from page

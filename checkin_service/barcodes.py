"""Boarding passes as pictures: Aztec, PDF417 and QR, dark on light with a quiet zone, as SVG, PNG and text.

Each takes about half a millisecond of one core, so it may be called in an event loop.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby, zip_longest
from typing import Final

import zxingcpp
from PIL import Image, ImageOps

# QR asks for four light modules on each side (ISO/IEC 18004), PDF417 for two, Aztec for none; four are right for all.
QUIET_MODULES: Final = 4
DARK, LIGHT = 0, 255


class Symbology(StrEnum):
    """A kind of barcode."""

    AZTEC = "AZTEC"
    PDF417 = "PDF417"
    QR = "QR"


@dataclass(frozen=True, slots=True)
class _Style:
    format: zxingcpp.BarcodeFormat
    module_pixels: int
    """How large a module is in a picture: more than 300 pixels for the whole, sharp on any phone."""
    error_correction: str = ""
    """The writer's own choice where empty."""


_STYLES: Final = {
    Symbology.AZTEC: _Style(zxingcpp.BarcodeFormat.Aztec, module_pixels=10),
    # One level more than ISO/IEC 15438 asks for: at that, a scan askew was seen to be "corrected" to other letters.
    Symbology.PDF417: _Style(zxingcpp.BarcodeFormat.PDF417, module_pixels=5, error_correction="3"),
    Symbology.QR: _Style(zxingcpp.BarcodeFormat.QRCode, module_pixels=10),
}


def svg(bcbp: str, symbology: Symbology) -> bytes:
    """Returns an SVG document: a light ground and one path of dark rectangles."""
    symbol = _symbol(bcbp, symbology)
    width, height = symbol.size
    scale = _STYLES[symbology].module_pixels
    path = "".join(f"M{x} {y}h{w}v{h}h-{w}z" for x, y, w, h in _dark_rectangles(_rows(symbol)))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width * scale}" height="{height * scale}" '
        f'viewBox="0 0 {width} {height}" shape-rendering="crispEdges">'
        f'<rect width="{width}" height="{height}" fill="#fff"/><path d="{path}" fill="#000"/></svg>\n'
    ).encode()


def png(bcbp: str, symbology: Symbology) -> bytes:
    """Returns a PNG picture of one bit a pixel."""
    symbol = _symbol(bcbp, symbology).convert("1")
    scale = _STYLES[symbology].module_pixels
    content = io.BytesIO()
    symbol.resize((symbol.width * scale, symbol.height * scale), Image.Resampling.NEAREST).save(content, "PNG")
    return content.getvalue()


def text(bcbp: str, symbology: Symbology = Symbology.AZTEC) -> str:
    """Returns lines of half blocks, two rows of modules each, for a terminal that writes light on dark."""
    rows = _rows(_symbol(bcbp, symbology))
    below_the_last = bytes([DARK]) * len(rows[0])
    return "\n".join(
        "".join(" ▄▀█"[2 * (above == LIGHT) + (below == LIGHT)] for above, below in zip(upper, lower, strict=True))
        for upper, lower in zip_longest(rows[::2], rows[1::2], fillvalue=below_the_last)
    )


def _symbol(content: str, symbology: Symbology) -> Image.Image:
    """Returns the symbol with its quiet zone, one grey pixel a module."""
    style = _STYLES[symbology]
    barcode = zxingcpp.create_barcode(content, style.format, ec_level=style.error_correction)
    return ImageOps.expand(Image.fromarray(barcode.to_image(add_quiet_zones=False)), QUIET_MODULES, fill=LIGHT)


def _rows(symbol: Image.Image) -> list[bytes]:
    pixels = symbol.tobytes()
    return [pixels[first : first + symbol.width] for first in range(0, len(pixels), symbol.width)]


def _dark_rectangles(rows: Sequence[bytes]) -> Iterator[tuple[int, int, int, int]]:
    """Yields x, y, width and height of each run of dark modules, together with equal rows below it."""
    y = 0
    for row, equal_rows in groupby(rows):
        height = len(list(equal_rows))
        x = 0
        for shade, run in groupby(row):
            width = len(list(run))
            if shade == DARK:
                yield x, y, width, height
            x += width
        y += height

"""Barcodes of boarding passes as SVG, PNG and terminal text.

Aztec, PDF417 and QR, dark on light with a quiet zone. Drawing one takes about half a millisecond of one core, so the
event loop can call these functions directly.
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

# Light modules on each side. QR requires four (ISO/IEC 18004), PDF417 two and Aztec none; four are enough for all.
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
    """Pixels per module: the whole image is wider than 300 pixels, which is sharp on any phone."""
    error_correction: str = ""
    """Level of error correction; empty for the default of the library."""


_STYLES: Final = {
    Symbology.AZTEC: _Style(zxingcpp.BarcodeFormat.Aztec, module_pixels=10),
    # One level above the minimum of ISO/IEC 15438: with the minimum, a tilted scan was observed to "correct" letters to
    # wrong ones.
    Symbology.PDF417: _Style(zxingcpp.BarcodeFormat.PDF417, module_pixels=5, error_correction="3"),
    Symbology.QR: _Style(zxingcpp.BarcodeFormat.QRCode, module_pixels=10),
}


def svg(bcbp: str, symbology: Symbology) -> bytes:
    """Returns an SVG document: a light background and one path of dark rectangles."""
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
    """Returns a PNG image with one bit per pixel."""
    symbol = _symbol(bcbp, symbology).convert("1")
    scale = _STYLES[symbology].module_pixels
    content = io.BytesIO()
    symbol.resize((symbol.width * scale, symbol.height * scale), Image.Resampling.NEAREST).save(content, "PNG")
    return content.getvalue()


def text(bcbp: str, symbology: Symbology = Symbology.AZTEC) -> str:
    """Returns the barcode as lines of half-block characters for a terminal.

    Each line shows two rows of modules. The terminal must write light characters on a dark background.
    """
    rows = _rows(_symbol(bcbp, symbology))
    below_the_last = bytes([DARK]) * len(rows[0])
    return "\n".join(
        "".join(" ▄▀█"[2 * (above == LIGHT) + (below == LIGHT)] for above, below in zip(upper, lower, strict=True))
        for upper, lower in zip_longest(rows[::2], rows[1::2], fillvalue=below_the_last)
    )


def _symbol(content: str, symbology: Symbology) -> Image.Image:
    """Returns the symbol with its quiet zone, one grey pixel per module."""
    style = _STYLES[symbology]
    barcode = zxingcpp.create_barcode(content, style.format, ec_level=style.error_correction)
    return ImageOps.expand(Image.fromarray(barcode.to_image(add_quiet_zones=False)), QUIET_MODULES, fill=LIGHT)


def _rows(symbol: Image.Image) -> list[bytes]:
    pixels = symbol.tobytes()
    return [pixels[first : first + symbol.width] for first in range(0, len(pixels), symbol.width)]


def _dark_rectangles(rows: Sequence[bytes]) -> Iterator[tuple[int, int, int, int]]:
    """Yields x, y, width and height of each run of dark modules.

    A run that continues in equal rows below it is yielded as one rectangle.
    """
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

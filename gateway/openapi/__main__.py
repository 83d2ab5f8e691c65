"""`python -m gateway.openapi --output FILE` writes the document."""

from __future__ import annotations

import argparse
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from gateway.descriptors import DESCRIPTORS
from gateway.openapi import document


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m gateway.openapi", description=document.__doc__)
    parser.add_argument("--output", type=Path, metavar="FILE", required=True, help="where to write the document")
    document.write(FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()), parser.parse_args().output)


if __name__ == "__main__":
    main()

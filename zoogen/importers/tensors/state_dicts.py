"""State dicts from bytes, running no code; and how tensors alone, without their network, lie in a row."""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from zoogen.core.layout import Entry, Layout, TensorRole
from zoogen.importers.source import Unusable
from zoogen.importers.tensors.checkpoint_names import check_checkpoint
from zoogen.importers.tensors.templates import Templates
from zoogen.importers.tensors.views import fits

if TYPE_CHECKING:
    from torch import Tensor

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_MOST_TENSORS = 100_000
_LONGEST_NAME = 512
_RUNNING = ("running_mean", "running_var", "num_batches_tracked")
_DAMAGE = (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, OSError, EOFError, struct.error)
_IS_FOLDER = 0x10  # of a zip's external attributes
_CONVOLUTIONS = {2: "Linear", 3: "Conv1d", 4: "Conv2d", 5: "Conv3d"}


def load_tensors(data: bytes, templates: Templates | None = None) -> Mapping[str, Tensor]:
    """The state dict in a file that ``torch.save`` wrote: plain tensors by name, on the CPU.

    One that stands under ``state_dict``, ``model_state_dict`` or ``model`` is taken from there.

    Args:
        data: The file.
        templates: Of files read before: those of the same kind are read many times faster, to the same tensors.

    Raises:
        Unusable: damaged, compressed, or with anything but tensors in it.
    """
    known = templates.read(data) if templates is not None else None
    if known is not None:
        return known
    _check_container(data)
    found = _load(data)
    _check_booleans(found)
    if templates is not None:
        templates.learn(data, found, _load)
    return found


def _load(data: bytes) -> dict[str, Tensor]:
    import torch

    try:
        check_checkpoint(data)
        found: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file makes the reader stumble over
        raise Unusable(f"is not a state dict that can be read without running code ({_first_line(error)})") from error
    if isinstance(found, Mapping):
        found = next((found[k] for k in _WRAPPERS if isinstance(found.get(k), Mapping)), found)
    if not isinstance(found, Mapping) or not found or len(found) > _MOST_TENSORS:
        raise Unusable("holds no state dict")
    for name, tensor in found.items():
        _check_tensor(name, tensor, len(data))
    return {name: tensor.detach() for name, tensor in found.items()}


def _check_container(data: bytes) -> None:
    """torch stores without compression, so that what is compressed was not written by it, and may inflate at will.

    It writes checksums, or 0 for each where it was told not to, and does not look at them when it reads.
    """
    if not data.startswith(b"PK"):
        return
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            members = file.infolist()
            names = [m.orig_filename for m in members]
            if names != [m.filename for m in members] or len({name.lower() for name in names}) < len(names):
                raise Unusable("has records of one name")  # of which torch reads any
            if any(m.compress_type != zipfile.ZIP_STORED for m in members):
                raise Unusable("has compressed records, which torch never writes")
            # Of a folder torch reads nothing, and hands out whatever was in memory before.
            records = [m for m in members if not m.is_dir()]
            if any(m.external_attr & _IS_FOLDER or m.compress_size != m.file_size for m in records):
                raise Unusable("is damaged (a record has no content)")
            for record in records:
                if record.CRC:
                    file.read(record)
    except _DAMAGE as error:
        raise Unusable(f"is damaged ({_first_line(error)})") from error


def _check_tensor(name: Any, tensor: Any, size: int) -> None:
    import torch

    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME:
        raise Unusable(f"has a tensor with the name {name!r:.60}")
    if not isinstance(tensor, torch.Tensor):
        raise Unusable(f"holds {name!r}, which is a {type(tensor).__name__} and no tensor")
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise Unusable(f"holds {name!r}, which is no plain tensor")
    # A view can repeat the same few bytes for ever.
    if tensor.numel() * tensor.element_size() > size:
        raise Unusable(f"holds {name!r} of {tensor.numel():,} elements, more than the file has bytes for")


def _check_booleans(tensors: Mapping[str, Tensor]) -> None:
    """What is neither 0 nor 1 is true here and false there."""
    import torch

    for name, tensor in tensors.items():
        if tensor.dtype == torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
            raise Unusable(f"holds {name!r}, in which booleans are neither true nor false")


def misfit(layout: Layout, tensors: Mapping[str, Tensor]) -> str | None:
    """Why these are not the tensors of ``layout``, or None: they are."""
    if fits(layout, tensors):
        return None
    known = {e.name: e for e in layout.entries}
    for what, names in (("lacks", known.keys() - tensors.keys()), ("has", tensors.keys() - known.keys())):
        if left := sorted(names):
            return f"{what} {', '.join(left[:3])}" + (" and others" if len(left) > 3 else "")
    for name, entry in known.items():
        shape, dtype = tuple(tensors[name].shape), _dtype(tensors[name])
        if (shape, dtype) != (entry.shape, entry.dtype):
            return f"{name} is {dtype} {shape}, not {entry.dtype} {entry.shape}"
    return None


def content_of(tensors: Mapping[str, Tensor]) -> str:
    """Digest of names and numbers, whatever file they came from."""
    import torch

    found = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        found.update(name.encode() + b"\0")
        found.update(tensors[name].reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


def layout_of_tensors(tensors: Mapping[str, Tensor], noisy: Mapping[str, Tensor] | None = None) -> Layout:
    """A layout from names, shapes and dtypes alone; nothing can be built from it.

    Owners are of module ``unknown`` but those of ``noisy``, weights that are known to be of a linear or convolutional
    layer. Whether a tensor was trained cannot be seen: float32 ones count as trained, running statistics do not.
    """
    owners = {owner: i for i, owner in enumerate(dict.fromkeys(name.rpartition(".")[0] for name in tensors))}
    offsets: dict[str, int] = {}
    entries = []
    for name in sorted(tensors, key=lambda name: not _is_trained(name, tensors[name])):
        tensor, dtype = tensors[name], _dtype(tensors[name])
        owner = name.rpartition(".")[0]
        weight = (noisy or {}).get(f"{owner}.weight")
        entries.append(
            Entry(
                name=name,
                role=_role(name, tensors),
                module="unknown" if weight is None else _CONVOLUTIONS.get(weight.ndim, "unknown"),
                shape=tuple(tensor.shape),
                dtype=dtype,
                offset=offsets.get(dtype, 0),
                order=owners[owner],
                trainable=_is_trained(name, tensor),
            )
        )
        offsets[dtype] = offsets.get(dtype, 0) + tensor.numel()
    return Layout(tuple(entries))


def _is_trained(name: str, tensor: Tensor) -> bool:
    return _dtype(tensor) == "float32" and name.rpartition(".")[2] not in _RUNNING


def _role(name: str, tensors: Mapping[str, Tensor]) -> TensorRole:
    owner, _, leaf = name.rpartition(".")
    if leaf in _RUNNING:
        return "running_statistic"
    if not _is_trained(name, tensors[name]):
        return "buffer"
    if leaf in ("weight", "bias") and f"{owner}.running_mean" in tensors:
        return "norm_scale" if leaf == "weight" else "norm_shift"
    if "bias" in leaf:
        return "bias"
    return "weight" if "weight" in leaf and tensors[name].ndim >= 2 else "parameter"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _first_line(error: Exception) -> str:
    """torch's message for what it does not admit goes on with advice that does not fit here."""
    text = str(error)
    place = text.find("Unsupported ")
    line = (text[place:] if place >= 0 else text).strip().partition("\n")[0][:200]
    return "".join(c if c.isprintable() else "?" for c in line) or type(error).__name__

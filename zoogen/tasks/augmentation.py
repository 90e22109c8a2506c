"""Random transforms of training batches, on the device, with one draw per sample from counter-based streams.

A draw depends on (key, step, position in the batch) and the augmentation's layer number alone, so a model sees the same
crops in any cohort and after a resume. Each function here equals torchvision's functional transform of one image at a
time with the same parameters; order and distributions are those of RandomCrop, RandomHorizontalFlip, RandomRotation.
Shape suffixes: K batches, B samples of each, N = K * B images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from zoogen.core.streams import subkey, uniform

if TYPE_CHECKING:
    from torch import Tensor

_CROP, _FLIP, _ROTATION = 0, 1, 2  # layers of the augment stream; frozen, since draws depend on them


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for each training image.

    Attributes:
        padding: Zero pixels added on each side before a random crop back to the same size; 0: no crop.
        flip: Mirror left-right with probability 1/2.
        degrees: Rotate about the centre by an angle in [-degrees, degrees); corners fill with zeros.
    """

    padding: int = 0
    flip: bool = False
    degrees: float = 0.0

    def __call__(self, inputs_KBCHW: Tensor, keys_K: Tensor, steps_K: Tensor) -> Tensor:
        """Augment K batches; same shape and dtype. Keys and steps as in ``TaskData.augment``."""
        if not (self.padding or self.flip or self.degrees):
            return inputs_KBCHW
        keys_K, steps_K = keys_K.to(inputs_KBCHW.device), steps_K.to(inputs_KBCHW.device)
        batches, samples = inputs_KBCHW.shape[:2]
        images_NCHW = inputs_KBCHW.flatten(0, 1)
        if self.padding:
            draw_N2 = _draw(keys_K, steps_K, _CROP, 2 * samples).view(-1, 2)  # row and column
            # The largest draw, 1 - 2**-24, times 2p + 1 stays below 2p + 1 in float32, so no offset is out of range.
            images_NCHW = crop(images_NCHW, (draw_N2 * (2 * self.padding + 1)).long(), self.padding)
        if self.flip:
            images_NCHW = flip(images_NCHW, _draw(keys_K, steps_K, _FLIP, samples) < 0.5)
        if self.degrees:
            draw_N = _draw(keys_K, steps_K, _ROTATION, samples)
            images_NCHW = rotate(images_NCHW, (2 * draw_N - 1) * self.degrees)
        return images_NCHW.unflatten(0, (batches, samples))


def _draw(keys_K: Tensor, steps_K: Tensor, layer: int, count: int) -> Tensor:
    """``count`` uniform draws for each batch, one batch after the other: [K * count]."""
    import torch

    keys_K1 = torch.as_tensor(subkey(keys_K, steps_K, layer))[:, None]
    return uniform(keys_K1, torch.arange(count, device=keys_K1.device)).flatten()


def crop(inputs_BCHW: Tensor, corner_B2: Tensor, padding: int) -> Tensor:
    """Pad with zeros, then cut each image to its old size at its own top-left corner (row, column)."""
    import torch

    batch, channels, height, width = inputs_BCHW.shape
    device = inputs_BCHW.device
    padded = torch.nn.functional.pad(inputs_BCHW, (padding,) * 4)
    rows_BH = corner_B2[:, :1] + torch.arange(height, device=device)
    columns_BW = corner_B2[:, 1:] + torch.arange(width, device=device)
    sample_B111 = torch.arange(batch, device=device)[:, None, None, None]
    channel_C11 = torch.arange(channels, device=device)[:, None, None]
    return padded[sample_B111, channel_C11, rows_BH[:, None, :, None], columns_BW[:, None, None, :]]


def flip(inputs_BCHW: Tensor, which_B: Tensor) -> Tensor:
    """Mirror the images that ``which_B`` (bool) marks left-right."""
    return inputs_BCHW.flip(-1).where(which_B[:, None, None, None], inputs_BCHW)


def rotate(inputs_BCHW: Tensor, degrees_B: Tensor) -> Tensor:
    """Rotate each image counter-clockwise about its centre; nearest pixel, zeros from outside."""
    import torch

    batch, _, height, width = inputs_BCHW.shape
    device = inputs_BCHW.device
    # In float64 the sines are the doubles that torchvision computes with `math`, so both sample the same pixels.
    angle_B = torch.deg2rad(-degrees_B.double())
    cos_B, sin_B = angle_B.cos().float(), angle_B.sin().float()
    # Output pixel (x, y) about the centre takes the input at (x cos + y sin, y cos - x sin), scaled to [-1, 1].
    matrix_B22 = torch.stack((cos_B, -sin_B, sin_B, cos_B), dim=-1).view(batch, 2, 2)
    # Filled on the device: a copy from the host could not be part of a CUDA graph.
    half_2 = torch.stack([torch.full((), 0.5 * side, device=device) for side in (width, height)])
    matrix_B22 = matrix_B22 / half_2
    x_W = torch.arange(width, device=device) - (width - 1) / 2
    y_H = torch.arange(height, device=device) - (height - 1) / 2
    at_P2 = torch.cartesian_prod(y_H, x_W).flip(-1)
    grid = (at_P2 @ matrix_B22).view(batch, height, width, 2)
    pixels = torch.nn.functional.grid_sample(
        inputs_BCHW.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    return pixels.to(inputs_BCHW.dtype)

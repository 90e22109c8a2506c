"""Random transforms of training batches, on the device, with one draw per sample from counter-based streams.

A draw depends on (key, step, position in the batch) and the augmentation's layer number alone, so a model sees the same
crops in any cohort and after a resume. Each function here equals torchvision's functional transform of one image at a
time with the same parameters; order and distributions are those of RandomCrop, RandomHorizontalFlip, RandomRotation.
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

    def __call__(self, inputs_BCHW: Tensor, key: int, step: int) -> Tensor:
        """Augment one batch; same shape and dtype. ``key`` and ``step`` as in ``TaskData.augment``."""
        import torch

        sample_B = torch.arange(len(inputs_BCHW), device=inputs_BCHW.device)
        if self.padding:
            # Two counters per sample: row and column.
            counter_B2 = 2 * sample_B[:, None] + torch.arange(2, device=sample_B.device)
            draw_B2 = uniform(subkey(key, step, _CROP), counter_B2)
            # The largest draw, 1 - 2**-24, times 2p + 1 stays below 2p + 1 in float32, so no offset is out of range.
            inputs_BCHW = crop(inputs_BCHW, (draw_B2 * (2 * self.padding + 1)).long(), self.padding)
        if self.flip:
            inputs_BCHW = flip(inputs_BCHW, uniform(subkey(key, step, _FLIP), sample_B) < 0.5)
        if self.degrees:
            draw_B = uniform(subkey(key, step, _ROTATION), sample_B)
            inputs_BCHW = rotate(inputs_BCHW, (2 * draw_B - 1) * self.degrees)
        return inputs_BCHW


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
    matrix_B22 = matrix_B22 / torch.tensor([0.5 * width, 0.5 * height], device=device)
    x_W = torch.arange(width, device=device) - (width - 1) / 2
    y_H = torch.arange(height, device=device) - (height - 1) / 2
    at_P2 = torch.cartesian_prod(y_H, x_W).flip(-1)
    grid = (at_P2 @ matrix_B22).view(batch, height, width, 2)
    pixels = torch.nn.functional.grid_sample(
        inputs_BCHW.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    return pixels.to(inputs_BCHW.dtype)

"""Transforms that are the same for every epoch and model, done once when data are decoded: grey, resize, crop.

Pixel by pixel what torchvision's Grayscale, Resize (bilinear) and CenterCrop do to PIL images, in this order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Geometry:
    """Static transforms; ``size`` is the shorter side after resizing, ``crop`` the side of the central square."""

    greyscale: bool = False
    size: int | None = None
    crop: int | None = None

    @property
    def is_identity(self) -> bool:
        return self == Geometry()

    def apply(self, image: Image) -> Image:
        """Transform one image.

        Raises:
            ValueError: the image is smaller than ``crop``.
        """
        from PIL import Image as Pillow

        if self.greyscale:
            image = image.convert("L")
        if self.size is not None:
            width, height = image.size
            short, long = sorted((width, height))
            other = int(self.size * long / short)
            new = (self.size, other) if width <= height else (other, self.size)
            if new != image.size:
                image = image.resize(new, Pillow.Resampling.BILINEAR)
        if self.crop is not None:
            width, height = image.size
            if min(width, height) < self.crop:
                raise ValueError(f"an image of {width}x{height} pixels is smaller than crop: {self.crop}")
            # round, not floor, as torchvision does: it decides where an odd margin goes.
            left, top = round((width - self.crop) / 2), round((height - self.crop) / 2)
            image = image.crop((left, top, left + self.crop, top + self.crop))
        return image

    def apply_all(self, images: np.ndarray) -> np.ndarray:
        """Transform uint8 images [N, C, H, W] with one or three channels -> [N, C', H', W']."""
        from PIL import Image as Pillow

        if self.is_identity or not len(images):
            return images
        pictures = images[:, 0] if images.shape[1] == 1 else images.transpose(0, 2, 3, 1)
        return np.stack([as_array(self.apply(Pillow.fromarray(np.ascontiguousarray(p)))) for p in pictures])


def as_array(image: Image) -> np.ndarray:
    """Pixels of a grey or RGB image: uint8 [C, H, W]."""
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

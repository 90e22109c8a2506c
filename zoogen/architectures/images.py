"""What the image networks ask of their input."""

from __future__ import annotations

from zoogen.core.errors import UserError


def image_shape(name: str, input_shape: tuple[int, ...], least: int = 1) -> tuple[int, int, int]:
    """(channels, height, width) of the input.

    Raises:
        UserError: the input is no image, or a side has fewer than ``least`` pixels.
    """
    if len(input_shape) != 3:
        raise UserError(
            f"architecture {name!r} needs images (channels, height, width), the task gives {input_shape}\n"
            "choose an architecture for this input, e.g. 'mlp'"
        )
    channels, height, width = input_shape
    if min(height, width) < least:
        raise UserError(
            f"architecture {name!r} needs images of at least {least}x{least} pixels, the task gives {height}x{width}\n"
            "resize the images in the task, or choose an architecture for small images, e.g. 'mlp'"
        )
    return channels, height, width

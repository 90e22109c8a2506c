"""What a model of the published zoos was made of, as paths tell it: nothing else does."""

from __future__ import annotations

import re

_CHECKPOINT = re.compile(r"checkpoint_\d+|checkpoints?|.*\.(?:pt|pth)")
_FINETUNED = re.compile(r"(?:.*/)?finetuning/(?!pretraining/)([^/]+)/([^/]+)")


def trial_of(path: str) -> str:
    """Name of the trial whose checkpoint is at ``path``, on whatever machine that was; "" where it has none.

    Sparse twins of 2022 record it as ``training::init_checkpoint_path``.
    """
    parts = [part for part in re.split(r"[/\\]+", path.strip()) if part not in ("", ".", "..")]
    while len(parts) > 1 and _CHECKPOINT.fullmatch(parts[-1]):
        parts.pop()
    return parts[-1] if parts and parts[-1] != "None" else ""


def pretrained_of(folder: str) -> str | None:
    """Name of the pretrained model that the one in ``folder`` was fine-tuned from: the ViT zoo has
    ``finetuning/<pretrained>/<model>`` beside ``pretraining/<pretrained>``.
    """
    match = _FINETUNED.fullmatch(folder)
    return match[1] if match else None

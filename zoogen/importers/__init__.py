"""Zoos published in other layouts -> models and their checkpoints, one file per layout, read without running any code.

Importing this room fills ``zoogen.importers.source.SOURCES`` and loads no torch.
"""

from zoogen.importers import modelzoo_pt, ray_tune, safetensors, small_cnn_zoo, torch_folder

__all__ = ["modelzoo_pt", "ray_tune", "safetensors", "small_cnn_zoo", "torch_folder"]

"""What is trained: one file per family; importing this room fills ``ARCHITECTURES`` and loads no torch.

Once a zoo is published with a name, a change of its behaviour or of a default gets a new name (``mlp-2``).
"""

from zoogen.architectures import cnn, cnn_gap, import_path, mlp, resnet, torchvision_models

__all__ = ["cnn", "cnn_gap", "import_path", "mlp", "resnet", "torchvision_models"]

"""Tasks: what a model is trained on. Importing this package fills ``core.registry.TASKS``, cheaply."""

from zoogen.tasks import cifar, digits, eurosat, image_folder, mnist, stl10, svhn, tiny_imagenet, usps
from zoogen.tasks.places import cache_root, data_root

__all__ = [
    "cache_root",
    "cifar",
    "data_root",
    "digits",
    "eurosat",
    "image_folder",
    "mnist",
    "stl10",
    "svhn",
    "tiny_imagenet",
    "usps",
]

"""Images from folders, manifests and named data sets, as uint8 RGB tensors."""

from ssl_vision.data.bad_files import skip_bad
from ssl_vision.data.dataset import ImageSet, Subset, in_memory, measure_statistics, small_in_memory
from ssl_vision.data.open import input_files, list_splits, open_images, resolve_split

__all__ = [
    "ImageSet",
    "Subset",
    "in_memory",
    "input_files",
    "list_splits",
    "measure_statistics",
    "open_images",
    "resolve_split",
    "skip_bad",
    "small_in_memory",
]

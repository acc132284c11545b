"""Images from folders, manifests and named data sets, as uint8 RGB tensors."""

from ssl_vision.data.image_set import ImageSet
from ssl_vision.data.memory import fits_in_memory, in_memory
from ssl_vision.data.open import list_splits, open_images
from ssl_vision.data.skipping import skip_bad
from ssl_vision.data.subset import Subset

__all__ = ["ImageSet", "Subset", "fits_in_memory", "in_memory", "list_splits", "open_images", "skip_bad"]

"""Images from folders, manifests and named data sets, as uint8 RGB tensors."""

from ssl_vision.data.image_set import ImageSet
from ssl_vision.data.memory import fits_in_memory, in_memory
from ssl_vision.data.open import open_images

__all__ = ["ImageSet", "fits_in_memory", "in_memory", "open_images"]

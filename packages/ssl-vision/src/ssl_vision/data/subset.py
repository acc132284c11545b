"""Some of the images of a set."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ssl_vision.data.image_set import ImageSet


class Subset(ImageSet):
    """Images of another set, in the order given; of the labels of that set only theirs are looked at."""

    def __init__(self, images: ImageSet, indices: Sequence[int]) -> None:
        labels = [label for i in indices if (label := images.label(i)) is not None]
        super().__init__(
            images.name,
            labels=labels if len(labels) == len(indices) else None,
            classes=images.classes,
            split=images.split,
            notes=images.notes,
        )
        self.images, self.indices = images, list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Tensor:
        return self.images.read(self.indices[index])

    def fingerprint(self, index: int) -> str:
        return self.images.fingerprint(self.indices[index])

    def path(self, index: int) -> str:
        return self.images.path(self.indices[index])

    def key(self, index: int) -> str:
        return self.images.key(self.indices[index])

    def size(self, index: int) -> tuple[int, int]:
        return self.images.size(self.indices[index])

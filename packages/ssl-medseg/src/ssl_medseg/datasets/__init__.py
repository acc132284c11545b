"""Open data sets: cases, label maps and splits."""

from ssl_medseg.datasets.dataset import Case, DataSet
from ssl_medseg.datasets.open import open_dataset, open_split, open_with
from ssl_medseg.datasets.options import DataOptions
from ssl_medseg.datasets.splits import Split, read_split, write_split
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.volume import ImageFile

__all__ = [
    "Case",
    "DataOptions",
    "DataSet",
    "ImageFile",
    "LabelMap",
    "Split",
    "open_dataset",
    "open_split",
    "open_with",
    "read_split",
    "write_split",
]

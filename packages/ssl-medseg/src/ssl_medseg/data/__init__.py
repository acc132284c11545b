"""Data sets: which cases there are, what their labels mean, and which of them training may see."""

from ssl_medseg.data.cases import Case, DataSet, ImageFile
from ssl_medseg.data.label_map import LabelMap
from ssl_medseg.data.open import open_dataset, open_split, open_with
from ssl_medseg.data.options import DataOptions
from ssl_medseg.data.splits import Split, read_split, write_split

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

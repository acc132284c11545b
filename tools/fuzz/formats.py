"""Formats that are read: a small valid file of each, and its reader."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
import yaml
from PIL import Image

from contrastive_core.training.documents import read_json, read_rows, read_yaml
from contrastive_core.training.model_file import load_model, save_model
from ssl_medseg.datasets import Split, open_dataset, read_split, write_split
from ssl_medseg.io import ImageFile, read_volume
from ssl_medseg.io.label_map import read_label_map
from ssl_medseg.phantom import write_phantom
from ssl_video.data.splits import read_split as read_video_split
from ssl_vision.data import open_images
from ssl_vision.labels.files import read_label_file


@dataclass(frozen=True)
class Format:
    """How a format is tried.

    Attributes:
        make: Writes a valid example below a folder and returns the file to damage.
        read: Reads it and returns what it holds, as text.
        has_checksum: Whether a file that reads differently from the valid one is a silent difference.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], str]
    has_checksum: bool = False


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def _json(folder: Path) -> Path:
    file = folder / "x.json"
    file.write_text(json.dumps({"labels": {"0": "background", "1": "core", "2": "shell"}}))
    return file


def _yaml(folder: Path) -> Path:
    file = folder / "x.yaml"
    file.write_text(yaml.safe_dump({"lr": 0.1, "net": {"widths": [1, 2, 3], "name": "x"}, "seed": 3, "flag": True}))
    return file


def _csv(folder: Path) -> Path:
    file = folder / "x.csv"
    file.write_text('path,class,split\na.png,cat,train\n"b, c.png",dog,val\n')
    return file


def _manifest(folder: Path) -> Path:
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
    file = folder / "x.csv"
    file.write_text("path,label,split\na.png,cat,train\nb.png,dog,train\n")
    return file


def _label_file(folder: Path) -> Path:
    file = folder / "labels.json"
    images = [["a.png", "cat"], ["b.png", "dog"]]
    file.write_text(json.dumps({"format": "ssl-vision labels 1", "data": "x", "split": "train", "images": images}))
    return file


def _model(folder: Path) -> Path:
    save_model(folder / "model", {"a": torch.arange(6.0)}, {"format": "x", "network": {"width": 3}})
    return folder / "model" / "model.json"


def _weights(folder: Path) -> Path:
    return _model(folder).with_name("model.safetensors")


def _read_model(file: Path) -> str:
    tensors, metadata = load_model(file.parent)
    return _digest(({name: t.tolist() for name, t in tensors.items()}, metadata))


def _volume(ending: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        array = np.arange(4 * 5 * 3, dtype=np.int16).reshape(4, 5, 3)
        file = folder / f"x{ending}"
        if ending in (".nii", ".nii.gz"):
            nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1.5, 3.0, 1.0])), file)
        else:
            import SimpleITK

            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(file))
        return file

    return make


def _read_volume(file: Path) -> str:
    volume = read_volume(ImageFile(file))
    return _digest((volume.array.tobytes(), volume.affine.tolist()))


def _split(folder: Path) -> Path:
    write_phantom(folder / "data", patients=3, frames=1, labelled=3, size=16)
    dataset = open_dataset(folder / "data")
    names = dataset.names
    write_split(folder / "split.json", Split(names[:1], unlabelled=names[1:]), dataset)
    return folder / "split.json"


def _picture(ending: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "images").mkdir()
        file = folder / "images" / f"x{ending}"
        pixels = np.random.default_rng(0).integers(0, 255, (24, 20, 3), np.uint8)
        Image.fromarray(pixels).save(file)
        return file

    return make


FORMATS: Mapping[str, Format] = {
    "json": Format(_json, lambda file: _digest(read_json(file))),
    "label map": Format(_json, lambda file: _digest(str(read_label_map(file)))),
    "yaml": Format(_yaml, lambda file: _digest(read_yaml(file))),
    "csv": Format(_csv, lambda file: _digest(read_rows(file))),
    "manifest of images": Format(_manifest, lambda file: _digest(len(open_images(str(file), split="train")))),
    "label file": Format(_label_file, lambda file: _digest(read_label_file(file))),
    "model.json": Format(_model, _read_model, has_checksum=True),
    "model.safetensors": Format(_weights, _read_model, has_checksum=True),
    "nii": Format(_volume(".nii"), _read_volume),
    "nii.gz": Format(_volume(".nii.gz"), _read_volume, has_checksum=True),
    "nrrd": Format(_volume(".nrrd"), _read_volume),
    "mha": Format(_volume(".mha"), _read_volume),
    "split of volumes": Format(
        _split, lambda file: _digest(read_split(file, open_dataset(file.parent / "data")).parts), has_checksum=True
    ),
    "split of videos": Format(_json, lambda file: _digest(read_video_split(file))),
    "png": Format(_picture(".png"), lambda file: _digest(open_images(str(file.parent), split="all").read(0).tolist())),
    "jpeg": Format(_picture(".jpg"), lambda file: _digest(open_images(str(file.parent), split="all").read(0).tolist())),
}

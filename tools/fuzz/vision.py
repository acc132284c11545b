"""Formats that ssl-vision reads: images, manifests, label files, weights and checkpoints."""

from __future__ import annotations

import json
import pickle
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tifffile
import torch
from PIL import Image
from torchvision import datasets
from torchvision.datasets.utils import calculate_md5

from contrastive_core.errors import UserError
from contrastive_core.training.model_file import save_model
from contrastive_core.training.weights import read_tensors
from ssl_vision.data import open_images
from ssl_vision.data.bad_files import read_log
from ssl_vision.data.decode import read_channels, read_image, read_size
from ssl_vision.data.named import open_named
from ssl_vision.evaluation.predictions import make_predictions, read_predictions, write_predictions
from ssl_vision.evaluation.scores import Score, read_classifier_score
from ssl_vision.importing.tensorflow import TensorBundle, masked_crc32c
from ssl_vision.labels.files import LabelFile, read_labelled, write_label_file
from ssl_vision.methods import SimCLR
from ssl_vision.models import EncoderOptions, build_encoder
from ssl_vision.models.model_folder import Architecture, classifier_card, encoder_card, load_classifier, load_pretrained
from ssl_vision.models.pretrained import load_weights
from ssl_vision.reports.run_folder import read_scores
from tools.fuzz.core import sign_card
from tools.fuzz.format import Format, digest

_SMALL = EncoderOptions("resnet18", width_multiplier=0.0625)


def _pixels(mode: str = "RGB", size: int = 24) -> Image.Image:
    rows, columns = np.mgrid[:size, : size + 4]
    planes = np.stack([rows * 9, columns * 8, rows * columns], axis=2) % 256
    noise = np.random.default_rng(0).integers(0, 30, planes.shape)
    image = Image.fromarray((planes + noise).clip(0, 255).astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image.convert(mode)


_EXIF = Image.Exif()
_EXIF[274] = 6
_SAVED: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    # name: ending, mode, options
    "jpeg": (".jpg", "RGB", {}),
    "progressive": (".jpg", "RGB", {"progressive": True, "exif": _EXIF}),
    "gray jpeg": (".jpg", "L", {}),
    "cmyk": (".jpg", "CMYK", {}),
    "png": (".png", "RGB", {}),
    "palette": (".png", "P", {"transparency": 3}),
    "rgba": (".png", "RGBA", {"exif": _EXIF}),
    "16 bit": (".png", "I;16", {}),
    "bilevel": (".png", "1", {}),
    "webp": (".webp", "RGB", {}),
    "lossless webp": (".webp", "RGBA", {"lossless": True}),
    "avif": (".avif", "RGB", {}),
    "gif": (".gif", "P", {"save_all": True, "append_images": [_pixels("P")]}),
    "bmp": (".bmp", "RGB", {}),
    "palette bmp": (".bmp", "P", {}),
    "ppm": (".ppm", "RGB", {}),
    "pgm": (".pgm", "L", {}),
    "tiff": (".tif", "RGB", {}),
    "lzw": (".tif", "RGB", {"compression": "tiff_lzw"}),
    "deflate": (".tif", "I;16", {"compression": "tiff_adobe_deflate"}),
    "jpeg in tiff": (".tif", "RGB", {"compression": "jpeg"}),
    "fax": (".tif", "1", {"compression": "group4"}),
    "pages": (".tif", "L", {"save_all": True, "append_images": [_pixels("L")]}),
}


def _make_picture(root: Path, example: str) -> list[Path]:
    suffix, mode, options = _SAVED[example]
    (root / "class").mkdir()
    file = root / "class" / f"x{suffix}"
    _pixels(mode).save(file, **options)
    return [file]


def _read_picture(root: Path) -> str:
    file = next((root / "class").iterdir())
    return digest(read_image(file), read_size(file), open_images(root).label(0))


def _sign_png(root: Path) -> None:
    """Recompute the checksums of the chunks."""
    file = next((root / "class").iterdir())
    data = bytearray(file.read_bytes())
    at = 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    file.write_bytes(data)


def _pictures(name: str, examples: tuple[str, ...], **more: Any) -> Format:
    return Format(name, _make_picture, _read_picture, examples, **more)


def _make_channels(root: Path, example: str) -> list[Path]:
    array = np.random.default_rng(0).integers(0, 4000, (5, 20, 24)).astype(np.uint16)
    if example == "compressed":
        tifffile.imwrite(root / "x.tif", array, photometric="minisblack", compression="zlib")
    elif example == "big":
        tifffile.imwrite(root / "x.tif", array, photometric="minisblack", bigtiff=True)
    else:
        tifffile.imwrite(root / "x.tif", array.transpose(1, 2, 0), photometric="minisblack", planarconfig="contig")
    return [root / "x.tif"]


def _images(root: Path) -> None:
    for name in ("cat/a", "dog/b", "cat/c"):
        (root / name).parent.mkdir(exist_ok=True)
        _pixels("RGB", 8).save(root / f"{name}.png")


def _make_manifest(root: Path, example: str) -> list[Path]:
    _images(root)
    rows = [("cat/a.png", "cat", "train"), ("dog/b.png", "dog", "train"), ("cat/c.png", "cat", "val")]
    sign = {"commas": ",", "tabs": "\t", "semicolons": ";"}[example]
    (root / "x.csv").write_text("\n".join(sign.join(row) for row in [("path", "label", "split"), *rows]) + "\n")
    return [root / "x.csv"]


def _read_manifest(root: Path) -> str:
    images = open_images(root / "x.csv")
    return digest([images.key(i) for i in range(len(images))], images.is_labelled and images.labels(), images.classes)


def _make_label_file(root: Path, _: str) -> list[Path]:
    _images(root)
    images = (("cat/a.png", "cat"), ("dog/b.png", "dog"))
    write_label_file(root / "labels.json", LabelFile("x", "train", images, {"seed": 3}))
    return [root / "labels.json"]


def _make_label_list(root: Path, example: str) -> list[Path]:
    _images(root)
    text = {"names": "cat/a.png\ndog/b.png\n", "table": "path,label\ncat/a.png,cat\ndog/b.png,dog\n"}[example]
    (root / "labels.json").write_text(text)
    return [root / "labels.json"]


def _read_labels(root: Path) -> str:
    return digest(read_labelled(root / "labels.json", open_images(root)))


def _sign_label_file(root: Path) -> None:
    try:
        content = json.loads((root / "labels.json").read_bytes())
        pairs = tuple((str(name), str(label)) for name, label in content["images"])
        content["sha256"] = LabelFile("", "", pairs, {}).digest
        (root / "labels.json").write_text(json.dumps(content))
    except (ValueError, TypeError, KeyError, RecursionError):
        return


def _make_encoder(root: Path, _: str) -> list[Path]:
    torch.manual_seed(0)
    network = SimCLR(build_encoder(_SMALL, image_size=16), projection_dim=4, layers=2)
    card = encoder_card(_SMALL, image_size=16, head=network.head, epoch=1)
    save_model(root / "model", dict(network.state_dict()), card)
    return [root / "model" / "model.json"]


def _read_encoder(root: Path) -> str:
    model = load_pretrained(str(root))
    return digest(model.encoder.state_dict(), model.head and model.head.state_dict(), asdict(model.options))


def _make_classifier(root: Path, _: str) -> list[Path]:
    torch.manual_seed(0)
    architecture = Architecture(_SMALL, 16, (3, 4), 1)
    classes = ["cat", "dog"]
    save_model(root / "model", dict(architecture.build(2).state_dict()), classifier_card(architecture, classes))
    return [root / "model" / "model.json"]


def _read_classifier(root: Path) -> str:
    classifier = load_classifier(str(root))
    return digest(classifier.model.state_dict(), classifier.classes, classifier.image_size, classifier.validated_on)


def _encoder_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(build_encoder(_SMALL, image_size=16).state_dict())


def _make_weights(root: Path, example: str) -> list[Path]:
    from safetensors.torch import save_file

    state = _encoder_state()
    if example == "safetensors":
        save_file(state, root / "x.safetensors")
        return [root / "x.safetensors"]
    nested = {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}
    torch.save(nested, root / "x.pt", _use_new_zipfile_serialization=example == "zip")
    return [root / "x.pt"]


def _read_weights(root: Path) -> str:
    (file,) = root.iterdir()
    options = EncoderOptions("resnet18", width_multiplier=0.0625, weights=file)
    encoder = load_weights(options, image_size=16)[0]
    return digest(encoder.state_dict(), read_tensors(file))


_TENSORFLOW = Path(__file__).parents[2] / "tests" / "vision" / "importing" / "tensorflow_files"


def _make_bundle(root: Path, example: str) -> list[Path]:
    import shutil

    shutil.unpack_archive(_TENSORFLOW / "kinds.tar.xz", root)
    keep = {"saver": root / "saver", "sharded": root / "sharded", "objects": root / "object"}[example]
    for folder in list(root.iterdir()):
        if folder != keep:
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    return sorted(keep.glob("*.index")) + sorted(keep.glob("*.data-*"))


def _read_bundle(root: Path) -> str:
    from ssl_vision.importing.tensorflow import KEY, ObjectGraph

    (folder,) = root.iterdir()
    bundle = TensorBundle(folder)
    tensors: dict[str, Any] = {}
    for name in sorted(bundle.entries):
        entry = bundle.entries[name]
        if entry.dtype == 7:
            tensors[name] = bundle.string(name) if not entry.shape else entry
        elif not entry.partitioned:
            tensors[name] = bundle.tensor(name)
    graph = ObjectGraph(bundle).nodes if KEY in bundle.entries else []
    return digest(tensors, [vars(node) for node in graph])


def _sign_bundle(root: Path) -> None:
    """Recompute the checksums of the blocks of a table, if its footer still refers to them."""
    from ssl_vision.importing.tensorflow import DamagedError, varint

    for file in root.rglob("*.index"):
        data = bytearray(file.read_bytes())
        try:
            at, places = 0, []
            footer = bytes(data[-48:])
            for _ in range(2):
                offset, at = varint(footer, at)
                size, at = varint(footer, at)
                places.append((offset, size))
            offset, size = places[1]
            for start, length in [(0, offset - 5 if places[0][0] > offset else places[0][0] - 5), *places]:
                end = start + length + 1
                if 0 <= start < end and end + 4 <= len(data):
                    data[end : end + 4] = masked_crc32c(bytes(data[start:end])).to_bytes(4, "little")
        except DamagedError:
            continue
        file.write_bytes(data)


def _make_predictions(root: Path, _: str) -> list[Path]:
    scores = np.array([[0.25, 0.75], [0.5, 0.5], [1, 0]], dtype=np.float32)
    predictions = make_predictions(scores, np.array([1, 0, 0]), paths=["a", "b", "c"], classes=["cat", "dog"])
    write_predictions(root / "x.npz", predictions)
    return [root / "x.npz"]


def _read_predictions(root: Path) -> str:
    predictions = read_predictions(root / "x.npz")
    return digest(predictions.probabilities, predictions.labels, predictions.paths, predictions.classes)


def _make_score(root: Path, _: str) -> list[Path]:
    from ssl_vision.evaluation.scores import score_classifier, to_json

    torch.manual_seed(0)
    score = score_classifier(
        torch.randn(12, 3), torch.arange(12) % 3, classes=["a", "b", "c"], model="m", model_hash="0", data="d",
        split="test", bins=5,
    )  # fmt: skip
    (root / "x.json").write_bytes(to_json(score))
    return [root / "x.json"]


def _make_log(root: Path, _: str) -> list[Path]:
    lines = [{"index": i, "path": f"{i}.png", "reason": "is damaged"} for i in range(3)]
    (root / "bad.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [root / "bad.jsonl"]


def _make_cifar(root: Path, example: str) -> list[Path]:
    """Write the files of CIFAR-10 or CIFAR-100 with two images each."""
    kind: Any = {"CIFAR-10": datasets.CIFAR10, "CIFAR-100": datasets.CIFAR100}[example]
    folder = root / kind.base_folder
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)
    key = "labels" if example == "CIFAR-10" else "fine_labels"
    for name, _ in [*kind.train_list, *kind.test_list]:
        (folder / name).write_bytes(pickle.dumps({"data": pixels, key: [1, 3]}, protocol=2))
    count = 10 if example == "CIFAR-10" else 100
    names = {kind.meta["key"]: [f"class {number}" for number in range(count)]}
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps(names, protocol=2))
    return [folder / kind.test_list[0][0], folder / kind.meta["filename"]]


def _read_cifar(root: Path) -> str:
    """Read the test images with the checksums of the files in the folder instead of the published ones."""
    name = "cifar10" if (root / datasets.CIFAR10.base_folder).exists() else "cifar100"
    kind: Any = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    folder = root / kind.base_folder

    def signed(file: str) -> str:
        return str(calculate_md5(str(folder / file)))

    tests, meta = kind.test_list, kind.meta
    try:
        kind.test_list = [[file, signed(file)] for file, _ in tests]
        kind.meta = {**meta, "md5": signed(meta["filename"])}
        images = open_named(name, root, split="test")
    finally:
        kind.test_list, kind.meta = tests, meta
    return digest([images.read(i) for i in range(len(images))], images.labels(), images.classes)


def _make_run_scores(root: Path, _: str) -> list[Path]:
    (root / "evaluation").mkdir()
    score = Score("knn", 97.5, 99.0, 364, 10, "m", "0", "digits", {"k": 5}, 96.0, {"layer": 1})
    (root / "evaluation" / "knn.json").write_text(json.dumps(asdict(score)))
    return [root / "evaluation" / "knn.json"]


def _read_run_scores(root: Path) -> str:
    run: Any = SimpleNamespace(path=root, settings=SimpleNamespace(epochs=1))
    return digest([f"{each} {each.score} {each.protocol}" for each in read_scores(run)])


FORMATS = (
    _pictures("JPEG", ("jpeg", "progressive", "gray jpeg", "cmyk")),
    _pictures("PNG", ("png", "palette", "rgba", "16 bit", "bilevel"), has_checksum=True),
    _pictures("PNG, signed", ("png", "palette", "rgba", "16 bit", "bilevel"), sign=_sign_png),
    _pictures("WebP and AVIF", ("webp", "lossless webp", "avif")),
    _pictures("GIF, BMP and PPM", ("gif", "bmp", "palette bmp", "ppm", "pgm")),
    _pictures("TIFF", ("tiff", "lzw", "deflate", "jpeg in tiff", "fax", "pages")),
    Format("TIFF of five channels", _make_channels, lambda root: digest(read_channels(root / "x.tif", 5)),
           ("compressed", "big", "contiguous")),
    Format("manifest of images", _make_manifest, _read_manifest, ("commas", "tabs", "semicolons"), "csv"),
    Format("label file", _make_label_file, _read_labels, kind="json", has_checksum=True),
    Format("label file, signed", _make_label_file, _read_labels, kind="json", sign=_sign_label_file),
    Format("list of labelled images", _make_label_list, _read_labels, ("names", "table"), "csv"),
    Format("encoder, signed", _make_encoder, _read_encoder, kind="json", sign=sign_card),
    Format("classifier, signed", _make_classifier, _read_classifier, kind="json", sign=sign_card),
    Format("PyTorch weights", _make_weights, _read_weights, ("zip", "legacy", "safetensors"), header=4096),
    Format("TensorFlow checkpoint", _make_bundle, _read_bundle, ("saver", "sharded", "objects"), has_checksum=True),
    Format("TensorFlow checkpoint, signed", _make_bundle, _read_bundle, ("saver", "sharded", "objects"),
           sign=_sign_bundle),
    Format("predictions", _make_predictions, _read_predictions, has_checksum=True),
    Format("evaluation of a classifier", _make_score, lambda root: digest(vars(_some(root))), kind="json"),
    Format("CIFAR, signed", _make_cifar, _read_cifar, ("CIFAR-10", "CIFAR-100"), sign=lambda _: None),
    Format("scores of a run", _make_run_scores, _read_run_scores, kind="json"),
    Format("list of bad images", _make_log, lambda root: digest(read_log(root / "bad.jsonl")), kind="json"),
)  # fmt: skip


def _some(root: Path) -> Any:
    score = read_classifier_score(root / "x.json")
    if score is None:
        raise UserError(f"{root}: another kind of file")
    return score

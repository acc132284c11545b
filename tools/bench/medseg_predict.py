r"""Measure seconds per volume of `ssl-medseg predict`, compared with a MONAI script with the same network.

    python -m tools.bench.medseg_predict --shape 320 320 20 --width 16 --threads 1
    python -m tools.bench.medseg_predict --images data/prostate/imagesTr --threads 1 \
        --out docs/results/medseg_predict.json

Times are from file to mask. The script follows MONAI's tutorials: LoadImaged, ScaleIntensityRangePercentilesd,
Spacingd, ResizeWithPadOrCropd, SliceInferer, softmax, Invertd, argmax, SaveImaged. It runs with 1, 4 and 16 slices at a
time, and with one also in bfloat16, which `predict` uses on processors that have it.
`--nnunet` adds nnU-Net's predictor (which must be installed) with the same network and its own reading, normalisation,
cubic resampling, tiles and writing; choose a `--size` that covers a slice, because it does not crop. Rounds alternate
between the programs, the first round is not counted, and medians are printed with the share of equal voxels. The time
for imports is measured separately.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from torch import nn

from ssl_medseg.io import read_volume, write_mask
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.volume import ImageFile
from ssl_medseg.models import NetworkOptions, build_network
from ssl_medseg.prediction import InferencePrecision, segment
from ssl_medseg.preprocessing import Preprocessing
from tools.bench import nnunet as nnunet_predictor
from tools.results import provenance, write_result

LABELS = LabelMap(("background", "one", "two"), (0, 1, 2))
SPACING = (0.625, 0.625, 3.6)
SLICES_AT_ONCE = (1, 4, 16)
IMPORTS = {
    "predict": "import ssl_medseg.commands.predict",
    "MONAI script": "import monai.transforms, monai.inferers",
}
Contestant = Callable[[Path, Path], None]


def generated(folder: Path, shape: tuple[int, int, int]) -> list[Path]:
    """Write two volumes of noise; speed does not depend on the content."""
    paths = [folder / f"{number}.nii.gz" for number in range(2)]
    for number, path in enumerate(paths):
        array = np.random.default_rng(number).integers(0, 500, shape).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])), path)
    return paths


def ours(network: nn.Module, p: Preprocessing, precision: InferencePrecision) -> Contestant:
    """Return a function that segments one image as the command does, where `auto` is the default."""

    def run(image: Path, mask: Path) -> None:
        volume = read_volume(ImageFile(image))
        write_mask(segment(volume, network, p, precision=precision).classes, volume, mask, LABELS)

    return run


def monai_script(network: nn.Module, p: Preprocessing, batch_size: int) -> Contestant:
    """Return a function that segments one image with MONAI's transforms and inferer."""
    from monai.inferers.inferer import SliceInferer

    t: Any = importlib.import_module("monai.transforms")  # its names are not exported for type checkers

    spacing = p.spacing or (1.0, 1.0)
    before = t.Compose(
        [
            t.LoadImaged("image", ensure_channel_first=True),
            t.ScaleIntensityRangePercentilesd("image", 1, 99, 0, 1, clip=False),
            t.Spacingd("image", (*spacing, -1)),
            t.ResizeWithPadOrCropd("image", (*p.size, -1)),
        ]
    )
    after = t.Compose(
        [
            t.Activationsd("pred", softmax=True),
            t.Invertd("pred", before, orig_keys="image", nearest_interp=False),
            t.AsDiscreted("pred", argmax=True),
        ]
    )
    inferer = SliceInferer(roi_size=p.size, sw_batch_size=batch_size, spatial_dim=2)

    @torch.no_grad()
    def run(image: Path, mask: Path) -> None:
        case = before({"image": str(image)})
        case["pred"] = inferer(case["image"][None], network)[0]
        save = t.SaveImage(
            mask.parent, "", separate_folder=False, resample=False, output_dtype=np.uint8, print_log=False
        )
        save(after(case)["pred"], filename=str(mask.parent / mask.name.removesuffix(".nii.gz")))

    return run


def nnunet(network: nn.Module, p: Preprocessing) -> Contestant:
    """Return a function that segments one image with nnU-Net's predictor and the same network."""
    predictor = nnunet_predictor.predictor(network, LABELS, size=p.size[0], spacing=p.spacing or (1.0, 1.0))
    return partial(nnunet_predictor.predict, predictor)


def in_bfloat16(run: Contestant) -> Contestant:
    """Return the same function, whose network computes in mixed precision."""

    def mixed(image: Path, mask: Path) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            run(image, mask)

    return mixed


def seconds_to_import(code: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - begun


def measure(arguments: argparse.Namespace) -> tuple[dict[str, float], float]:
    """Measure the median seconds per volume of each program, and the share of equal voxels."""
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    torch.manual_seed(0)
    p = Preprocessing(size=(arguments.size, arguments.size), spacing=(SPACING[0], SPACING[1]))
    network = build_network(NetworkOptions("unet", arguments.width), len(LABELS)).eval()
    network = network.to(memory_format=torch.channels_last)
    contestants = {"predict, float32": ours(network, p, "32-true")}
    contestants |= {f"MONAI, {size:2} at once": monai_script(network, p, size) for size in SLICES_AT_ONCE}
    count = len(contestants)  # these masks are equal; bfloat16 rounds, and nnU-Net normalises differently
    contestants["predict"] = ours(network, p, "auto")
    contestants["MONAI,  1 at once, bfloat16"] = in_bfloat16(monai_script(network, p, 1))
    if arguments.nnunet:
        contestants["nnU-Net"] = nnunet(network, p)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        images = generated(folder, tuple(arguments.shape))
        if arguments.images is not None:
            images = sorted(arguments.images.glob("*.nii.gz"))
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        equal = []
        for number in range(arguments.rounds + 1):
            image = images[number % len(images)]
            masks = {name: folder / f"{place}-{image.name}" for place, name in enumerate(contestants)}
            for name, run in contestants.items():
                begun = time.perf_counter()
                run(image, masks[name])
                if number:
                    seconds[name].append(time.perf_counter() - begun)
            first, *peers = (np.asarray(nibabel.load(mask).dataobj) for mask in list(masks.values())[:count])
            equal += [float((first == peer).mean()) for peer in peers]
    return {name: statistics.median(times) for name, times in seconds.items()}, min(equal)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(320, 320, 20), help="shape of the generated volumes")
    parser.add_argument("--images", type=Path, help="folder of NIfTI files to use instead of generated volumes")
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--nnunet", action="store_true", help="also measure nnU-Net's predictor")
    parser.add_argument("--out", type=Path, help="results file")
    arguments = parser.parse_args(argv)
    warnings.filterwarnings("ignore")
    medians, equal = measure(arguments)
    medians = dict(sorted(medians.items(), key=lambda pair: not pair[0].startswith("predict")))
    for name, seconds in medians.items():
        print(f"{name:27} {seconds:7.3f} s per volume, {seconds / medians['predict']:5.2f} of predict's")
    imports = {name: seconds_to_import(code) for name, code in IMPORTS.items()}
    for name, seconds in imports.items():
        print(f"{name:18} {seconds:7.3f} s to import")
    print(f"equal voxels {equal:.4f}")
    nnunet_text = (
        "nnU-Net's predictor processes one slice at a time, without mirroring, and resamples with cubic splines. "
    )
    if arguments.out is not None:
        volumes = "generated volumes" if arguments.images is None else f"volumes of {arguments.images.parent.name}"
        config = {name: getattr(arguments, name) for name in ("shape", "size", "width", "threads", "rounds")}
        write_result(
            arguments.out,
            {
                "name": arguments.out.stem,
                **provenance(),
                "seeds": [0],
                "config": {**config, "volumes": volumes},
                "table": {
                    "columns": ["program", "s per volume", "of predict's"],
                    "rows": [
                        [f"ssl-medseg {name}" if name.startswith("predict") else name, round(value, 3),
                         round(value / medians["predict"], 2)]
                        for name, value in medians.items()
                    ],
                },
                "notes": [
                    f"Median seconds from image file to mask file, on {volumes} with the same U-Net of width "
                    f"{arguments.width} and slices of {arguments.size} x {arguments.size} pixels, "
                    f"{arguments.threads or 'all'} thread(s). "
                    "The MONAI script uses SliceInferer and the transforms of MONAI's tutorials. "
                    f"{nnunet_text if arguments.nnunet else ''}In float32, {equal:.2%} of the voxels are equal"
                    f"{', except for nnU-Net' if arguments.nnunet else ''}. Importing, once per process, takes "
                    + " and ".join(f"{seconds:.1f} s ({name})" for name, seconds in imports.items())
                    + "."
                ],
                "seconds_to_import": imports,
                "equal_voxels": equal,
            },
        )  # fmt: skip


if __name__ == "__main__":
    main()

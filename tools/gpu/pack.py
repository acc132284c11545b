"""Pack everything that tools.gpu.run needs into a folder of at most 64 MiB, for a GPU machine without a network.

    python -m tools.gpu.pack --cifar10 cifar10.tar.xz --acdc acdc --ucf101 ucf101_10 --into .gpu

The folder contains the present sources of the packages, the tools and the tests, the wheels of `wheels.txt`, and the
data: CIFAR-10 unchanged, ACDC with a longer side of 192 pixels and 8-bit intensities, and clips of UCF-101 as images
that need no video decoder. Data that are already in the folder are kept. At the end, the size and the command line for
the GPU machine are printed.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("packages", "tools", "tests", "pyproject.toml")
SIDE = 192
CLIP_SIDE = 64
LONGEST = 500  # largest number of frames of a clip, because a JPEG has at most 65,535 rows
SECONDS = 540
LIMIT = 64 << 20
# Python of the GPU machine, and platforms whose wheels run there.
PLATFORMS = [f"--platform=manylinux_2_{minor}_x86_64" for minor in (28, 27, 17)] + ["--platform=manylinux2014_x86_64"]


def copy_sources(into: Path) -> None:
    """Copy the files under version control in their present state, and write the commit."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *SOURCES], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)

    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    (into / "COMMIT").write_text(head.stdout)


def download_wheels(into: Path, cache: Path) -> None:
    """Download the wheels of `wheels.txt`; wheels of an earlier call are taken from the cache."""
    shutil.rmtree(into, ignore_errors=True)
    lines = Path(__file__).with_name("wheels.txt").read_text().splitlines()
    requirements = [line for line in lines if line[:1] != "#"]
    if not cache.is_dir():
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--only-binary=:all:",
            "--python-version=3.12",
        ]
        subprocess.run([*pip, "--implementation=cp", *PLATFORMS, "-d", str(cache), *requirements], check=True)
    shutil.copytree(cache, into)


def pack_acdc(source: Path, into: Path) -> None:
    """Pack a Decathlon folder as `acdc.tar.xz`, with the longer side of each slice at `SIDE` pixels, in uint8."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "acdc")
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir(parents=True)
            for path in sorted((source / part).glob("*.nii.gz")):
                slices = torch.from_numpy(np.asarray(nibabel.load(path).dataobj, np.float32)).permute(2, 0, 1)[:, None]
                size = [round(side * SIDE / max(slices.shape[2:])) for side in slices.shape[2:]]
                if part == "imagesTr":
                    small = F.interpolate(slices, size, mode="bilinear", antialias=True) * (255 / slices.amax())
                else:
                    small = F.interpolate(slices, size, mode="nearest-exact")
                volume = small[:, 0].permute(1, 2, 0).round().to(torch.uint8).numpy()
                nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / part / path.name.removesuffix(".gz"))
        listing = json.loads((source / "dataset.json").read_text())
        for entry in listing["training"]:
            entry |= {key: entry[key].removesuffix(".gz") for key in ("image", "label")}
        (folder / "dataset.json").write_text(json.dumps(listing))
        shutil.copyfile(source / "split.csv", folder / "split.csv")
        with tarfile.open(into / "acdc.tar.xz", "w:xz") as archive:
            archive.add(folder, ".")


def pack_clips(source: Path, into: Path, per_class: int) -> None:
    """Pack some clips of every class as `clips.tar` in the format of `tools.gpu.mvpl`, which needs no video decoder.

    A clip is one JPEG image with its frames one below the other. The last quarter of the clips of each class is for the
    test, because clips of one recording follow each other. The other clips are for training, a fifth of them with
    labels.
    """
    _, *lines = (source / "clips.csv").read_text().splitlines()
    paths_by_class: dict[str, list[str]] = {}
    for line in lines:
        path, label, *_ = line.split(",")
        paths_by_class.setdefault(label, []).append(path)
    n_test = per_class // 4
    with tempfile.TemporaryDirectory() as scratch, tarfile.open(into / "clips.tar", "w") as archive:
        table = Path(scratch, "clips.csv")
        with table.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["file", "class", "part", "frames", "fps"])
            for label, paths in paths_by_class.items():
                n_labelled = max(2, (per_class - n_test) // 5)
                parts = (
                    ["labelled"] * n_labelled + ["unlabelled"] * (per_class - n_test - n_labelled) + ["test"] * n_test
                )
                for path, part in zip(paths[: per_class - n_test] + paths[-n_test:], parts, strict=True):
                    name = f"{label}-{Path(path).stem}.jpg"
                    frames, fps = write_strip(source / path, Path(scratch, name))
                    rows.writerow([name, label, part, frames, fps])
                    archive.add(Path(scratch, name), name)
        archive.add(table, "clips.csv")


def write_strip(video: Path, to: Path) -> tuple[int, float]:
    """Write the first `LONGEST` frames of a video one below the other as one JPEG, with short side `CLIP_SIDE` or less.

    Returns:
        Number of frames, and frames per second.
    """
    from ssl_video.data import index_video  # need PyAV, which may be missing if no videos are packed
    from ssl_video.data.reader import every_frame, resize_short

    index = index_video(video)
    frames = torch.from_numpy(np.stack(list(itertools.islice(every_frame(video), LONGEST)))).permute(0, 3, 1, 2)
    if min(frames.shape[2:]) > CLIP_SIDE:
        frames = resize_short(frames, CLIP_SIDE)
    strip = frames.permute(0, 2, 3, 1).reshape(-1, frames.shape[3], 3)
    Image.fromarray(strip.numpy()).save(to, quality=90)
    return len(frames), len(index) / index.duration


def command_line(into: Path) -> str:
    """Return the command line that runs everything from the parent folder of `into` and writes results to $OUT."""
    return (
        f"cd {into.name} && export PYTHONPATH=$PWD && timeout {SECONDS + 40} "
        f"python3 -m tools.gpu.run --out $OUT --work /tmp/gpu --seconds {SECONDS}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--into", type=Path, required=True, help="folder to write, whose contents are replaced except for the data"
    )
    parser.add_argument(
        "--cifar10", type=Path, help="archive of CIFAR-10 with train/ and test/ and a subfolder for each class"
    )
    parser.add_argument("--acdc", type=Path, help="folder of ACDC in the layout of the Decathlon with split.csv")
    parser.add_argument("--ucf101", type=Path, help="folder of clips with clips.csv and classes.json")
    parser.add_argument(
        "--clips", type=int, default=24, help="number of clips per class, of which a quarter are for the test"
    )
    parser.add_argument("--wheels", type=Path, default=Path("~/.cache/contrastive-gpu-wheels").expanduser())
    arguments = parser.parse_args()
    into: Path = arguments.into
    for part in SOURCES:
        place = into / part
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    data = into / "data"
    data.mkdir(parents=True, exist_ok=True)
    copy_sources(into)
    download_wheels(into / "wheels", arguments.wheels)
    if arguments.cifar10:
        shutil.copyfile(arguments.cifar10, data / "cifar10.tar.xz")
    if arguments.acdc:
        pack_acdc(arguments.acdc, data)
    if arguments.ucf101:
        pack_clips(arguments.ucf101, data, arguments.clips)
    size = sum(path.stat().st_size for path in into.rglob("*") if path.is_file())
    print(f"{into}: {size / 2**20:.1f} MiB")
    if size > LIMIT:
        raise SystemExit(f"{into} takes {size / 2**20:.1f} MiB, expected at most {LIMIT >> 20} MiB; omit some data")
    print(command_line(into))


if __name__ == "__main__":
    main()

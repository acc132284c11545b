"""Put all that tools.gpu.run needs into one folder of at most 64 MiB, to take to a GPU machine without a network.

    python -m tools.gpu.pack --cifar10 cifar10.tar.xz --acdc acdc --ucf101 ucf101_10 --into .gpu

The folder holds the sources of the packages, the tools and the tests as they lie here, the wheels of `wheels.txt`, and
the data: CIFAR-10 as it comes, ACDC with its longer side at 192 pixels and intensities in 8 bits, clips of UCF-101.
Clips come with a large wheel, beside which only one of the others fits. Data that are there already stay.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("packages", "tools", "tests", "pyproject.toml")
SIDE = 192
LIMIT = 64 << 20
# The machine's Python, and the names of platforms whose wheels run there.
PLATFORMS = [f"--platform=manylinux_2_{minor}_x86_64" for minor in (28, 27, 17)] + ["--platform=manylinux2014_x86_64"]


def copy_sources(into: Path) -> None:
    """The files under version control, in their present state, and the name of the commit."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *SOURCES], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)

    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    (into / "COMMIT").write_text(head.stdout)


def download_wheels(into: Path, cache: Path, lists: Sequence[str]) -> None:
    """The wheels of some lists; those of an earlier call are taken from the cache."""
    shutil.rmtree(into, ignore_errors=True)
    for name in lists:
        _download(into, cache / Path(name).stem, Path(__file__).with_name(name))


def _download(into: Path, cache: Path, listed: Path) -> None:
    wanted = [line for line in listed.read_text().splitlines() if line[:1] != "#"]
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
        subprocess.run([*pip, "--implementation=cp", *PLATFORMS, "-d", str(cache), *wanted], check=True)
    shutil.copytree(cache, into, dirs_exist_ok=True)


def pack_acdc(source: Path, into: Path) -> None:
    """A Decathlon folder with every slice's longer side at `SIDE` pixels, uint8, as one archive `acdc.tar.xz`."""
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
    """The first clips of every class with their lists, as one archive `ucf101_10.tar.xz`."""
    header, *lines = (source / "clips.csv").read_text().splitlines()
    taken: dict[str, list[str]] = {}
    for line in lines:
        taken.setdefault(line.split(",")[1], []).append(line)
    kept = [line for lines in taken.values() for line in lines[:per_class]]
    with tempfile.TemporaryDirectory() as scratch, tarfile.open(into / "ucf101_10.tar.xz", "w:xz") as archive:
        listing = Path(scratch, "clips.csv")
        listing.write_text("\n".join([header, *kept]) + "\n")
        archive.add(listing, "clips.csv")
        archive.add(source / "classes.json", "classes.json")
        for line in kept:
            name = line.split(",")[0]
            archive.add(source / name, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, required=True, help="the folder, made anew but for its data")
    parser.add_argument("--cifar10", type=Path, help="archive of CIFAR-10 with train/ and test/, a folder per class")
    parser.add_argument("--acdc", type=Path, help="ACDC as a Decathlon folder with split.csv")
    parser.add_argument("--ucf101", type=Path, help="folder of clips with clips.csv and classes.json")
    parser.add_argument("--clips", type=int, default=24, help="clips of every class")
    parser.add_argument("--wheels", type=Path, default=Path("~/.cache/contrastive-gpu-wheels").expanduser())
    arguments = parser.parse_args()
    into: Path = arguments.into
    for part in SOURCES:
        place = into / part
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    data = into / "data"
    data.mkdir(parents=True, exist_ok=True)
    copy_sources(into)
    lists = ["wheels.txt", *(["wheels-video.txt"] if arguments.ucf101 else [])]
    download_wheels(into / "wheels", arguments.wheels, lists)
    if arguments.cifar10:
        shutil.copyfile(arguments.cifar10, data / "cifar10.tar.xz")
    if arguments.acdc:
        pack_acdc(arguments.acdc, data)
    if arguments.ucf101:
        pack_clips(arguments.ucf101, data, arguments.clips)
    size = sum(path.stat().st_size for path in into.rglob("*") if path.is_file())
    print(f"{into}: {size / 2**20:.1f} MiB")
    if size > LIMIT:
        raise SystemExit(f"{into} takes {size / 2**20:.1f} MiB, more than {LIMIT >> 20}; leave out data")


if __name__ == "__main__":
    main()

"""Settings derived from data, and cases prepared once: the cache, unneeded labels, refusals."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from contrastive_core.errors import UserError
from ssl_medseg.datasets.dataset import Case, DataSet
from ssl_medseg.datasets.splits import fingerprint
from ssl_medseg.io import Grid, read_volume
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.volume import ImageFile
from ssl_medseg.preprocessing import Preprocessing, PreprocessingOptions, choose_preprocessing
from ssl_medseg.preprocessing.cases import cached, prepare_cases, share_lost
from tests.medseg.volumes_on_disk import affine, phantom, write_nifti

LABELS = LabelMap(("background", "outer", "middle", "inner"), (0, 1, 2, 3))


def dataset(root: Path, grids: list[tuple[tuple[int, int, int], np.ndarray]], *, units: str = "mm") -> DataSet:
    cases = []
    for number, (shape, matrix) in enumerate(grids):
        image, classes = phantom(shape, seed=number)
        name = f"case{number}"
        path = write_nifti(root / f"{name}.nii.gz", image, matrix, units=(units, "sec"))
        label = write_nifti(root / f"{name}_label.nii.gz", classes, matrix, units=(units, "sec"))
        cases.append(Case(name, f"patient{number // 2}", ImageFile(path), label))
    return DataSet("phantoms", root, tuple(cases), LABELS, "folders")


@pytest.fixture
def two(tmp_path: Path) -> DataSet:
    (tmp_path / "data").mkdir()
    return dataset(tmp_path / "data", [((60, 50, 6), affine((1.5, 1.5, 8)))] * 2)


def test_defaults_follow_the_data_and_say_why(tmp_path: Path) -> None:
    grids = [((120, 100, 6), affine((1.2, 1.2, 8))), ((7, 100, 90), affine((9, 1.4, 1.4), letters="SRA"))]
    grids.append(((110, 100, 5), affine((1.2, 1.2, 10))))
    data = dataset(tmp_path, grids)
    p, reasons = choose_preprocessing(data, data.names, labelled=["case0"])
    assert (p.spacing, p.slice_axis, p.orientation, p.percentiles) == ((1.2, 1.2), 2, "LPS", (1.0, 99.0))
    # Of 144 mm the labels reach 0.65 x 144 mm = 94 mm across the centre; with a fifth more 112 mm, 94 pixels.
    assert p.size == (96, 96)
    assert p.usual_spacing == (1.2, 1.2)
    words = "\n".join(reasons)
    for part in (
        "axial slices, the plane of acquisition of 3 of 3 volumes, 8 to 10 mm apart",
        "median of 3 volumes",
        "converted to the orientation LPS (stored: RAS 2, SRA 1)",
    ):
        assert part in words
    assert len(reasons) == 5


def test_labels_are_opened_only_where_they_may_be(two: DataSet) -> None:
    data = replace(two, cases=tuple(replace(case, label=Path("nowhere")) for case in two.cases))
    p, reasons = choose_preprocessing(data, data.names)
    assert p.size == (64, 64)  # all 60 voxels
    assert "whole field of view" in reasons[2]
    prepared = prepare_cases(data, data.names, p, labels=False)
    assert [case.label for case in prepared] == [None, None]
    with pytest.raises(UserError, match="nowhere"):
        choose_preprocessing(data, data.names, labelled=["case0"])
    with pytest.raises(UserError, match="nowhere"):
        prepare_cases(data, data.names, p, labels=True)
    none = replace(two, cases=tuple(replace(case, label=None) for case in two.cases))
    with pytest.raises(UserError, match="2 cases lack the required label: case0, case1"):
        prepare_cases(none, none.names, p, labels=True)


def test_without_spacing_the_longer_side_is_fitted(tmp_path: Path) -> None:
    shapes = [(100, 90, 4), (200, 180, 4), (100, 60, 4)]
    data = dataset(tmp_path, [(shape, np.eye(4)) for shape in shapes], units="unknown")
    p, reasons = choose_preprocessing(data, data.names, labelled=data.names)
    assert (p.spacing, p.fit, p.orientation) == (None, 100, "")
    assert any("no file states its voxel size" in reason for reason in reasons)
    first, second, _ = prepare_cases(data, data.names, p, labels=True)
    assert first.geometry.resampled == second.geometry.resampled == (100, 90)
    small, _ = choose_preprocessing(data, data.names, labelled=data.names, options=PreprocessingOptions(image_size=32))
    assert small.size == (32, 32)
    assert small.fit < 50


def test_what_is_given_is_taken(two: DataSet) -> None:
    options = PreprocessingOptions(
        spacing=2.0, image_size=96, slice_axis="1", orientation="stored", low=2, high=98, antialias=False, fill_nan=True
    )
    p, _ = choose_preprocessing(two, two.names, labelled=two.names, options=options)
    expected = Preprocessing((96, 96), (2.0, 2.0), 0, 1, percentiles=(2, 98), antialias=False, fill_nan=True)
    assert p == replace(expected, usual_spacing=(1.5, 8.0))
    small, reasons = choose_preprocessing(
        two, two.names, labelled=two.names, options=PreprocessingOptions(image_size=32)
    )
    # 32 pixels show what the labels need: 90 mm x 0.65 x 1.2.
    assert small.spacing == pytest.approx((2.2, 2.2), rel=0.1)
    assert any("32 pixels cover this field of view" in reason for reason in reasons)
    with pytest.raises(UserError, match="a multiple of 32"):
        PreprocessingOptions(image_size=50)
    with pytest.raises(UserError, match="both spacing and fit"):
        PreprocessingOptions(spacing=1.0, fit=100)


def test_the_cache_gives_the_same_and_notices_changes(two: DataSet, tmp_path: Path) -> None:
    p, cache = Preprocessing((64, 64), (1.4, 1.4)), tmp_path / "cache"
    plain = prepare_cases(two, two.names, p, labels=True)
    for _ in range(2):
        for case, expected in zip(prepare_cases(two, two.names, p, labels=True, cache=cache), plain, strict=True):
            assert case.slices.equal(expected.slices)
            assert case.label is not None
            assert case.label.equal(expected.label)
            assert replace(case, slices=None, label=None) == replace(expected, slices=None, label=None)
    kept = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(kept) == 3  # two images, and the label they share
    assert all(name.endswith(".safetensors") for name in kept)
    # Other content under the same name, other settings, another map of labels: none is mistaken for what is kept.
    path = two.case("case0").image.path
    write_nifti(path, phantom((60, 50, 6), seed=9)[0], affine((1.5, 1.5, 8)))
    changed = prepare_cases(two, ["case0"], p, labels=True, cache=cache)[0]
    assert not changed.slices.equal(plain[0].slices)
    wider = prepare_cases(two, ["case1"], replace(p, percentiles=(0, 100)), labels=False, cache=cache)[0]
    assert not wider.slices.equal(plain[1].slices)
    renamed = replace(two, labels=LabelMap(LABELS.names, (0, 3, 2, 1)))
    swapped = prepare_cases(renamed, ["case1"], p, labels=True, cache=cache)[0].label
    assert swapped is not None
    assert plain[1].label is not None
    assert not swapped.equal(plain[1].label)
    assert {name: (cache / name).stat().st_mtime_ns for name in kept} == kept


@pytest.mark.parametrize("kind", ["mhd", "mhd list", "mhd pattern", "nhdr", "nhdr list", "img"])
def test_voxels_and_headers_beside_a_file_identify_it(tmp_path: Path, kind: str) -> None:
    """Headers of several patients may be equal, and a corrected label changes only the file with its voxels."""
    ending, _, how = kind.partition(" ")
    voxels = [np.full((4, 5, 6), number, np.int16) for number in (1, 2)]
    files = []
    for number, array in enumerate(voxels):
        folder = tmp_path / f"patient{number}"
        folder.mkdir()
        path = folder / f"image.{ending}"
        if ending == "img":
            nibabel.Nifti1Pair(voxels[0], np.diag([1.0 + number, 1, 1, 1])).to_filename(path)
        else:
            slices = array.T.reshape(6, -1)
            names = [f"slice{k}.raw" for k in range(1, 7)] if how else ["image.raw"]
            for name, part in zip(names, slices if how else [slices], strict=True):
                (folder / name).write_bytes(part.tobytes())
            pattern = "slice%d.raw 1 6 1"
            named = {"": "image.raw", "list": "\n".join(["LIST", *names]), "pattern": pattern}[how]
            header = {
                "mhd": "NDims = 3\nDimSize = 4 5 6\nBinaryData = True\nElementType = MET_SHORT\nElementDataFile = ",
                "nhdr": "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 5 6\nendian: little\nencoding: raw\ndata file: ",
            }[ending]
            path.write_text(f"{header}{named}\n")
        files.append(path)
    cases = tuple(Case(f"p{n}", f"p{n}", ImageFile(path), path) for n, path in enumerate(files))
    assert cases[0].image.path.read_bytes() == cases[1].image.path.read_bytes()
    first, second = (fingerprint(case, label=True) for case in cases)
    assert first["image"] != second["image"]
    assert first["label"] != second["label"]

    def prepared(path: Path) -> float:
        tensor, _ = cached(tmp_path / "cache", [path], [], lambda: (torch.tensor(float(files.index(path))), {}))
        return float(tensor)

    assert [prepared(path) for path in (*files, *files)] == [0, 1, 0, 1]
    if ending != "img":
        pytest.importorskip("SimpleITK")
        assert [read_volume(case.image).array.max() for case in cases] == [1, 2]


def test_temporary_files_of_killed_processes_leave_the_cache(two: DataSet, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    names = [f".{'0' * 32}.safetensors.{tag}.tmp" for tag in ("0123abcd", "4567abcd")]
    for name in names:
        (cache / name).write_bytes(b"half")
    os.utime(cache / names[0], (0, 0))  # the other one is new, and may be being written
    prepare_cases(two, ["case0"], Preprocessing((64, 64)), labels=False, cache=cache)
    assert [path.name for path in cache.iterdir() if path.name.startswith(".")] == [names[1]]


def test_a_damaged_cache_is_made_anew(two: DataSet, tmp_path: Path) -> None:
    p, cache = Preprocessing((64, 64)), tmp_path / "cache"
    expected = prepare_cases(two, two.names, p, labels=True, cache=cache)
    for file in cache.iterdir():
        file.write_bytes(file.read_bytes()[:100])
    again = prepare_cases(two, two.names, p, labels=True, cache=cache)
    assert all(a.slices.equal(e.slices) for a, e in zip(again, expected, strict=True))


def test_a_label_on_another_grid_is_refused(two: DataSet) -> None:
    case = two.case("case0")
    assert case.label is not None
    write_nifti(case.label, phantom((60, 50, 6))[1], affine((1.5, 1.5, 8), origin=(-80, 30, 13.5)))
    with pytest.raises(UserError, match=r"case0_label\.nii\.gz: the label does not lie .* up to 1 mm apart"):
        prepare_cases(two, ["case0"], Preprocessing((64, 64)), labels=True)
    write_nifti(case.label, phantom((60, 48, 6))[1], affine((1.5, 1.5, 8)))
    with pytest.raises(UserError, match="60 x 48 x 6 voxels against 60 x 50 x 6"):
        prepare_cases(two, ["case0"], Preprocessing((64, 64)), labels=True)


def test_what_is_cut_off_is_said(two: DataSet) -> None:
    cases = prepare_cases(two, two.names, Preprocessing((32, 32), (1.0, 1.0)), labels=True)
    shares = share_lost(cases, LABELS.names)
    assert len(shares) == 4  # outer and middle of both
    assert shares[0].startswith("case0: ")
    assert shares[0].endswith("of outer lies outside the slices")
    assert (
        share_lost(prepare_cases(two, two.names, Preprocessing((96, 96), (1.0, 1.0)), labels=True), LABELS.names) == []
    )


def test_the_paper_s_protocol_is_what_prostate_data_suggest(shared_data: Path) -> None:
    root = shared_data / "prostate"
    cases = tuple(
        Case(file.name[:-7], file.name[:-7], ImageFile(file), root / "labelsTr" / file.name)
        for file in sorted((root / "imagesTr").glob("*.nii.gz"))
    )
    data = DataSet("prostate", root, cases, LabelMap(("background", "PZ", "TZ"), (0, 1, 2)), "decathlon")
    p, _ = choose_preprocessing(data, data.names, labelled=["Case00", "Case01"])
    assert (p.size, p.spacing, p.orientation) == ((192, 192), (0.625, 0.625), "LPS")
    assert isinstance(prepare_cases(data, ["Case03"], p, labels=True)[0].geometry.grid, Grid)

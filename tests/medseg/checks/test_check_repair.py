"""`check --repair` writes a copy with the requested repairs, lists them, and leaves the data unchanged."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from contrastive_core.errors import UserError
from ssl_medseg.checks import examine
from ssl_medseg.checks.repair import Repaired, repair
from ssl_medseg.cli import main
from ssl_medseg.datasets import open_dataset
from ssl_medseg.io import read_grid
from ssl_medseg.preprocessing.cases import read_truth
from tests.medseg.broken_set import AFFINE, SHAPE, broken
from tests.medseg.small_sets import ball, decathlon, save
from tests.medseg.volumes_on_disk import affine


def hashes(root: Path) -> dict[Path, bytes]:
    return {f.relative_to(root): hashlib.sha256(f.read_bytes()).digest() for f in root.rglob("*") if f.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return broken(tmp_path_factory.mktemp("broken") / "data")


@pytest.fixture(scope="module")
def repaired(root: Path) -> Repaired:
    before = hashes(root)
    done = repair(str(root), root.parent / "copy", ("fractions", "grid", "sform"))
    assert hashes(root) == before
    return done


def label(repaired: Repaired, name: str) -> np.ndarray:
    return np.asarray(nib.load(repaired.out / "labelsTr" / f"{name}.nii.gz").dataobj)


def test_what_check_found_is_gone_and_the_rest_is_as_it_was(root: Path, repaired: Repaired) -> None:
    before, after = ({finding.kind for finding in examine(folder).findings} for folder in (root, repaired.out))
    assert before - after == {"grid", "fraction", "rounded", "geometry"}
    assert after <= before
    changed = {file for file, digest in hashes(repaired.out).items() if hashes(root).get(file) != digest}
    named = ("grid_shape", "grid_shift", "grid_mirror", "fraction", "rounded")
    assert changed == {
        Path("repairs.json"),
        Path("imagesTr/sform.nii.gz"),
        *(Path(f"labelsTr/{n}.nii.gz") for n in named),
    }


def test_labels_lie_where_their_own_affine_says(root: Path, repaired: Repaired) -> None:
    def original(name: str) -> np.ndarray:
        return np.asarray(nib.load(root / "labelsTr" / f"{name}.nii.gz").dataobj)

    # Its affine says 15 mm to the right; an axis of the image runs to the left by 1.5 mm a voxel: ten voxels back.
    expected = np.zeros(SHAPE, dtype=np.uint8)
    expected[:-10] = original("grid_shift")[10:]
    np.testing.assert_array_equal(label(repaired, "grid_shift"), expected)
    np.testing.assert_array_equal(label(repaired, "grid_mirror"), original("grid_mirror")[::-1])
    np.testing.assert_array_equal(label(repaired, "grid_shape")[:-2], original("grid_shape"))
    assert not label(repaired, "grid_shape")[-2:].any()
    np.testing.assert_array_equal(label(repaired, "fraction"), np.rint(original("fraction")))
    for name in ("grid_shift", "grid_mirror", "grid_shape", "rounded"):
        written = nib.load(repaired.out / "labelsTr" / f"{name}.nii.gz")
        np.testing.assert_allclose(written.affine, AFFINE, atol=1e-5)
        assert written.get_data_dtype() == np.uint8


def test_everything_done_is_logged(repaired: Repaired) -> None:
    log = json.loads((repaired.out / "repairs.json").read_text())
    assert log["fixes"] == ["fractions", "grid", "sform"]
    said = {(change["case"], change["file"], change["fix"]): change["done"] for change in log["changes"]}
    assert said["grid_shift", "label", "grid"].startswith(
        "resampled to the grid of its image by nearest neighbour (voxels up to 15 mm"
    )
    assert "value 2:" in said["grid_shift", "label", "grid"]
    assert said["fraction", "label", "fractions"] == (
        "rounded in 5 voxels, by up to 0.5; 5 voxels of them became background"
    )
    assert said["sform", "image", "sform"].startswith(
        "its qform was set to the sform, from which it differed by up to "
    )
    left = {change["case"]: change["left"] for change in log["changes"] if change["left"]}
    assert set(left) == {"cut_label", "no_nifti", "frames"}  # nothing can be said of what cannot be read
    assert str(repaired.out.parent) not in json.dumps(log)


def test_the_other_form_places_an_image_and_its_voxels_stay(tmp_path: Path) -> None:
    data = decathlon(tmp_path / "data", ["a", "b"])
    path = data / "imagesTr" / "a.nii.gz"
    array = ball(0)[0]
    wrong, right = affine((1.5, 1.5, 8), letters="RAS"), affine((1.5, 1.5, 8), angles=(10, 5, 0), letters="LPS")
    image = nib.Nifti1Image(array, wrong)
    image.header.set_slope_inter(0.5, 3)
    image.set_sform(wrong, code=2)
    image.set_qform(right, code=1)
    nib.save(image, path)
    save(data / "labelsTr" / "a.nii.gz", ball(0)[1], right)
    done = repair(str(data), tmp_path / "copy", ["qform"])
    assert [(change.case, change.file, change.fix) for change in done.changes] == [("a", "image", "qform")]
    before, after = nib.load(path), nib.load(done.out / "imagesTr" / "a.nii.gz")
    np.testing.assert_allclose(after.affine, right, atol=1e-4)
    assert (int(after.header["sform_code"]), int(after.header["qform_code"])) == (1, 1)
    np.testing.assert_array_equal(np.asarray(after.dataobj), np.asarray(before.dataobj))
    assert after.dataobj.slope == 0.5
    start = after.dataobj.offset
    bytes_of = [gzip.decompress(file.read_bytes())[start:] for file in (path, done.out / "imagesTr" / "a.nii.gz")]
    assert bytes_of[0] == bytes_of[1]
    assert "grid" not in {finding.kind for finding in examine(done.out).findings}


def test_a_label_of_something_else_stays(tmp_path: Path) -> None:
    data = decathlon(tmp_path / "data", ["a", "b", "c"])
    far = np.diag([1.5, 1.5, 8.0, 1.0])
    far[:3, 3] = 500
    save(data / "labelsTr" / "a.nii.gz", ball(0)[1], far)
    save(data / "labelsTr" / "b.nii.gz", ball(0)[1].astype(np.float32) + 3.4)
    save(data / "labelsTr" / "c.nii.gz", ball(0)[1][:-1], np.eye(4))
    done = repair(str(data), tmp_path / "copy", ["grid", "fractions"])
    left = {change.case: change.left for change in done.changes}
    assert "no voxel with the value 1 would lie inside the image" in left["a"]
    assert "rounding would give the values 3, 4, 5, which are not in the label map" in left["b"]
    assert "states no position" in left["c"]
    assert {f: d for f, d in hashes(done.out).items() if f.name != "repairs.json"} == hashes(data)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = decathlon(tmp_path / "data", ["a", "b"])
    save(data / "labelsTr" / "a.nii.gz", np.roll(ball(0)[1], 2, axis=0)[:-1])
    out = tmp_path / "copy"
    assert main(["check", str(data), "--repair", "[grid]", "--repaired", str(out)]) == 1
    assert "REPAIRED in the copy" in capsys.readouterr().out
    assert main(["check", str(out)]) == 0
    assert main(["check", str(data), "--repair", "[grid]", "--repaired", str(out)]) == 1
    assert "expected a new or empty folder outside the data set" in capsys.readouterr().err
    assert main(["check", str(data), "--repair", "[grid]"]) == 1
    assert "together" in capsys.readouterr().err
    with pytest.raises(UserError, match="either sform or qform"):
        repair(str(data), tmp_path / "both", ["sform", "qform"])
    with pytest.raises(UserError, match="empty folder outside the data set"):
        repair(str(data), data / "inside", ["grid"])
    table = tmp_path / "table" / "set.csv"
    table.parent.mkdir()
    table.write_text(f"case,image,label\na,{data}/imagesTr/a.nii.gz,{data}/labelsTr/a.nii.gz\n")
    with pytest.raises(UserError, match="lies outside"):
        repair(str(table), tmp_path / "of-table", ["grid"])


def test_labels_behind_links_are_repaired_in_the_copy_and_dead_links_left_out(tmp_path: Path) -> None:
    data = decathlon(tmp_path / "data", ["a", "b"])
    shifted = data / "labelsTr" / "a.nii.gz"
    save(shifted, np.roll(ball(0)[1], 2, axis=0)[:-1])
    for place, name in ((data / "elsewhere", "a"), (tmp_path / "store", "b")):
        place.mkdir()
        file = data / "labelsTr" / f"{name}.nii.gz"
        file.rename(place / "x.nii.gz")
        file.symlink_to(place / "x.nii.gz")
    (data / "labelsTr" / "back").symlink_to(data, target_is_directory=True)
    (data / "imagesTr" / "gone.nii.gz").symlink_to(tmp_path / "nowhere")
    (data / "imagesTr" / "itself.nii.gz").symlink_to(data / "imagesTr" / "itself.nii.gz")
    before = hashes(data)
    done = repair(str(data), tmp_path / "copy", ["grid"])
    assert [(change.case, change.file) for change in done.changes] == [("a", "label")]
    assert hashes(data) == before
    assert not any(path.is_symlink() for path in done.out.rglob("*"))
    assert {finding.kind for finding in examine(data).findings if finding.level == "error"} == {"grid"}
    assert not examine(done.out).errors
    assert not (done.out / "labelsTr" / "back").exists()


def test_a_label_without_a_place_takes_the_header_of_its_image(tmp_path: Path) -> None:
    data = decathlon(tmp_path / "data", ["a", "b", "c"])
    for name in "abc":
        image, classes = ball(ord(name), SHAPE)
        save(data / "imagesTr" / f"{name}.nii.gz", image, affine((1.2, 1.3, 6.0), angles=(5, 9, -12)))
        save(data / "labelsTr" / f"{name}.nii.gz", classes[: 40 if name != "c" else 39], np.eye(4))
    nib.save(nib.Nifti1Image(ball(98, SHAPE)[1], None), data / "labelsTr" / "b.nii.gz")  # codes 0
    (found,) = [finding for finding in examine(data).findings if finding.kind == "grid"]
    said = {item.files[0]: item.detail for item in found.items}
    assert "states no position" in said["a"]
    assert "--repair header" in said["b"]
    assert said["c"] == "39 x 36 x 5 voxels against 40 x 36 x 5"
    done = repair(str(data), tmp_path / "copy", ["header"])
    assert {change.case: change.fix for change in done.changes if change.done} == {"a": "header", "b": "header"}
    for name in "ab":
        image, label = (nib.load(tmp_path / "copy" / folder / f"{name}.nii.gz") for folder in ("imagesTr", "labelsTr"))
        np.testing.assert_array_equal(label.header["srow_x"], image.header["srow_x"])
        np.testing.assert_array_equal(np.asarray(label.dataobj), ball(ord(name), SHAPE)[1])
    (left,) = [finding for finding in examine(tmp_path / "copy").findings if finding.kind == "grid"]
    assert [item.files for item in left.items] == [["c"]]


def test_a_map_of_probabilities_is_not_rounded_to_nothing(tmp_path: Path) -> None:
    data = decathlon(tmp_path / "data", ["low", "high"])
    soft = ball()[1] / 5  # 0, 0.2 and 0.4
    save(data / "labelsTr" / "low.nii.gz", soft.astype(np.float32))
    save(data / "labelsTr" / "high.nii.gz", (2 * soft).astype(np.float32))
    done = {change.case: change for change in repair(str(data), tmp_path / "copy", ["fractions"]).changes}
    assert "rounding would leave no structure, because its largest value is 0.4" in done["low"].left
    kept = nib.load(tmp_path / "copy" / "labelsTr" / "low.nii.gz").get_fdata()
    np.testing.assert_allclose(kept, soft, atol=1e-6)
    assert done["high"].done.endswith(f"; {np.count_nonzero(soft == 0.2)} voxels of them became background")


def test_a_label_interpolated_between_structures_is_not_rounded_to_rims(tmp_path: Path) -> None:
    from scipy.ndimage import zoom

    data = decathlon(tmp_path / "data", ["two", "one", "scaled"])
    shape = np.array([40, 36, 5])
    disc = (np.hypot(*np.indices((20, 18)) - np.array([10, 9])[:, None, None]) < 6)[..., None].repeat(5, axis=2)
    fine = zoom(disc.astype(np.float32), shape / disc.shape, order=1)  # linear, as in a viewer that resamples an image
    assert fine.shape == tuple(shape)
    for name, array in (("two", 2 * fine), ("one", fine), ("scaled", np.where(fine > 0.5, 1.9882, 0))):
        save(data / "labelsTr" / f"{name}.nii.gz", array.astype(np.float32))
    done = {change.case: change for change in repair(str(data), tmp_path / "copy", ["fractions"]).changes}
    assert "rounding would surround others with rims of value 1 (" in done["two"].left
    kept = nib.load(tmp_path / "copy" / "labelsTr" / "two.nii.gz").get_fdata()
    np.testing.assert_allclose(kept, 2 * fine, atol=1e-6)
    for name, expected in (("one", np.rint(fine)), ("scaled", 2 * (fine > 0.5))):
        written = nib.load(tmp_path / "copy" / "labelsTr" / f"{name}.nii.gz").get_fdata()
        np.testing.assert_array_equal(written, expected)


def test_a_label_of_a_series_in_another_order_stays_on_its_anatomy(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    from tests.medseg.dicom_series import write_series

    image, classes = ball(0, SHAPE)
    matrix = affine((1.5, 1.5, 5.0), letters="LPS")  # the order of ITK; the series is read from the other end
    write_series(tmp_path / "data" / "images" / "p1", image.astype(np.uint16), matrix)
    save(tmp_path / "data" / "labels" / "p1.nii.gz", classes * np.float32(0.99), matrix)
    (tmp_path / "data" / "labels.json").write_text('{"shell": 1, "core": 2}')
    (done,) = repair(str(tmp_path / "data"), tmp_path / "copy", ["fractions", "grid"]).changes
    assert done.fix == "fractions"
    written = nib.load(tmp_path / "copy" / "labels" / "p1.nii.gz")
    places = np.insert(np.argwhere(classes == 2), 3, 1, axis=1) @ matrix.T
    indices = np.rint(places @ np.linalg.inv(written.affine).T).astype(int)[:, :3]
    assert (np.asarray(written.dataobj)[tuple(indices.T)] == 2).all()
    assert not [str(finding) for finding in examine(tmp_path / "copy").errors]


@pytest.mark.parametrize("form", ["cropped to the structures", "of double voxels"])
def test_a_resampled_label_keeps_its_outermost_voxels(form: str, tmp_path: Path) -> None:
    image, classes = ball(0, SHAPE)
    matrix = affine((1.37, 1.37, 3.61), angles=(10, 20, 30))
    if form == "of double voxels":
        coarse, own = classes[::2, ::2], matrix @ np.diag([2.0, 2.0, 1.0, 1.0])
        own[:3, 3] = (matrix @ (0.5, 0.5, 0.0, 1.0))[:3]
        coarse[0, 0] = 1  # a corner of the image
        expected = coarse.repeat(2, axis=0).repeat(2, axis=1)
        stored = nib.Nifti1Image(coarse, own)
    else:
        low, high = np.argwhere(classes).min(axis=0), np.argwhere(classes).max(axis=0) + 1
        stored = nib.Nifti1Image(classes, matrix).slicer[tuple(map(slice, low, high))]
        expected = classes
    save(tmp_path / "data" / "images" / "p1.nii.gz", image, matrix)
    save(tmp_path / "data" / "labels" / "p1.nii.gz", np.asarray(stored.dataobj), stored.affine)
    (tmp_path / "data" / "labels.json").write_text('{"shell": 1, "core": 2}')
    repair(str(tmp_path / "data"), tmp_path / "copy", ["grid"])
    written = nib.load(tmp_path / "copy" / "labels" / "p1.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), expected)


def test_two_repairs_at_once_do_not_mix_their_copies(root: Path, tmp_path: Path) -> None:
    """The second one removed the unfinished copy of the first one."""
    code = "import sys; from pathlib import Path; from contrastive_core.training import files; "
    code += "print(files.FileLocks(Path(sys.argv[1])).acquire(['copy']), flush=True); sys.stdin.read()"
    unfinished = tmp_path / ".copy.tmp"
    unfinished.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"None\n"
        with pytest.raises(UserError, match="copy is being written by another process; wait for it to end"):
            repair(str(root), tmp_path / "copy", ("grid",))
        assert unfinished.exists()
        other.communicate()


def test_a_label_of_the_same_voxels_in_another_order_is_named_and_reordered(tmp_path: Path) -> None:
    matrix = affine((1.37, 1.37, 3.61), angles=(10, 20, 30))
    (tmp_path / "data" / "labels").mkdir(parents=True)
    labels, name_of = {}, {}
    for number, order in enumerate(product(permutations(range(3)), product((1, -1), repeat=3))):
        image, labels[f"p{number}"] = ball(0, (9, 9, 9) if number % 2 else (9, 8, 7))  # equal sides, or not
        labels[f"p{number}"][1:3, 2, 4] = 2
        save(tmp_path / "data" / "images" / f"p{number}.nii.gz", image + number, matrix)
        name_of[order] = f"p{number}"
        own = nib.Nifti1Image(labels[f"p{number}"], matrix).as_reoriented(np.transpose(order))
        own.to_filename(tmp_path / "data" / "labels" / f"p{number}.nii.gz")
    (tmp_path / "data" / "labels.json").write_text('{"shell": 1, "core": 2}')
    (finding,) = (finding for finding in examine(tmp_path / "data").errors if finding.kind == "grid")
    details = {name: item.detail for item in finding.items for name in item.files}
    assert {*details} == {*labels} - {"p0"}
    assert all(detail.startswith("the same voxels in another order: ax") for detail in details.values())
    # The label's axes are 1, 2 and 0 of the image: axis 0 of the image became 2, 1 became 0, and 2 became 1.
    assert (
        "order: axes in the order 1, 2, 0, axes 0 and 2 flipped, or its affine"
        in details[name_of[(2, 0, 1), (-1, -1, 1)]]
    )
    dataset = open_dataset(tmp_path / "data")
    with pytest.raises(UserError, match=r"\(the same voxels in another order: axis 2 flipped\).*--repair grid"):
        read_truth(dataset, dataset.case("p1"), read_grid(dataset.case("p1").image))
    repair(str(tmp_path / "data"), tmp_path / "copy", ["grid"])
    for name, expected in labels.items():
        written = nib.load(tmp_path / "copy" / "labels" / f"{name}.nii.gz")
        np.testing.assert_array_equal(np.asarray(written.dataobj), expected, err_msg=name)

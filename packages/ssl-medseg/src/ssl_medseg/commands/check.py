"""Find all problems of a data set in one pass (`ssl-medseg check`)."""

from __future__ import annotations

import contextlib
import json as json_format
import sys
from collections.abc import Sequence
from pathlib import Path

from contrastive_core.errors import UserError
from contrastive_core.text import several
from contrastive_core.training.files import write_atomic
from contrastive_core.training.outputs import Outputs, refuse_twins
from ssl_medseg.checks import Fix, Report, examine
from ssl_medseg.datasets import DataOptions
from ssl_medseg.preprocessing import PreprocessingOptions
from ssl_medseg.training.recipe import EffortName, TrainingOptions, choose

_COMMAND = "ssl-medseg check"


def check(
    data: str,
    *,
    opening: DataOptions = DataOptions(),  # noqa: B008 - frozen
    split: Path | None = None,
    preprocessing: PreprocessingOptions = PreprocessingOptions(),  # noqa: B008
    effort: EffortName = "hour",
    out: Path | None = None,
    picture_folder: Path | None = None,
    picture_all: bool = False,
    most_pictures: int = 40,
    json: bool = False,
    propose_map: Path | None = None,
    repair: tuple[Fix, ...] = (),
    repaired: Path | None = None,
    show_headers: bool = False,
    show_paths: bool = False,
    overwrite: bool = False,
) -> int:
    """Check every image and label of a data set and print all problems. The data set is never changed.

    Errors stop training or make its result wrong: missing, unreadable or truncated files; labels without an image;
    cases without a label that are not declared as unlabelled; a label on a different grid from its image; voxels that
    are not numbers; empty images; label values that are not in the label map, or not integers; a structure that no
    label contains; several volumes in one file without a choice among them; the same image under two patients; a split
    that does not match the data set, leaks between its parts, lacks a structure, or was made from other files.

    Warnings are probably unintended: sform and qform that contradict each other; an affine without information; images
    stored in another orientation, sliced along another axis, or with another spacing or size than most; duplicates;
    labels without any structure, with an unusual amount of one, or cut off in the slices that training would use.
    Notes list values that are rounded or filled, structures that are absent or cut off at the edge of the image, and
    headers that may identify a patient.

    Cases are identified by name. File paths, and header fields other than geometry, are shown on request only. One
    volume is in memory at a time. `ssl_medseg.checks.examine` returns the same findings as an object.

    Args:
        data: Data set: its folder, its dataset.json or a CSV file.
        opening: Options for opening the data set.
        split: Split file, as written by `ssl-medseg make-splits`, to check against the data set.
        preprocessing: Preprocessing settings of the planned training; labels must fit into the resulting slices.
        effort: Effort of the planned training, which limits the size of its slices: ``minutes``, ``hour``, ``night`` or
            ``gpu``.
        out: JSON file to write, with all findings.
        picture_folder: Folder for PNG pictures of every case with findings.
        picture_all: Draw the other cases, too.
        most_pictures: Largest number of pictures.
        json: Whether to print JSON instead of text.
        propose_map: File for a label map of the values found; fill in the names and pass it as --label-map.
        repair: Repairs to apply in a copy of the data set: ``grid`` resamples labels to the grid of their image by
            nearest neighbour; ``header`` copies the header of the image to labels that have the same shape but no
            position; ``fractions`` rounds label values; ``sform`` or ``qform`` selects the transform to use where the
            two contradict each other. Requires --repaired.
        repaired: New folder for the repaired copy; its repairs.json lists the repairs made and not made in every file.
        show_headers: List text fields of headers, which may identify patients.
        show_paths: Include file paths in the JSON.
        overwrite: Whether to replace files that this command did not write.

    Returns:
        Exit status: 1 if the data set has errors, otherwise 0.

    Raises:
        UserError: The data set does not exist, an output file exists that this command did not write, or the repaired
            copy cannot be written to its folder.
    """
    if bool(repair) != (repaired is not None):
        raise UserError("--repair (what to repair) and --repaired (the folder for the copy) must be given together")
    if repaired is not None:
        from ssl_medseg.checks import repair as copies  # noqa: PLC0415 - scipy

        copies.check_copy(data, repaired, opening=opening)
    report = examine(
        data,
        opening=opening,
        split=split,
        preprocessing=preprocessing,
        largest=choose(TrainingOptions(effort=effort), device="auto").largest,
        show_headers=show_headers,
        show_paths=show_paths,
    )
    targets = [file for file in (out, propose_map) if file is not None]
    input_files = [path for one in report.facts for path in (*one.case.image.paths, one.case.label) if path is not None]
    input_files += [path for path in (split, Path(data)) if path is not None]
    refuse_twins(targets, _COMMAND)
    outputs = [Outputs([file], command=_COMMAND, inputs=input_files, overwrite=overwrite) for file in targets]
    pictures: Sequence[Path] = ()
    if picture_folder is not None:
        from ssl_medseg.checks.pictures import draw_pictures, plan_pictures  # noqa: PLC0415 - matplotlib

        pictures = list(plan_pictures(report, picture_folder, every=picture_all, most=most_pictures))
        Outputs(pictures, command=_COMMAND, inputs=input_files, folder=picture_folder, overwrite=overwrite)
    names = ""
    with contextlib.ExitStack() as stack:  # before printing, because the reader of a pipe may close it early
        for each in outputs:
            stack.enter_context(each)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(out, f"{report.to_json()}\n".encode())
        if propose_map is not None:
            names = _propose(report, propose_map)
    if picture_folder is not None:
        draw_pictures(report, picture_folder, every=picture_all, most=most_pictures, overwrite=overwrite)
    print(report.to_json() if json else report.text())  # noqa: T201 - what the command is for
    if pictures and not json:
        print(f"{several(len(pictures), 'picture')} in {picture_folder}")  # noqa: T201
    if names and not json:
        print(f"{propose_map}: replace the names of {names}, then pass the file as --label-map")  # noqa: T201
    if repaired is not None:
        print(copies.repair(data, repaired, repair, opening=opening), file=sys.stderr if json else sys.stdout)
    return 1 if report.errors else 0


def _propose(report: Report, file: Path) -> str:
    values = sorted({value for one in report.facts if one.label is not None for value in one.label.values} | {0})
    names = {str(value): "background" if value == 0 else f"structure {value}" for value in values}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, f"{json_format.dumps(names, indent=1)}\n".encode())
    return ", ".join(names[str(value)] for value in values if value) or "no structure"

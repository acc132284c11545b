"""All problems of a data set of volumes in one pass: `ssl-medseg check`."""

from __future__ import annotations

import contextlib
import json as json_format
import sys
from collections.abc import Sequence
from pathlib import Path

from contrastive_core.errors import UserError
from contrastive_core.training.files import write_atomic
from contrastive_core.training.outputs import Outputs
from ssl_medseg.checks import Fix, Report, examine
from ssl_medseg.datasets import DataOptions
from ssl_medseg.preprocessing import PreprocessingOptions

_COMMAND = "ssl-medseg check"


def check(
    data: str,
    *,
    opening: DataOptions = DataOptions(),  # noqa: B008 - frozen
    split: Path | None = None,
    preprocessing: PreprocessingOptions = PreprocessingOptions(),  # noqa: B008
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
    """Look at every image and label of a data set and print what is wrong with it. The data set is never changed.

    Errors, which training stops at or is wrong by: files that are missing, unreadable or cut off; labels that belong to
    no image; cases without a label that nobody said have none; a label on another grid than its image; voxels that are
    no numbers; images with nothing in them; label values that are not in the map, or fractions; a structure that no
    label has; several volumes in a file and no choice; the same image under two patients; a split that does not fit,
    leaks, lacks a structure, or was made of other files.

    Warnings, which are probably not meant: sform and qform that contradict each other; an affine that says nothing;
    images stored in another direction, sliced along another axis, or of another spacing or size than most; duplicates;
    labels without any structure or with unusual amounts of one, or not whole in the slices that training would make.
    Notes: what is rounded or filled, absent, cut off at the edge of the image, or could say who a patient is.

    Cases are called by their names. Where files lie, and what their headers say beside geometry, is left out unless
    asked for. One volume is in memory at a time. `ssl_medseg.checks.examine` gives the same as an object.

    Args:
        data: Data set: its folder, its dataset.json or a CSV file.
        opening: How to open the data set.
        split: Split file to check against the data set.
        preprocessing: Preprocessing settings that training will get, whose slices are to show the labels whole.
        out: JSON file for all findings.
        picture_folder: Folder for a picture of every case with findings, as PNG.
        picture_all: Draw the other cases as well.
        most_pictures: Largest number of pictures.
        json: Print JSON instead of text.
        propose_map: File for a label map of the values found, to be completed with names and given as --label-map.
        repair: Repairs to make in a copy of the data set: ``grid`` resamples labels onto the grid of their image by
            nearest neighbour; ``header`` gives labels of their image's shape that state no position the image's header;
            ``fractions`` rounds label values; ``sform`` or ``qform`` names the one to place an image by where the two
            contradict each other. Needs --repaired.
        repaired: New folder for the repaired copy, whose repairs.json lists what was done to every file and what was
            not.
        show_headers: List text in headers, which may identify patients.
        show_paths: Include the paths of files in JSON.
        overwrite: Replace files that this command did not write.

    Returns:
        1 if there are errors in the data as they are, else 0: the exit status.

    Raises:
        UserError: There is no such data set, a file exists that this command did not write, or no copy can be repaired
            there.
    """
    if bool(repair) != (repaired is not None):
        raise UserError("expected --repair, what to repair, and --repaired, a folder for the copy, together")
    if repaired is not None:
        from ssl_medseg.checks import repair as copies  # noqa: PLC0415 - scipy

        copies.check_copy(data, repaired, opening=opening)
    report = examine(
        data,
        opening=opening,
        split=split,
        preprocessing=preprocessing,
        show_headers=show_headers,
        show_paths=show_paths,
    )
    targets = [file for file in (out, propose_map) if file is not None]
    read = [path for one in report.facts for path in (*one.case.image.paths, one.case.label) if path is not None]
    read += [path for path in (split, Path(data)) if path is not None]
    planned = [Outputs([file], command=_COMMAND, inputs=read, overwrite=overwrite) for file in targets]
    drawn: Sequence[Path] = ()
    if picture_folder is not None:
        from ssl_medseg.checks.pictures import draw_pictures, plan_pictures  # noqa: PLC0415 - matplotlib

        drawn = list(plan_pictures(report, picture_folder, every=picture_all, most=most_pictures))
        Outputs(drawn, command=_COMMAND, inputs=read, folder=picture_folder, overwrite=overwrite)
    proposed = ""
    with contextlib.ExitStack() as opened:  # first: who reads what is printed may leave in the middle
        for each in planned:
            opened.enter_context(each)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(out, f"{report.to_json()}\n".encode())
        if propose_map is not None:
            proposed = _propose(report, propose_map)
    if picture_folder is not None:
        draw_pictures(report, picture_folder, every=picture_all, most=most_pictures, overwrite=overwrite)
    print(report.to_json() if json else report.text())  # noqa: T201 - what the command is for
    if drawn and not json:
        print(f"{len(drawn)} pictures in {picture_folder}")  # noqa: T201
    if proposed and not json:
        print(f"{propose_map}: put names in for {proposed}, then give it as --label-map")  # noqa: T201
    if repaired is not None:
        print(copies.repair(data, repaired, repair, opening=opening), file=sys.stderr if json else sys.stdout)
    return 1 if report.errors else 0


def _propose(report: Report, file: Path) -> str:
    values = sorted({value for one in report.facts if one.label is not None for value in one.label.values} | {0})
    names = {str(value): "background" if value == 0 else f"structure {value}" for value in values}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, f"{json_format.dumps(names, indent=1)}\n".encode())
    return ", ".join(names[str(value)] for value in values if value) or "no structure at all"

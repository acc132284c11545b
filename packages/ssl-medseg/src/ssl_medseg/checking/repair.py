"""A copy of a data set in which what the caller names is repaired, with a log; the data set itself stays as it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from contrastive_core.app.checks import several
from contrastive_core.errors import UserError
from contrastive_core.training.files import replace_folder, write_atomic
from ssl_medseg.checking.options import Fix
from ssl_medseg.checking.repair_label import repair_label
from ssl_medseg.data import Case, DataOptions, ImageFile, LabelMap
from ssl_medseg.data.files import without_path
from ssl_medseg.data.open import look, meaning
from ssl_medseg.volumes.nifti import take_form

LOG = "repairs.json"


@dataclass(frozen=True)
class Change:
    """What became of a file.

    Attributes:
        case: its name.
        file: ``image`` or ``label``.
        fix: what was asked for; empty where something failed.
        done: what was done, in words; empty if nothing was.
        left: why nothing was done.
    """

    case: str
    file: str
    fix: str
    done: str = ""
    left: str = ""

    def __str__(self) -> str:
        """As a line."""
        return f"{self.case}: {self.file} {self.done or f'left as it is: {self.left}'}"


@dataclass(frozen=True)
class Repaired:
    """The copy.

    Attributes:
        out: its folder.
        changes: every file something was done to, or could not be.
    """

    out: Path
    changes: Sequence[Change]

    def __str__(self) -> str:
        """Every change, and what to do next."""
        done = sum(bool(change.done) for change in self.changes)
        lines = [f"  {change}" for change in self.changes]
        return "\n".join(
            [
                f"REPAIRED in the copy {self.out} ({several(done, 'change')}, {len(lines) - done} left; see {LOG}):",
                *lines,
                "look at them: ssl-medseg check on the copy, with --pictures FOLDER --picture_all true",
            ]
        )


def repair(data: str, out: Path, fixes: Sequence[Fix], *, opening: DataOptions | None = None) -> Repaired:
    """Copy a data set and repair the copy.

    Args:
        data: the data set, all of whose files lie in its folder.
        out: folder of the copy, which is complete or not there.
        fixes: what to do, in this order whatever theirs: ``sform`` or ``qform``: where the two contradict each other,
            the other one is set to this; ``fractions``: label values that are no whole numbers become the nearest one;
            ``grid``: a label on another grid than its image is resampled onto it by nearest neighbour.
        opening: how to open the data set.

    Raises:
        UserError: fixes that exclude each other, a folder that holds something, files outside the data set's folder.
    """
    if not fixes or {"sform", "qform"} <= set(fixes):
        raise UserError(f"repair got {', '.join(fixes)}; expected grid, fractions, and one of sform, qform")
    listing, settled = look(data, opening or DataOptions())
    labels = meaning(listing, opening or DataOptions())
    root, out = listing.root.resolve(), out.expanduser().resolve()
    is_taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if is_taken or out.is_relative_to(root) or root.is_relative_to(out):
        raise UserError(f"{out}: expected a folder for the repaired copy that is new, and not inside the data set")
    for case in settled.cases:
        for path in (case.image.path, case.label):
            if path is not None and not path.resolve().is_relative_to(root):
                raise UserError(f"{path}: lies outside {root}, and would not be in a copy of it; move it there")
    new = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(new, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copytree(root, new)
        changes = [
            replace(change, left=change.left.replace(f"{new}/", ""))
            for case in settled.cases
            for change in _of_case(_moved(case, root, new), labels, fixes)
        ]
        log = {"format": "ssl-medseg repairs 1", "fixes": list(fixes), "changes": list(map(asdict, changes))}
        write_atomic(new / LOG, (json.dumps(log, indent=1) + "\n").encode())
        replace_folder(new, out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return Repaired(out, changes)


def _moved(case: Case, root: Path, new: Path) -> Case:
    image = ImageFile(new / case.image.path.resolve().relative_to(root), case.image.channel, case.image.frame)
    return replace(case, image=image, label=case.label and new / case.label.resolve().relative_to(root))


def _of_case(case: Case, labels: LabelMap | None, fixes: Sequence[Fix]) -> list[Change]:
    changes = []
    for form in fixes:
        for file, path in (("image", case.image.path), ("label", case.label)):
            if form in ("sform", "qform") and path is not None and path.name.lower().endswith((".nii", ".nii.gz")):
                try:
                    done = take_form(path, form)
                    changes += [Change(case.name, file, form, done)] if done else []
                except UserError as error:
                    changes.append(Change(case.name, file, form, left=without_path(error, path)))
    if case.label is not None and not {"fractions", "grid"}.isdisjoint(fixes):
        try:
            found = repair_label(case.image, case.label, labels, fractions="fractions" in fixes, grid="grid" in fixes)
            changes += [Change(case.name, "label", fix, words) for fix, words in found.items()]
        except UserError as error:
            changes.append(Change(case.name, "label", "", left=without_path(error, case.label)))
    return changes

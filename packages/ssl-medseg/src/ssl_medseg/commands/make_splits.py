"""Divide patients into labelled, unlabelled, validation and test parts (`ssl-medseg make-splits`)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from contrastive_core.errors import UserError
from contrastive_core.text import some_of
from contrastive_core.training.outputs import write_once
from ssl_medseg.datasets import Case, DataOptions, DataSet, Split, open_with
from ssl_medseg.datasets.draw_splits import Combination, Draws, Pool, absent, combine, draw
from ssl_medseg.datasets.splits import Fingerprint, fingerprint, split_content
from ssl_medseg.io import read_grid
from ssl_medseg.io.tables import read_table
from ssl_medseg.preprocessing.prepare import display_axis


@dataclass(frozen=True)
class SplitsWritten:
    """Result of `make-splits`; `str` returns the text that the command prints.

    Attributes:
        files: File -> split.
        counts: File -> part -> numbers of patients, volumes and slices.
        remarks: Remarks about what was left out, and why.
    """

    files: Mapping[Path, Split]
    counts: Mapping[Path, Mapping[str, tuple[int, int, int]]]
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = list(next(iter(self.counts.values()), {}))
        rows = [["patients / volumes / slices", *parts]]
        rows += [
            [file.name, *(" / ".join(map(str, counts[part])) for part in parts)] for file, counts in self.counts.items()
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, *(f"({remark})" for remark in self.remarks)])


def make_splits(
    data: str,
    out: Path,
    *,
    opening: DataOptions = DataOptions(),  # noqa: B008 - frozen
    n_labelled: tuple[int, ...] | None = None,
    draws: int = 5,
    n_validation: int = 2,
    n_test: int = 0,
    table: Path | None = None,
    table_test: tuple[str, ...] = ("test",),
    only: str | None = None,
    combinations: dict[str, Combination] | None = None,
    test_patients: tuple[str, ...] = (),
    unlabelled_patients: tuple[str, ...] = (),
    missing: Literal["error", "leave_out"] = "error",
    hashes: bool = True,
    seed: int = 0,
    overwrite: bool = False,
) -> SplitsWritten:
    """Choose the patients whose labels training may use, and write split files.

    A file such as ``2-labelled-draw1.json`` assigns every case to one part (labelled, validation, test or unlabelled)
    and contains a hash of the assignment. All volumes of a patient are in the same part. The draws are a function of
    the seed and the patient names. Cases that the data set itself lists as test cases are assigned to the test part.

    Label files are only hashed; those of unlabelled cases are not opened at all.

    Args:
        data: Data set: a folder in one of the layouts listed by `check`, or a CSV file.
        out: Folder for the split files. Existing files must have the same content.
        opening: Options for opening the data set.
        n_labelled: Numbers of labelled patients; by default 1, 2 and 8, as far as the data allow.
        draws: Number of random draws for each number of labelled patients.
        n_validation: Number of validation patients, the same for all draws.
        n_test: Number of test patients to draw.
        table: CSV file that lists test patients, with the column split and a column case or patient.
        table_test: Values of the column split that mark test patients.
        only: Regular expression; only cases whose names match it are used.
        combinations: Named patients instead of draws: ``NAME: {labelled: [...], validation: [...]}``.
        test_patients: Names of the test patients.
        unlabelled_patients: Names of the patients that may be unlabelled; by default all.
        missing: Handling of named patients that are not in the data set: error, or leave_out, which also leaves out
            combinations that lack a labelled or validation patient.
        hashes: Write hashes of the image files, and of the label files of all parts except the unlabelled one.
        seed: Seed of all random draws.
        overwrite: Whether to replace files that this command did not write. Split files with other content are among
            them.

    Returns:
        The files and the numbers of patients, volumes and slices in them.

    Raises:
        UserError: The data set cannot be opened, patients are missing or too few, or a file exists with other content.
    """
    dataset = open_with(data, opening)
    pool = Pool.of(dataset, _matching_cases(dataset, only))
    held_out = [*test_patients, *_in_table(table, table_test, pool), *_listed_as_test(pool)]
    combination_patients = [p for c in (combinations or {}).values() for p in (*c.labelled, *c.validation)]
    missing_patients = absent(pool, [*held_out, *unlabelled_patients, *combination_patients])
    if missing_patients and missing == "error":
        raise UserError(
            f"{dataset.name} has no cases of {some_of(missing_patients)}; its patients are {some_of(pool.cases)}. "
            "Correct the names, or leave them out with --missing leave_out"
        )
    remarks = [f"left out {some_of(missing_patients)}, which are not in {dataset.name}"] if missing_patients else []
    held_out = list(dict.fromkeys(patient for patient in held_out if patient not in missing_patients))
    complete = {
        k: c for k, c in (combinations or {}).items() if not {*c.labelled, *c.validation} & set(missing_patients)
    }
    unlabelled = tuple(patient for patient in unlabelled_patients if patient not in missing_patients)
    if combinations:
        incomplete = [name for name in combinations if name not in complete]
        remarks += [f"left out the combinations {some_of(incomplete)}, which need them"] if incomplete else []
        splits = combine(pool, complete, test=held_out, unlabelled=unlabelled)
    else:
        how = Draws(n_labelled, draws, n_validation, n_test, tuple(held_out), unlabelled, seed)
        splits = draw(pool, how)
    if not splits:
        raise UserError(f"{dataset.name}: every combination needs a missing patient ({some_of(missing_patients)})")
    remarks += dataset.notes
    if not any(split.test for split in splits.values()):
        remarks.append("no test cases: there are no cases left for an unbiased evaluation")
    named_files = {Path(out) / f"{name}.json": split for name, split in splits.items()}
    contents, counts = _contents(dataset, named_files, hashes=hashes)
    input_files = [path for case in dataset.cases for path in (*case.image.paths, case.label) if path is not None]
    input_files += [path for path in (table, Path(data)) if path is not None]
    write_once(contents, command="ssl-medseg make-splits", inputs=input_files, overwrite=overwrite)
    return SplitsWritten(named_files, counts, tuple(remarks))


def _matching_cases(dataset: DataSet, only: str | None) -> list[Case]:
    try:
        cases = [case for case in dataset.cases if only is None or re.search(only, case.name)]
    except re.error as error:
        raise UserError(f"--only {only!r} is not a valid regular expression: {error}") from error
    if not cases:
        raise UserError(f"{dataset.name}: no case name, such as {dataset.names[0]}, matches --only {only!r}")
    return cases


def _in_table(table: Path | None, values: Iterable[str], pool: Pool) -> list[str]:
    if table is None:
        return []
    rows = read_table(table, needed=("split",))
    column = next((name for name in ("patient", "case") if rows and name in rows[0]), None)
    if column is None:
        raise UserError(f"{table}: expected a column patient or case in addition to split")
    names = {row[column] for row in rows if row["split"] in tuple(values)}
    if not names:
        splits = ", ".join(sorted({row["split"] for row in rows}))
        raise UserError(
            f"{table}: no row has the split {', '.join(values)}; found {splits}. Name the test values with --table-test"
        )
    if column == "patient":
        return sorted(names)
    patient_of = {case.name: patient for patient, cases in pool.cases.items() for case in cases}
    return sorted({patient_of.get(name, name) for name in names})


def _listed_as_test(pool: Pool) -> list[str]:
    return [patient for patient, cases in pool.cases.items() if any(case.listed == "test" for case in cases)]


def _contents(
    dataset: DataSet, splits: Mapping[Path, Split], *, hashes: bool
) -> tuple[dict[Path, bytes], dict[Path, dict[str, tuple[int, int, int]]]]:
    """Return the content of every file, and the numbers of patients, volumes and slices of each part."""
    contents: dict[Path, bytes] = {}
    slices: dict[str, int] = {}
    prints: dict[tuple[str, bool], Fingerprint] = {}
    counts: dict[Path, dict[str, tuple[int, int, int]]] = {}
    for file, split in splits.items():
        files = {}
        counts[file] = {}
        for part, names in split.parts.items():
            cases = dataset.select(names)
            for case in cases:
                if case.name not in slices:
                    grid = read_grid(case.image)
                    slices[case.name] = grid.shape[display_axis(grid)]
                key = (case.name, part != "unlabelled")
                if hashes and key not in prints:
                    prints[key] = fingerprint(case, label=part != "unlabelled")
                files[case.name] = prints.get(key, {})
            patients = len({case.patient for case in cases})
            counts[file][part] = (patients, len(cases), sum(slices[name] for name in names))
        contents[file] = split_content(split, dataset, files if hashes else None)
    return contents, counts

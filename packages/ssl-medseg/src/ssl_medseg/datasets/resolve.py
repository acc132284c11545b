"""Resolve listed files to cases: assign patients, and find missing labels and contradictions."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from contrastive_core.app.checks import Finding, Item
from contrastive_core.errors import UserError
from contrastive_core.text import several, some_of
from contrastive_core.training.documents import read_text
from contrastive_core.training.names import check_file_name, check_label
from ssl_medseg.datasets.dataset import Case
from ssl_medseg.datasets.layouts.channel_files import continuations
from ssl_medseg.datasets.layouts.folders import image_name
from ssl_medseg.datasets.layouts.listing import Entry, Listing
from ssl_medseg.datasets.options import DataOptions
from ssl_medseg.datasets.phases import phase_of
from ssl_medseg.io.file_types import stem
from ssl_medseg.io.tables import read_table

RULE = (
    "a name that starts with sub-XX (BIDS) belongs to that subject; otherwise the patient is the name without "
    "endings such as _frame01, _ED, _ES, _time2, _ses-1, _visit2, _run1, _scan1"
)
_SUBJECT = re.compile(r"(sub-[A-Za-z0-9]+)(?=_|$)")
_ENDING = re.compile(
    r"[_\-.](?:(?:frame|time|timepoint|tp|phase|ses|session|visit|run|scan|acq|rep|t)[_\-]?\d+|ed|es|4d)$",
    re.IGNORECASE,
)


class PatientRule:
    """Determine the patient of a case from its name.

    Args:
        pattern: Regular expression that is searched in the case name; its first group, or the whole match, is the
            patient.
        table: CSV or TSV file with the columns ``case`` and ``patient``.

    Raises:
        UserError: The pattern is not a valid regular expression, or the file or its columns do not exist.
    """

    def __init__(self, *, pattern: str | None = None, table: Path | None = None) -> None:
        try:
            self._pattern = None if pattern is None else re.compile(pattern)
        except re.error as error:
            raise UserError(f"--patient-pattern {pattern!r} is not a valid regular expression: {error}") from error
        self._table: Mapping[str, str] | None = None
        if table is not None:
            rows = {(row["case"], row["patient"]) for row in read_table(table, needed=("case", "patient"))}
            counts = Counter(case for case, _ in rows)
            if duplicates := sorted(case for case, count in counts.items() if count > 1):
                raise UserError(
                    f"{table}: lists several patients for {some_of(duplicates)}; expected one for each case"
                )
            self._table, self._file = dict(rows), table.name

    def __call__(self, name: str) -> str:
        """Return the patient of a case.

        Raises:
            UserError: The pattern does not match the name, or the table does not list it.
        """
        if self._table is not None:
            if not self._table.get(name):
                raise UserError(f"{self._file} lists no patient for the case {name}; add a row")
            return self._table[name]
        if self._pattern is not None:
            match = self._pattern.search(name)
            if match is None:
                raise UserError(f"--patient-pattern {self._pattern.pattern!r} does not match the case {name}")
            return match[1] if self._pattern.groups else match[0]
        return patient_of(name)


def patient_of(name: str) -> str:
    """Return the patient of a case by the default rule, `RULE`.

    >>> [patient_of(name) for name in ("patient002_frame01", "sub-07_ses-1_T2w", "Case00", "P3_ED", "prostate_00")]
    ['patient002', 'sub-07', 'Case00', 'P3', 'prostate_00']
    """
    subject = _SUBJECT.match(name)
    if subject is not None:
        return subject[1]
    shorter = _ENDING.sub("", name)
    while shorter != name:
        name, shorter = shorter, _ENDING.sub("", shorter)
    return name


_CONSENT = (
    "add the labels, or declare these cases as unlabelled: list their names in a file for --unlabelled, or pass "
    "--allow-unlabelled"
)


@dataclass(frozen=True)
class Resolved:
    """The readable cases of a data set, and the problems of its files."""

    cases: Sequence[Case]
    findings: Sequence[Finding]


def resolve(listing: Listing, options: DataOptions) -> Resolved:
    """Resolve a listing to cases and findings; `open_dataset` rejects data sets with errors.

    Raises:
        UserError: The rule for patients or the list of unlabelled cases cannot be used.
    """
    patient = PatientRule(pattern=options.patient_pattern, table=options.patients)
    overridden = options.patient_pattern is not None or options.patients is not None
    cases: list[Case] = []
    for entry in listing.entries:
        own_patient = None if overridden else entry.patient
        if _wrong_name(entry, own_patient):
            continue
        label = entry.label if entry.label is not None and entry.label.exists() else None
        if not entry.lacks and all(path.exists() for path in entry.image.paths):
            phase = entry.phase or phase_of(entry.name, entry.image)
            cases.append(Case(entry.name, own_patient or patient(entry.name), entry.image, label, entry.listed, phase))
    spellings = _spellings(cases)
    canonical = {} if overridden else {name: names[0] for names in spellings for name in names}
    cases = [replace(case, patient=canonical.get(case.patient, case.patient)) for case in cases]
    with_patient = {entry.name for entry in listing.entries if entry.patient}
    folded = (
        [] if overridden else [*_folded(cases, with_patient), *_repeated(cases, with_patient), *_partly_stated(listing)]
    )
    return Resolved(cases, [*_findings(listing, options), *folded, *_spelled(spellings, joined=not overridden)])


def _findings(listing: Listing, options: DataOptions) -> Iterator[Finding]:
    yield from listing.findings
    yield from _wrong_names(listing, options)
    yield from _missing_files(listing)
    yield from _without_label(listing, options)
    yield from _left_over(listing)
    yield from _twice(listing)
    yield from _crossed(listing)
    yield from _not_used(listing)
    yield from _without_channel(listing)
    if not listing.entries:
        yield Finding("error", "no_images", "no images are listed or found")


def _wrong_name(entry: Entry, patient: str | None) -> str:
    """Explain why the name of a case or patient is invalid; empty if both are valid."""
    try:
        check_file_name(entry.name, what="case", source="name")
        if patient is not None:
            check_label(patient, what="patient", source=entry.name)
    except UserError as error:
        return str(error)
    return ""


def _wrong_names(listing: Listing, options: DataOptions) -> Iterator[Finding]:
    overridden = options.patient_pattern is not None or options.patients is not None
    reasons = {entry: _wrong_name(entry, None if overridden else entry.patient) for entry in listing.entries}
    items = [Item([repr(entry.name)], reason) for entry, reason in reasons.items() if reason]
    if items:
        title = (
            f"{several(len(items), 'name')} that cannot be used as file names: rename the cases where they are listed"
        )
        yield Finding("error", "names", title, items)


def _missing_files(listing: Listing) -> Iterator[Finding]:
    missing = [path for entry in listing.entries for path in entry.image.paths if not path.exists()]
    if missing:
        title = f"{several(len(missing), 'image file')} listed but missing: correct the list or add the files"
        yield Finding("error", "missing_image", title, [Item([_relative(p, listing)], _like(p)) for p in missing])


def _without_channel(listing: Listing) -> Iterator[Finding]:
    short = [Item([entry.name], f"lacks {'; '.join(entry.lacks)}") for entry in listing.entries if entry.lacks]
    if short:
        names = ", ".join(listing.channels)
        title = (
            f"{several(len(short), 'case')} without a channel that others have ({names}): add it, leave the case out, "
            "or select channels that all cases have with --channels"
        )
        yield Finding("error", "missing_channel", title, short)


def _without_label(listing: Listing, options: DataOptions) -> Iterator[Finding]:
    names = _read_names(options.unlabelled) if options.unlabelled is not None else set()
    entries = [entry for entry in listing.entries if entry.label is None or not entry.label.exists()]
    bare = {entry.name for entry in entries}
    stray = sorted(names - {entry.name for entry in listing.entries})
    if stray:
        yield Finding("error", "unknown_case", "the list --unlabelled names cases that do not exist", [Item(stray)])
    has_one = sorted(names.difference(stray) - bare)
    if has_one:
        title = "the list --unlabelled names cases that have a label: the split decides whether a label is used"
        yield Finding("error", "has_label", title, [Item(has_one)])
    undeclared = [] if options.allow_unlabelled else [entry for entry in entries if entry.name not in names]
    missing = [entry.label for entry in undeclared if entry.label is not None]
    if missing:
        title = f"{several(len(missing), 'label file')} listed but missing: {_CONSENT}"
        yield Finding("error", "missing_label", title, [Item([_relative(p, listing)], _like(p)) for p in missing])
    none = [entry.name for entry in undeclared if entry.label is None and not entry.is_unlabelled]
    if none:
        title = f"{several(len(none), 'case')} without a label: {_CONSENT}"
        yield Finding("error", "no_label", title, [Item(none)])
    if bare and not missing and not none:
        title = f"{len(bare)} of {several(len(listing.entries), 'case')} declared as unlabelled"
        yield Finding("note", "unlabelled", title, [Item(sorted(bare))])


def _left_over(listing: Listing) -> Iterator[Finding]:
    if listing.labels_without_image:
        bare = [entry.name for entry in listing.entries if entry.label is None or not entry.label.exists()]
        items = [
            Item([_relative(path, listing)], _image_of(path, bare, listing)) for path in listing.labels_without_image
        ]
        title = f"{several(len(items), 'label file')} without an image: rename, list or remove them"
        yield Finding("error", "label_without_image", title, items)
    if listing.unlisted:
        files = [_relative(path, listing) for path in listing.unlisted]
        title = f"{several(len(files), 'image')} left out, because no list names them"
        yield Finding("warning", "unlisted", title, [Item(files)])


def _image_of(label: Path, bare: Sequence[str], listing: Listing) -> str:
    """Suggest the image, or the files of its channels, to which a label probably belongs; empty if there are none."""
    in_folders = [f"{path.parent.name}/{stem(path)}" for path, _ in listing.unused if path.parent != label.parent]
    name = image_name(label)
    channels = continuations(name, [*bare, *in_folders])
    if len(channels) > 1:
        return f"if {' and '.join(channels)} are the channels of its image: --channels {','.join(channels.values())}"
    match = list(channels) or difflib.get_close_matches(name, bare, n=1, cutoff=0.7)
    return f"does it belong to {match[0]}?" if match else ""


def _not_used(listing: Listing) -> Iterator[Finding]:
    """Report files next to the images that are not read, by reason and folder."""
    if not listing.unused:
        return
    groups: dict[tuple[str, str], list[str]] = {}
    for path, reason in listing.unused:
        folder, _, name = _relative(path, listing).rpartition("/")
        groups.setdefault((reason, folder), []).append(name)
    items = [
        Item([f"{folder}/{name}" if folder else name for name in names], why) for (why, folder), names in groups.items()
    ]
    verb = "is" if len(listing.unused) == 1 else "are"
    title = f"{several(len(listing.unused), 'file')} next to the images {verb} not used"
    yield Finding("warning", "not_used", title, items)


def _folded(cases: Sequence[Case], with_patient: set[str]) -> Iterator[Finding]:
    """Report cases that the default rule assigns to the same patient."""
    patients: dict[str, list[str]] = {}
    for case in cases:
        if case.name not in with_patient:
            patients.setdefault(case.patient, []).append(case.name)
    groups = {patient: names for patient, names in patients.items() if len(names) > 1}
    if len(patients) == 1 and groups:
        ((patient, names),) = groups.items()
        title = (
            f"all {len(names)} cases are assigned to one patient ({patient}) because of their names: if that is wrong, "
            "use --patient-pattern or --patients"
        )
        yield Finding("warning", "one_patient", title, [Item(names)])
    elif groups:
        number = sum(map(len, groups.values()))
        title = (
            f"{several(number, 'case')} assigned to {several(len(groups), 'patient')} by their names; "
            "--patient-pattern or --patients overrides this"
        )
        yield Finding("note", "folded", title, [Item(names, f"patient {patient}") for patient, names in groups.items()])


def _spellings(cases: Sequence[Case]) -> list[list[str]]:
    """Return the names of patients that differ in case, leading zeros or separators only, grouped and sorted."""
    spellings: dict[tuple[str, ...], set[str]] = {}
    for case in cases:
        name = unicodedata.normalize("NFKC", case.patient).casefold()
        parts = tuple(part.lstrip("0") for part in _WORD.findall(name))
        spellings.setdefault(parts, set()).add(case.patient)
    return [sorted(names) for names in spellings.values() if len(names) > 1]


def _spelled(spellings: Sequence[Sequence[str]], *, joined: bool) -> Iterator[Finding]:
    """Report patients with several spellings, which count as one: apart, they could be in training and test."""
    if spellings:
        counted = (
            "each group counts as one patient. If they are different patients, state this with --patients"
            if joined
            else "they count as different patients, and may be in training and test. If they are the same, correct "
            "--patients or --patient-pattern"
        )
        title = (
            f"{several(len(spellings), 'group')} of patients whose names differ only in case, leading zeros or "
            f"separators: {counted}"
        )
        yield Finding("warning", "patient_spelling", title, [Item(list(names)) for names in spellings])


_WORD = re.compile(r"[^\W\d_]+|\d+")
_DATE = re.compile(r"(?<!\d)(?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])(?!\d)")
_VISIT = re.compile(
    r"[_\-. ]+(?:pre|post|baseline|bl|follow[_\-]?up|fu|(?:v|fu|day|week|month|year)[_\-]?\d+)$|(?<=\d)[a-d]$", re.I
)


def _repeated(cases: Sequence[Case], with_patient: set[str]) -> Iterator[Finding]:
    """Report cases of different patients whose names differ only in what usually states a visit, such as a date."""
    visits: dict[str, list[Case]] = {}
    own = [case for case in cases if case.name not in with_patient]
    for case in own:
        name = _VISIT.sub("", _DATE.sub("", case.name).rstrip("_-. "))
        visits.setdefault(name.strip("_-. "), []).append(case)
    # Names that consist of a date, or of one word for all cases and a date, do not state the patient.
    groups = [group for name, group in visits.items() if name and len({case.patient for case in group}) > 1]
    items = [Item([case.name for case in group]) for group in groups if len(group) < len(own)]
    if items:
        title = (
            f"{several(len(items), 'group')} of cases whose names differ only in a date, a letter or a word such as "
            "pre and post: they count as different patients, and may be in training and test. If they are repeated "
            "scans, state the patients with --patient-pattern or --patients"
        )
        yield Finding("warning", "repeated_scans", title, items)


def _partly_stated(listing: Listing) -> Iterator[Finding]:
    """Report empty cells in the column of patients, such as those that merged cells leave."""
    bare = [entry.name for entry in listing.entries if not entry.patient]
    if bare and len(bare) < len(listing.entries):
        title = (
            f"{several(len(bare), 'case')} without a stated patient, in contrast to the others: derived from the names "
            "of the cases. State the patient of every case"
        )
        yield Finding("warning", "patient_partly", title, [Item(bare)])


def _crossed(listing: Listing) -> Iterator[Finding]:
    """Report labels with the name, or in the folder, of the image of another case, as after sorting one column."""
    labelled = [entry for entry in listing.entries if entry.label is not None]
    names: tuple[Callable[[Path], str], ...] = (image_name, lambda path: path.parent.name)
    for name_of in names:
        owners = {name_of(entry.image.path): entry for entry in listing.entries}
        if len(owners) < len(listing.entries):
            continue  # names that several images share do not identify a case
        items = [
            Item([entry.name], f"has the label {_relative(entry.label, listing)}")
            for entry in labelled
            if entry.label is not None and owners.get(name_of(entry.label), entry) is not entry
        ]
        if items:
            title = (
                f"{several(len(items), 'label')} named like the image of another case: check whether rows are mixed up"
            )
            yield Finding("warning", "crossed_labels", title, items)
            return


def _twice(listing: Listing) -> Iterator[Finding]:
    entries = listing.entries
    names = [name for name, count in Counter(entry.name for entry in entries).items() if count > 1]
    if names:
        title = f"{several(len(names), 'name')} given to more than one case: every case needs a unique name" + (
            " (column case)" if listing.layout == "csv" else ""
        )
        items = []
        for name in names:
            lists: dict[str, list[str]] = {}
            for entry in entries:
                if entry.name == name:
                    lists.setdefault(_relative(entry.image.path, listing), []).append(entry.listed)
            places = [
                path if len(parts) == 1 else f"{path} listed {len(parts)} times ({', '.join(dict.fromkeys(parts))})"
                for path, parts in lists.items()
            ]
            items.append(Item([name], ", ".join(places)))
        yield Finding("error", "same_name", title, items)
    own = [entry for entry in entries if entry.name not in names]
    images = [(c.path, c.channel, c.frame, c.series) for entry in own for c in entry.image.channels]
    labels = [(entry.label, None, None, None) for entry in own if entry.label is not None]
    for what, paths in (("image", images), ("label", labels)):
        repeats = [str(path.name) for (path, *_), count in Counter(paths).items() if path is not None and count > 1]
        if repeats:
            title = f"{several(len(repeats), f'{what} file')} used by more than one case"
            yield Finding("error", f"same_{what}", title, [Item(repeats)])


def _read_names(file: Path) -> set[str]:
    return {unicodedata.normalize("NFC", line.strip()) for line in read_text(file).splitlines()} - {""}


def _like(path: Path) -> str:
    """Suggest an existing file with a similar name, or say that the file is a link that leads nowhere."""
    if path.is_symlink():
        return "a link to a file that does not exist"
    if not path.parent.is_dir():
        return "its folder is missing, too"
    others = {stem(other): other.name for other in path.parent.iterdir() if other.exists()}
    match = difflib.get_close_matches(stem(path), others, n=1, cutoff=0.7)
    return f"there is {others[match[0]]}" if match else ""


def _relative(path: Path, listing: Listing) -> str:
    return path.relative_to(listing.root).as_posix() if path.is_relative_to(listing.root) else path.name

"""Train a segmenter from labelled and unlabelled volumes in one command (`ssl-medseg run`)."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from contrastive_core.errors import UserError
from contrastive_core.text import several, some_of
from contrastive_core.training import RunOptions, config, files
from contrastive_core.training.config import DeviceName
from contrastive_core.training.documents import read_object, reading
from contrastive_core.training.launch import make_fabric
from contrastive_core.training.outputs import claim_folder
from contrastive_core.training.processes import Processes
from contrastive_core.training.run import stages_of
from ssl_medseg.datasets import DataOptions, open_split, open_with, read_split, write_split
from ssl_medseg.datasets.draw_splits import split_by_labels
from ssl_medseg.datasets.splits import Split
from ssl_medseg.evaluation.results import read_evaluation
from ssl_medseg.evaluation.summary import Summary, dice_where_present, never_found, summarise
from ssl_medseg.evaluation.text import failures, number
from ssl_medseg.models import NetworkOptions
from ssl_medseg.prediction import InferenceOptions
from ssl_medseg.preprocessing import PreprocessingOptions
from ssl_medseg.reports.evaluation import Evaluated, evaluate
from ssl_medseg.reports.used_cases import Part
from ssl_medseg.selftraining.options import SelfTrainingOptions
from ssl_medseg.selftraining.training import selftrain
from ssl_medseg.training.data import PLACES, open_training_data
from ssl_medseg.training.recipe import OptimizerOptions, TrainingOptions, choose
from ssl_medseg.training.slices import AugmentOptions
from ssl_medseg.training.supervised import train


def run(
    data: str,
    out: Path,
    *,
    split: Path | None = None,
    labelled: tuple[str, ...] = (),
    validation: tuple[str, ...] = (),
    baseline_steps: int | None = None,
    baseline_floor: float = 0.1,
    selftraining: SelfTrainingOptions = SelfTrainingOptions(),  # noqa: B008 - frozen
    training: TrainingOptions = TrainingOptions(),  # noqa: B008
    optimizer: OptimizerOptions = OptimizerOptions(),  # noqa: B008
    network: NetworkOptions = NetworkOptions(),  # noqa: B008
    augment: AugmentOptions = AugmentOptions(),  # noqa: B008
    preprocessing: PreprocessingOptions = PreprocessingOptions(),  # noqa: B008
    opening: DataOptions = DataOptions(),  # noqa: B008
    cache: Path | None = None,
    run: RunOptions = RunOptions(precision="auto"),  # noqa: B008
) -> Path:
    """Train a segmenter on a data set in which only a few volumes are labelled.

    The command runs `train` and `selftrain` in sequence. It derives the preprocessing from the data and explains its
    choices, trains the baseline on the labelled volumes (``OUT/baseline``), and continues with the unlabelled ones for
    as many steps again (``OUT/selftrain``). The final segmenter is in ``OUT/model``, where `predict` and `evaluate`
    find it; `report OUT` reports on all stages. All volumes are prepared before the baseline is trained, so that an
    unusable one stops the run at its start. ``--resume`` continues an interrupted run in its current stage. If started
    by torchrun, the processes share the work of every stage.

    Without a split, the labelled patients are those whose volumes all have labels, or those named. If there are four or
    more, a quarter of them is used for validation. The split is written to ``OUT/split.json``. Labels of unlabelled
    volumes are never opened.

    Args:
        data: Data set: a folder in one of the layouts listed by `check`, or a CSV file.
        out: Folder of the run: configuration, split, both stages, model.
        split: Split file, as written by `ssl-medseg make-splits`.
        labelled: Labelled patients, if no split is given.
        validation: Validation patients, if no split is given.
        baseline_steps: Training steps on the labelled volumes only; by default set by the effort.
        baseline_floor: Smallest Dice of the baseline on the validation cases, or on the labelled cases if there are
            none for validation. The run stops before self-training if the Dice is lower or a structure is never found;
            0 disables the check.
        selftraining: Options of self-training.
        training: Length of both stages, batches, loss, and the weights to keep; ``steps`` applies to self-training.
        optimizer: Optimiser, learning rate, and averaging of the weights.
        network: Network; `auto` and 0 leave the choice to recipe and effort.
        augment: Augmentation of the labelled slices.
        preprocessing: Preprocessing settings; unset ones are derived from the data.
        opening: Options for opening the data set.
        cache: Folder for preprocessed volumes; by default ``OUT/cache``.
        run: Execution of the run: seed, device, precision, checkpoints, logs. Precision ``auto`` means float32 in the
            paper's recipe.

    Returns:
        The folder of the trained segmenter.
    """
    arguments = dict(locals())
    settings = choose(training, optimizer, device=run.device, precision=run.precision)
    run = replace(run, precision=settings.precision)  # recorded, so that a resumed run keeps it on another machine
    resolved = config.resolve(arguments, run, free=("baseline_floor", *PLACES))
    if not 0 <= baseline_floor < 1:
        raise UserError(f"--baseline-floor is {baseline_floor:g}; expected a Dice from 0 to below 1")
    if split is not None and (labelled or validation):
        raise UserError(
            f"got both the split {split} and names of patients (--labelled, --validation); expected only one of them, "
            "because the split assigns all patients"
        )
    out = Path(out)
    processes = _processes(run)
    with ExitStack() as stack:
        split_file = processes.on_main(
            lambda: _begin(
                data, out, split, opening, resolved, labelled=labelled, validation=validation, run=run, stack=stack
            )
        )
        cache = cache or out / "cache"
        each = replace(run, resume=True)  # resumes an interrupted stage, or starts a new one
        baseline, student = out / "baseline", out / "selftrain"
        with stages_of("ssl-medseg run", out):
            if not processes.on_main(lambda: _is_done(baseline)):
                # Prepare the unlabelled volumes now, so that an unusable one stops the run before training.
                open_training_data(
                    data, split_file, opening=opening, preprocessing=preprocessing, unlabelled=True, cache=cache,
                    largest=settings.largest,
                ).slices()  # fmt: skip
                train(
                    data, baseline, split=split_file, training=replace(training, steps=baseline_steps),
                    optimizer=optimizer, network=network, augment=augment, preprocessing=preprocessing,
                    opening=opening, cache=cache, run=each,
                )  # fmt: skip
            if not processes.on_main(lambda: _is_done(student)):
                if baseline_floor:
                    processes.on_main(
                        lambda: check_baseline(
                            baseline, data, split_file, opening=opening, device=run.device, floor=baseline_floor
                        )
                    )
                selftrain(
                    str(baseline), data, student, split=split_file, selftraining=selftraining, training=training,
                    optimizer=optimizer, augment=augment, opening=opening, cache=cache, run=each,
                )  # fmt: skip
        processes.on_main(lambda: _take_model(student, out))
        # On the same cases as the baseline, so that the report shows the effect of the unlabelled volumes.
        if processes.on_main(lambda: _has_validation(data, split_file, opening)):
            processes.on_main(
                lambda: _tell(
                    score_part(out, data, split_file, "validation", opening=opening, device=run.device), baseline,
                    quiet=not run.progress,
                )
            )  # fmt: skip
    processes.close()
    return out / "model"


def score_part(
    model: Path, data: str, split: Path, part: Part, *, opening: DataOptions, device: DeviceName
) -> Evaluated:
    """Evaluate a model on one part of a split and write the results, with pictures, to its folder."""
    opening = replace(opening, allow_unlabelled=True)  # the split states which cases have no label
    return evaluate(
        model, data, split=split, part=part, name=part, opening=opening, inference=InferenceOptions(device=device)
    )


def _tell(result: Evaluated, baseline: Path, *, quiet: bool) -> None:
    """Print the Dice of the final model and of the baseline on the validation cases, and warn of failures."""
    file = baseline / "evaluation" / "validation.json"
    before = f", the baseline {_mean_dice(summarise(read_evaluation(file)))}" if file.is_file() else ""
    lines = [
        f"Dice on {several(result.summary.cases, 'validation case')}: the final model {_mean_dice(result.summary)}"
        + before,
        *(f"warning: {text}" for text in failures(result.summary)),
    ]
    if not quiet:
        print("\n".join(lines), file=sys.stderr)  # noqa: T201 - both stages are closed


def _mean_dice(summary: Summary) -> str:
    each = ", ".join(
        f"{structure.structure} {number('dice', structure.measures['dice'].mean)}" for structure in summary.structures
    )
    return f"{number('dice', summary.mean_dice.mean)} ({each})"


def _has_validation(data: str, split: Path, opening: DataOptions) -> bool:
    return bool(read_split(split, open_with(data, replace(opening, allow_unlabelled=True))).validation)


def check_baseline(
    baseline: Path, data: str, split: Path, *, opening: DataOptions, device: DeviceName, floor: float
) -> None:
    """Evaluate the baseline on the validation cases, and stop the run if it has failed.

    If the network does not find a structure, its pseudo-labels would pass this error on to the student. Without
    validation cases that contain a structure, the labelled ones are scored: a network that fails on its training cases
    fails on all others.

    Raises:
        UserError: The Dice is below the floor, or a structure of these cases is never found.
    """
    part: Part = "labelled"
    dice: dict[str, float] = {}
    if _has_validation(data, split, opening):
        part = "validation"
        result = score_part(baseline, data, split, part, opening=opening, device=device)
        dice = dice_where_present(result.summary)
    if not dice:  # no validation cases, or only patients without any structure
        part = "labelled"
        result = score_part(baseline, data, split, part, opening=opening, device=device)
        dice = dice_where_present(result.summary)
    mean, structures = fmean(dice.values()), never_found(result.summary)
    if mean >= floor and not structures:
        return
    each = ", ".join(f"{name} {value:.2f}" for name, value in dice.items())
    failure = f"never finds {some_of(structures)}" if structures else f"has a mean Dice of {mean:.2f}, below {floor:g},"
    cases = several(result.summary.cases, "labelled case" if part == "labelled" else "validation case")
    on = f"on {cases}" + (" that it was trained with" if part == "labelled" else "")
    pictures = [file for file in result.written if file.suffix == ".png"]
    raise UserError(
        f"{baseline}: the baseline {failure} {on} (Dice {each}). Its pseudo-labels would reinforce these errors, so "
        "the run stops before self-training.\n"
        f"Look at {pictures[-1] if pictures else baseline}, then try one of these:\n"
        f"- check the labels: ssl-medseg check {shlex.quote(data)} --picture-folder PICTURES\n"
        "- label one more patient, or another one (--labelled, or another --split), and start in a new folder\n"
        "- train longer (--baseline-steps, or a larger --effort) in a new folder\n"
        "- continue anyway: repeat the command with --baseline-floor 0 --resume"
    )


def _processes(run: RunOptions) -> Processes:
    """Return this process or the group started by torchrun; the first process creates the folder, the others wait."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(rank=0, world_size=1)
    fabric = make_fabric(run)
    return Processes(rank=fabric.global_rank, world_size=fabric.world_size)


def _begin(
    data: str,
    out: Path,
    split: Path | None,
    opening: DataOptions,
    resolved: config.Config,
    *,
    labelled: tuple[str, ...],
    validation: tuple[str, ...],
    run: RunOptions,
    stack: ExitStack,
) -> Path:
    """Create the run folder with split and settings, lock it while `stack` is open, and return the split file."""
    has_begun = _check_folder(out, resolved, resume=run.resume)
    # The stages lock folders of their own. Until the first one starts, a second command would replace the split.
    lock = files.FolderLock(out)
    stack.callback(lock.release)
    if not lock.acquire():
        raise UserError(f"{out} is being written by another process; wait for it to end, or stop it")
    split_file = _split(
        data, out, split, opening, labelled=labelled, validation=validation, keep=has_begun, quiet=not run.progress
    )
    if has_begun:
        _check_split(out, open_split(data, split_file, opening)[1])
    resolved.values["split"] = str(split_file)
    resolved.write(out / "config.yaml")
    return split_file


def _check_split(out: Path, split: Split) -> None:
    """Refuse another split than that of the finished stages, whose data are not checked by training."""
    file = out / "baseline" / "data.json"
    if not file.is_file():
        return
    with reading(file, "is damaged", "start in a new folder"):
        parts = {name: case["part"] for name, case in read_object(file)["cases"].items()}
    for part in ("labelled", "validation"):
        if {name for name, previous in parts.items() if previous == part} != set(split.parts[part]):
            raise UserError(
                f"{out}: the run was started with other {part} cases than those of the split. Use the same split, or "
                "another --out"
            )


def _check_folder(out: Path, resolved: config.Config, *, resume: bool) -> bool:
    """Check that the folder is new or holds the run to resume, and return whether its training has begun.

    A start that failed before the first training step (for example by a mistyped flag) has left nothing to keep, so the
    corrected command may use the folder without ``--resume``.
    """
    settings = out / "config.yaml"
    has_begun = any((out / "baseline" / name).exists() for name in ("metrics.jsonl", "checkpoints", "model"))
    if not has_begun:
        claim_folder(out, command="ssl-medseg run")
        return False
    if not resume:
        raise UserError(f"{out} is not empty; pass --resume to continue the run in it, or choose another --out")
    if settings.is_file() and (differences := resolved.differences(config.read(settings))):
        raise UserError(
            f"{out} contains a run with other settings:\n  "
            + "\n  ".join(differences)
            + "\nUse the same settings, or another --out"
        )
    claim_folder(out, command="ssl-medseg run")
    return True


def _split(
    data: str,
    out: Path,
    split: Path | None,
    opening: DataOptions,
    *,
    labelled: tuple[str, ...],
    validation: tuple[str, ...],
    keep: bool,
    quiet: bool,
) -> Path:
    """Return the split file: the given one, that of the run if `keep`, or one derived from the cases with labels."""
    if split is not None:
        open_split(data, split, opening)
        return split
    file = out / "split.json"
    if keep and file.is_file():  # of a resumed run, whose data may have moved
        open_split(data, file, opening)
        return file
    file.unlink(missing_ok=True)  # of a start that failed before training, perhaps with other patients
    dataset = open_with(data, opening)
    parts, reasons = split_by_labels(dataset, labelled=labelled, validation=validation)
    if not quiet:
        print("\n".join(reasons), file=sys.stderr)  # noqa: T201 - there is no run yet that could log it
    write_split(file, parts, dataset)
    return file


def _is_done(stage: Path) -> bool:
    return (stage / "model" / "model.json").is_file()


def _take_model(stage: Path, out: Path) -> None:
    with files.atomic_folder(out / "model") as new:
        shutil.copytree(stage / "model", new, dirs_exist_ok=True)
        files.keep_others(out / "model", new)

"""All of it in one command: `ssl-medseg run`. These volumes are labelled, those are not; out comes a segmenter."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from contrastive_core.errors import UserError
from contrastive_core.text import some_of
from contrastive_core.training import RunOptions, config, files
from contrastive_core.training.launch import make_fabric
from contrastive_core.training.outputs import claim_folder
from contrastive_core.training.processes import Processes
from contrastive_core.training.run import stages_of
from ssl_medseg.datasets import DataOptions, open_split, open_with, read_split, write_split
from ssl_medseg.datasets.draw_splits import split_by_labels
from ssl_medseg.models import NetworkOptions
from ssl_medseg.models.network import AUTO
from ssl_medseg.preprocessing import PreprocessingOptions
from ssl_medseg.reports.evaluation import Evaluated, Part, evaluate
from ssl_medseg.selftraining.options import SelfTrainingOptions
from ssl_medseg.selftraining.training import selftrain
from ssl_medseg.training.data import open_training_data
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
    network: NetworkOptions = AUTO,
    augment: AugmentOptions = AugmentOptions(),  # noqa: B008
    preprocessing: PreprocessingOptions = PreprocessingOptions(),  # noqa: B008
    opening: DataOptions = DataOptions(),  # noqa: B008
    cache: Path | None = None,
    run: RunOptions = RunOptions(),  # noqa: B008
) -> Path:
    """From a data set in which a few volumes are labelled to a segmenter trained on all of them.

    What `train` and `selftrain` do, one after the other: the preprocessing is derived from the data and the reasons are
    said, the baseline is trained on the labelled volumes (``OUT/baseline``), and training goes on with the unlabelled
    ones for as many steps again (``OUT/selftrain``). The segmenter is in ``OUT/model``, where `predict` and `evaluate`
    find it; `report OUT` shows all of it. Every volume is prepared before the baseline begins, so that one that cannot
    be used stops the run at its start. With ``--resume`` a run that was stopped goes on in the stage it was in. Started
    by torchrun, every stage is shared among the processes.

    Without a split, patients whose volumes all have labels are the labelled ones, or those named; of four or more a
    quarter is kept for validation. The split is written to ``OUT/split.json``. Labels of unlabelled volumes are never
    opened.

    Args:
        data: Data set: a folder in one of the layouts that `check` names, or a CSV file.
        out: Folder of the whole run.
        split: Split file of `make-splits`.
        labelled: Patients whose labels training may open, where no split is given.
        validation: Patients to validate on, where no split is given.
        baseline_steps: Training steps on the labelled volumes alone; by default set by the effort.
        baseline_floor: Validation Dice of the baseline below which the run stops before the unlabelled volumes, as it
            does if a structure is never found; without validation cases, the Dice of the labelled volumes. 0 goes on
            whatever it is.
        selftraining: Use of the unlabelled slices.
        training: Length of both stages, their batches and loss, and the weights that are kept; ``steps`` are those with
            the unlabelled volumes.
        optimizer: Optimiser, learning rate, and average of the weights.
        network: Network; `auto` and 0 leave the choice to recipe and effort.
        augment: Augmentation of the labelled slices.
        preprocessing: Preprocessing settings; those that are not given are derived from the data.
        opening: How to open the data set.
        cache: Folder that keeps prepared volumes; by default ``OUT/cache``.
        run: How the run is executed: seed, device, precision, checkpoints, logs.

    Returns:
        The folder of the trained segmenter.
    """
    resolved = config.resolve(dict(locals()), run, free=("baseline_floor", "cache", "data", "split"))
    if not 0 <= baseline_floor < 1:
        raise UserError(f"--baseline_floor is {baseline_floor:g}; expected a Dice from 0 to below 1")
    if split is not None and (labelled or validation):
        raise UserError(
            f"got the split {split} and names of patients; expected one of them, for the split names them all"
        )
    out = Path(out)
    processes = _processes(run)
    chosen = processes.on_main(
        lambda: _begin(data, out, split, opening, resolved, labelled=labelled, validation=validation, run=run)
    )
    cache = cache or out / "cache"
    each = replace(run, resume=True)  # an interrupted stage goes on; one that has not begun, begins
    baseline, student = out / "baseline", out / "selftrain"
    with stages_of("ssl-medseg run", out):
        if not processes.on_main(lambda: _is_done(baseline)):
            # An unlabelled volume that cannot be used shall stop the run now, and not when the baseline is trained.
            largest = choose(training, optimizer, device=run.device).largest
            open_training_data(
                data, chosen, opening=opening, preprocessing=preprocessing, unlabelled=True, cache=cache,
                largest=largest,
            ).slices()  # fmt: skip
            train(
                data, chosen, baseline, training=replace(training, steps=baseline_steps), optimizer=optimizer,
                network=network, augment=augment, preprocessing=preprocessing, opening=opening, cache=cache, run=each,
            )  # fmt: skip
        if not processes.on_main(lambda: _is_done(student)):
            if baseline_floor:
                processes.on_main(
                    lambda: check_baseline(
                        baseline, data, chosen, opening=opening, device=run.device, floor=baseline_floor
                    )
                )
            selftrain(
                str(baseline), data, chosen, student, selftraining=selftraining, training=training,
                optimizer=optimizer, augment=augment, opening=opening, cache=cache, run=each,
            )  # fmt: skip
    processes.on_main(lambda: _take_model(student, out))
    # Beside the baseline on the same cases, so that the report shows what the unlabelled volumes have added.
    if processes.on_main(lambda: _has_validation(data, chosen, opening)):
        processes.on_main(lambda: score_part(out, data, chosen, "validation", opening=opening, device=run.device))
    processes.close()
    return out / "model"


_FOUND = 0.02
"""Mean Dice below which a structure counts as never found."""


def score_part(model: Path, data: str, split: Path, part: Part, *, opening: DataOptions, device: str) -> Evaluated:
    """Score a model on the cases of a part of a split, with pictures, into its folder."""
    opening = replace(opening, allow_unlabelled=True)  # the split names who is; their labels may be missing
    return evaluate(model, data, split=split, part=part, name=part, opening=opening, device=device)


def _has_validation(data: str, split: Path, opening: DataOptions) -> bool:
    return bool(read_split(split, open_with(data, replace(opening, allow_unlabelled=True))).validation)


def check_baseline(baseline: Path, data: str, split: Path, *, opening: DataOptions, device: str, floor: float) -> None:
    """Score the baseline on the validation cases, with pictures, and stop where it has failed.

    Pseudo-labels of a network that does not find a structure teach the student its errors. Without validation cases the
    labelled ones are scored: a network that fails on what it was trained on fails everywhere.

    Raises:
        UserError: Its Dice is below the floor, or it never finds a structure that these cases have.
    """
    part: Part = "validation" if _has_validation(data, split, opening) else "labelled"
    scored = score_part(baseline, data, split, part, opening=opening, device=device)
    dice = {each.structure: each.measures["dice"].mean for each in scored.summary.structures if each.measures["dice"].n}
    mean = scored.summary.mean_dice.mean or 0.0
    never = [name for name, value in dice.items() if value is not None and value < _FOUND]
    if mean >= floor and not never:
        return
    each = ", ".join(f"{name} {value:.2f}" for name, value in dice.items() if value is not None)
    what = f"never finds {some_of(never)}" if never else f"has a {part} Dice of {mean:.2f}, below {floor:g}"
    if part == "labelled":
        what += " on the cases it was trained on, there being none for validation"
    pictures = [file for file in scored.written if file.suffix == ".png"]
    raise UserError(
        f"{baseline}: the baseline {what} (Dice {each}), and pseudo-labels of such a network teach its errors, so the "
        f"run stops before the unlabelled volumes. Look at {pictures[-1] if pictures else baseline}. What may help: "
        f"ssl-medseg check {data}, for labels that do not fit their images; another or one more labelled patient "
        "(--labelled); more steps (--baseline_steps) or a larger --effort. To go on all the same, give "
        "--baseline_floor 0 --resume"
    )


def _processes(run: RunOptions) -> Processes:
    """This process, or those that torchrun has started: the first makes the folder, the others wait for it."""
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
) -> Path:
    """Make the folder with the split and the settings in it; the split's file."""
    _check_folder(out, resolved, resume=run.resume)
    chosen = _split(data, out, split, opening, labelled=labelled, validation=validation, quiet=not run.progress)
    resolved.values["split"] = str(chosen)
    resolved.write(out / "config.yaml")
    return chosen


def _check_folder(out: Path, resolved: config.Config, *, resume: bool) -> None:
    """Refuse a folder that holds something else, or another run."""
    settings = out / "config.yaml"
    if not resume and out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; go on with the run in it by --resume, or choose another --out")
    if resume and settings.is_file():
        before = config.read(settings)
        if changed := resolved.differences(before):
            raise UserError(
                f"{out} holds a run with other settings:\n  "
                + "\n  ".join(changed)
                + "\nGive the same, or another --out"
            )
        return
    claim_folder(out, command="ssl-medseg run")


def _split(
    data: str,
    out: Path,
    split: Path | None,
    opening: DataOptions,
    *,
    labelled: tuple[str, ...],
    validation: tuple[str, ...],
    quiet: bool,
) -> Path:
    """The split's file: the one given, or one made from who has labels."""
    if split is not None:
        open_split(data, split, opening)
        return split
    file = out / "split.json"
    if file.is_file():  # of the run that goes on, whose data may lie elsewhere now
        open_split(data, file, opening)
        return file
    dataset = open_with(data, opening)
    made, reasons = split_by_labels(dataset, labelled=labelled, validation=validation)
    if not quiet:
        print("\n".join(reasons), file=sys.stderr)  # noqa: T201 - before there is a run that could say it
    write_split(file, made, dataset)
    return file


def _is_done(stage: Path) -> bool:
    return (stage / "model" / "model.json").is_file()


def _take_model(stage: Path, out: Path) -> None:
    new = out / ".model.tmp"
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(stage / "model", new)
    files.keep_others(out / "model", new)
    files.replace_folder(new, out / "model")

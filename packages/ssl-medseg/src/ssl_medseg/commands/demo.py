"""Run the complete workflow on generated hearts, without a download (`ssl-medseg demo`)."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from contrastive_core.errors import UserError
from contrastive_core.text import some_of
from contrastive_core.training import RunOptions
from contrastive_core.training.config import DeviceName
from contrastive_core.training.outputs import claim_folder
from contrastive_core.training.run import stages_of
from ssl_medseg.checks import examine
from ssl_medseg.commands.predict import predict
from ssl_medseg.commands.report import report
from ssl_medseg.datasets import Split, open_dataset, write_split
from ssl_medseg.evaluation.summary import never_found
from ssl_medseg.evaluation.text import mean_and_sd, number
from ssl_medseg.phantom import write_phantom
from ssl_medseg.prediction import InferenceOptions
from ssl_medseg.preprocessing import PreprocessingOptions
from ssl_medseg.reports.evaluation import Evaluated, evaluate
from ssl_medseg.selftraining.options import PseudoLabelOptions, SelfTrainingOptions
from ssl_medseg.selftraining.training import selftrain
from ssl_medseg.training.recipe import OptimizerOptions, TrainingOptions
from ssl_medseg.training.supervised import train

_LABELLED, _VALIDATION, _UNLABELLED, _TEST = 2, 1, 5, 3  # patients
_SIZE = 64
_RATE = 6e-3
"""Learning rate, twice that of the recipe because there are few steps: with 3e-3, 400 steps did not find the RV."""


@dataclass(frozen=True)
class DemoResult:
    """Result of the demo; `str` returns the text that the command prints.

    Attributes:
        baseline: Evaluation on the test patients after training on the labelled patient.
        selftrained: Evaluation on the test patients after self-training with the unlabelled patients.
        masks: Folder with masks of the test patients, and pictures.
        report: HTML report.
    """

    baseline: Evaluated
    selftrained: Evaluated
    masks: Path
    report: Path

    def __str__(self) -> str:
        pairs = [("labelled patients only", self.baseline), ("with unlabelled patients", self.selftrained)]
        structures = self.baseline.evaluation.structures
        lines = [
            f"Dice on {self.baseline.summary.cases} volumes of {_TEST} generated patients not used for training:",
            "",
            f"{'':28}{'mean':>16}" + "".join(f"{name:>14}" for name in structures),
        ]
        for name, result in pairs:
            each = [number("dice", s.measures["dice"].mean) for s in result.summary.structures]
            mean = mean_and_sd("dice", result.summary.mean_dice)
            lines.append(f"{name:28}{mean:>16}" + "".join(f"{value:>14}" for value in each))
        lines += ["", *(self._failures() or [self._compare()]), "", f"masks:  {self.masks}", f"report: {self.report}"]
        return "\n".join(lines)

    def _failures(self) -> list[str]:
        """State which structures each of the two models never finds."""
        stages = {"the baseline": self.baseline, "the model after self-training": self.selftrained}
        structures = {name: never_found(result.summary) for name, result in stages.items()}
        lines = [f"Failed: {name} never finds {some_of(each)}." for name, each in structures.items() if each]
        if structures["the baseline"]:
            lines.append("`ssl-medseg run` would have stopped before self-training.")
        return [*lines, "Use more --steps, in a new folder (--out)."] if lines else []

    def _compare(self) -> str:
        """Compare the two scores in a sentence."""
        before, after = (d.summary.mean_dice.mean or 0.0 for d in (self.baseline, self.selftrained))
        if abs(after - before) < 0.01:
            return f"Self-training and the baseline are within 0.01 of each other ({after - before:+.3f})."
        return f"Self-training is {abs(after - before):.3f} {'above' if after > before else 'below'} the baseline."


def demo(
    out: Path = Path("runs/medseg-demo"),
    *,
    steps: int = 240,
    seed: int = 0,
    device: DeviceName = "auto",
) -> DemoResult:
    """Generate hearts, check them, train with two labelled patients, self-train with five more, segment and evaluate.

    Takes a few minutes on a CPU. The hearts are synthetic short-axis images with oblique, thick slices. They are small
    and far easier than real ones, so that the scores only show that everything works. Unlike `run`, the demo does not
    stop if the baseline never finds a structure, so that a few steps suffice to try every command; it states the
    failure instead. Calling it again with the same arguments resumes the runs in the folder, or shows their results
    again.

    Args:
        out: Folder for all files: data, split, runs, masks, report.
        steps: Training steps of the baseline; self-training has half as many.
        seed: Seed of all random draws.
        device: Device to run on: auto, cpu, cuda or mps.

    Returns:
        The scores before and after self-training, and the paths of masks and report.
    """
    if steps < 4:
        raise UserError(f"steps is {steps}; expected at least 4")
    out = Path(out)
    claim_folder(out, command="ssl-medseg demo")
    data, split = out / "data", out / "split.json"
    _generate(data, split, seed=seed)
    errors = [finding for finding in examine(str(data)).findings if finding.level == "error"]
    if errors:
        raise UserError(f"{data}: {errors[0]}; the data were changed after they were generated. Remove the folder")
    options = RunOptions(seed=seed, device=device, precision="auto", resume=True, checkpoint_every=100)
    baseline, joint = out / "baseline", out / "selftrain"
    again = f"ssl-medseg demo --out {shlex.quote(str(out))} --steps {steps} --seed {seed} --device {device}"
    with stages_of("ssl-medseg demo", out, again=again):
        train(
            str(data), baseline, split=split, training=_length(steps), optimizer=OptimizerOptions(lr=_RATE),
            preprocessing=PreprocessingOptions(image_size=_SIZE), cache=out / "prepared", run=options,
        )  # fmt: skip
        before = evaluate(baseline, str(data), inference=InferenceOptions(device=device))
        selftrain(
            str(baseline), str(data), joint, split=split,
            selftraining=SelfTrainingOptions(pseudo=PseudoLabelOptions(guard="warn")),
            training=_length(steps // 2), cache=out / "prepared", run=options,
        )  # fmt: skip
    masks = out / "masks"
    predict(str(joint), str(data), masks, split=split, pictures=True, inference=InferenceOptions(device=device))
    after = evaluate(masks, str(data), split=split, out=out / "evaluation")
    return DemoResult(before, after, masks, report(out))


def _length(steps: int) -> TrainingOptions:
    return TrainingOptions(effort="minutes", steps=steps, batch_size=10, validate_every=max(1, steps // 4))


def _generate(data: Path, split: Path, *, seed: int) -> None:
    """Generate the hearts and their split, unless they exist already."""
    if split.is_file():
        return
    write_phantom(data, patients=_LABELLED + _VALIDATION + _UNLABELLED + _TEST, size=_SIZE, seed=seed)
    dataset = open_dataset(data)
    patients = iter(dataset.patients.values())

    def take(count: int) -> tuple[str, ...]:
        return tuple(name for _ in range(count) for name in next(patients))

    parts = Split(
        labelled=take(_LABELLED), validation=take(_VALIDATION), unlabelled=take(_UNLABELLED), test=take(_TEST)
    )
    write_split(split, parts, dataset)

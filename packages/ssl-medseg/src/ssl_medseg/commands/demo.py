"""Run the complete workflow on generated hearts, without a download (`ssl-medseg demo`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from contrastive_core.errors import UserError
from contrastive_core.training import RunOptions
from contrastive_core.training.config import DeviceName
from contrastive_core.training.outputs import claim_folder
from ssl_medseg.checks import examine
from ssl_medseg.commands.predict import predict
from ssl_medseg.commands.report import report
from ssl_medseg.datasets import Split, open_dataset, write_split
from ssl_medseg.evaluation.text import mean_and_sd, number
from ssl_medseg.models import NetworkOptions
from ssl_medseg.phantom import write_phantom
from ssl_medseg.prediction import InferenceOptions
from ssl_medseg.preprocessing import PreprocessingOptions
from ssl_medseg.reports.evaluation import Evaluated, evaluate
from ssl_medseg.selftraining.options import ContrastOptions, PseudoLabelOptions, SelfTrainingOptions
from ssl_medseg.selftraining.training import selftrain
from ssl_medseg.training.recipe import TrainingOptions
from ssl_medseg.training.supervised import train

_LABELLED, _VALIDATION, _UNLABELLED, _TEST = 1, 1, 5, 4  # patients
_SIZE = 64
_WIDTH = 8
_ROUNDS = 2


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
        pairs = [("labelled patient only", self.baseline), ("with unlabelled patients", self.selftrained)]
        structures = self.baseline.evaluation.structures
        lines = [
            f"Dice on {self.baseline.summary.cases} volumes of {_TEST} generated patients not used for training:",
            "",
            f"{'':28}{'mean':>16}" + "".join(f"{name:>14}" for name in structures),
        ]
        for name, done in pairs:
            each = [number("dice", s.measures["dice"].mean) for s in done.summary.structures]
            mean = mean_and_sd("dice", done.summary.mean_dice)
            lines.append(f"{name:28}{mean:>16}" + "".join(f"{value:>14}" for value in each))
        return "\n".join([*lines, "", self._compare(), "", f"masks:  {self.masks}", f"report: {self.report}"])

    def _compare(self) -> str:
        """Compare the two scores in a sentence."""
        before, after = (d.summary.mean_dice.mean or 0.0 for d in (self.baseline, self.selftrained))
        if abs(after - before) < 0.01:
            return f"Self-training and the baseline are within 0.01 of each other ({after - before:+.3f})."
        return f"Self-training is {abs(after - before):.3f} {'above' if after > before else 'below'} the baseline."


def demo(
    out: Path = Path("runs/demo"),
    *,
    steps: int = 240,
    seed: int = 0,
    device: DeviceName = "auto",
) -> DemoResult:
    """Generate hearts, check them, train with one labelled patient, self-train with five more, segment and evaluate.

    Takes a few minutes on a CPU. The hearts are synthetic short-axis images with oblique, thick slices. They are small
    and far easier than real ones, so that the scores only show that everything works. Calling it again with the same
    arguments resumes the runs in the folder, or shows their results again.

    Args:
        out: Folder for all files: data, split, runs, masks, report.
        steps: Training steps of the baseline; each of the two rounds of self-training has half as many.
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
    options = RunOptions(seed=seed, device=device, resume=True, checkpoint_every=100)
    baseline, joint = out / "baseline", out / "selftrain"
    train(
        str(data), baseline, split=split,
        training=TrainingOptions(steps=steps, batch_size=10, validate_every=max(1, steps // 6)),
        network=NetworkOptions("plain-unet", _WIDTH), preprocessing=PreprocessingOptions(image_size=_SIZE),
        cache=out / "prepared", run=options,
    )  # fmt: skip
    before = evaluate(baseline, str(data), inference=InferenceOptions(device=device))
    each = steps // 2
    selftrain(
        str(baseline), str(data), joint, split=split,
        selftraining=SelfTrainingOptions(
            method="rounds", rounds=_ROUNDS, reuse="whole", unlabelled_batch=10,
            pseudo=PseudoLabelOptions(guard="warn"), contrast=ContrastOptions(weight=0.1),
        ),
        training=TrainingOptions(steps=each, batch_size=10, validate_every=max(1, each // 3)),
        cache=out / "prepared", run=options,
    )  # fmt: skip
    masks = out / "masks"
    predict(str(joint), str(data), masks, split=split, pictures=True, inference=InferenceOptions(device=device))
    after = evaluate(masks, str(data), split=split, out=out / "evaluation")
    return DemoResult(before, after, masks, report(out))


def _generate(data: Path, split: Path, *, seed: int) -> None:
    """Generate the hearts and their split, unless they exist already."""
    if split.is_file():
        return
    write_phantom(data, patients=_LABELLED + _VALIDATION + _UNLABELLED + _TEST, size=_SIZE, seed=seed)
    dataset = open_dataset(data)
    patients = iter(dataset.patients.values())

    def take(count: int) -> tuple[str, ...]:
        return tuple(name for _ in range(count) for name in next(patients))

    chosen = Split(
        labelled=take(_LABELLED), validation=take(_VALIDATION), unlabelled=take(_UNLABELLED), test=take(_TEST)
    )
    write_split(split, chosen, dataset)

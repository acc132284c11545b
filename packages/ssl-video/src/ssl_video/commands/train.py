"""`ssl-video train`: train with few labels. One training loop, meant to be copied and changed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from contrastive_core.errors import UserError
from contrastive_core.optim import WarmupCosine
from contrastive_core.text import several
from contrastive_core.training import Run, RunOptions
from contrastive_core.training.checkpoint import Unchanged
from contrastive_core.training.tables import is_address
from ssl_video.augment import REORDERING, StrongOptions, WeakOptions
from ssl_video.data import ClipDataset, ClipSpec, VideoSet, open_videos
from ssl_video.data.frame_cache import GB, FrameCache
from ssl_video.data.reader import TrainingReadOptions
from ssl_video.data.splits import read_split, select, select_labelled
from ssl_video.evaluation import SamplingOptions, classify_all, keep_readable, score_view
from ssl_video.models import NetworkOptions
from ssl_video.models.model_folder import Recipe, Recognizer, save_recognizer
from ssl_video.models.networks import build_network, check_clip
from ssl_video.models.pretrained import begin_from
from ssl_video.mvpl.method import MultiviewPseudoLabel
from ssl_video.optical_flow.cache import FlowCache, open_flow
from ssl_video.training.inference_model import make_tested
from ssl_video.training.loader import Feed
from ssl_video.training.options import (
    FEW,
    SHORT,
    SURE,
    InputOptions,
    OptimizerOptions,
    PseudoOptions,
    TrainingOptions,
    apply_recipe,
    build_optimizer,
    make_augment,
)
from ssl_video.views import needs_following


def train(
    data: str,
    out: Path,
    *,
    split: Path,
    recipe: Literal["strong", "paper"] = "strong",
    method: Literal["mvpl", "fixmatch", "supervised"] = "mvpl",
    init: str | None = None,
    inputs: InputOptions = InputOptions(),  # noqa: B008 - frozen
    clip: ClipSpec = ClipSpec(),  # noqa: B008
    network: NetworkOptions = NetworkOptions(),  # noqa: B008
    training: TrainingOptions = TrainingOptions(),  # noqa: B008
    pseudo: PseudoOptions = PseudoOptions(),  # noqa: B008
    weak: WeakOptions = WeakOptions(),  # noqa: B008
    strong: StrongOptions = StrongOptions(),  # noqa: B008
    optimizer: OptimizerOptions = OptimizerOptions(),  # noqa: B008
    read: TrainingReadOptions = TrainingReadOptions(),  # noqa: B008
    run: RunOptions = RunOptions(),  # noqa: B008
) -> Path:
    """Train a network to recognise actions from a few labelled videos and many unlabelled ones.

    ``mvpl``: pseudo-labels from all views together train every view. ``fixmatch``: the same with frames alone.
    ``supervised``: labels alone, on all views (``--views rgb`` for the ordinary baseline). The network of the last
    step, or its moving average, is saved, with batch norm recalibrated for every view; it is tested on frames.

    The labels of videos that the split does not list as labelled are not read, and test videos are not opened. An
    interrupted run resumes exactly, even if the data have moved.

    Args:
        data: Folder of class folders, CSV file with a column path, or list of lines ``path class``.
        out: Folder of the run: configuration, metrics, checkpoints, model.
        split: Split file, as written by `ssl-video make-splits`.
        recipe: Defaults of the settings that are not given: ``strong`` for those with the best results, ``paper`` for
            those of the paper: all three views, joint batch norm, threshold 0.3, augmentation at full strength.
        method: Training method.
        init: Initial weights: run folder, model folder, or a file of PyTorchVideo, torchvision or mmaction2.
        inputs: Views of a clip and their size.
        clip: Frames of a clip.
        network: Network.
        training: Length of training, batches, batch norm and validation.
        pseudo: Pseudo-labels.
        weak: Weak augmentation.
        strong: Strong augmentation.
        optimizer: Optimiser, learning rate, and moving average of the network.
        read: Stored optical flow and frames, the decoder of the frames, and the limit for unreadable videos.
        run: Seed, device, precision, checkpoints, logs.

    Returns:
        Path of the trained model.
    """
    inputs, training, pseudo, strong = apply_recipe(recipe, inputs, training, pseudo, strong)
    if method == "fixmatch":
        inputs = replace(inputs, views=inputs.views[:1])
    config = dict(locals())
    views, steps = inputs.views, training.steps
    videos = _open(data, split, pseudo, validate=training.validate_every > 0)
    labelled, unlabelled, validation, truth = videos.labelled, videos.unlabelled, videos.validation, videos.truth
    check_clip(network, frames=clip.frames, size=inputs.image_size)
    flow_cache, frames = _caches(read, inputs, (labelled, unlabelled))
    model_recipe = Recipe(network, labelled.classes, clip, inputs.image_size, views, inputs.flow, inputs.tg_gain)
    with Run(out, config=config, command="ssl-video train", options=run, free=_FREE) as r:
        try:
            augment = make_augment(inputs, weak, strong)
            torch.manual_seed(r.seed("weights"))
            net = _network(network, labelled.classes, init, say=r.say)
            say = _quietly if method == "supervised" else r.say
            pseudo = _settle(
                pseudo, strong, labelled, method=method, views=len(views), steps=None if init else steps, say=say
            )
            mvpl = _method(
                net, pseudo, model_recipe, training=training, ema=optimizer.ema, seed=r.seed("targets"), say=say
            )
        except ValueError as error:
            raise UserError(str(error)) from error

        def clips(of: VideoSet, log: str, *, by_class: bool) -> ClipDataset:
            return ClipDataset(
                of, clip, following=needs_following(views, flow_cache), audio="audio" in views, flow=flow_cache,
                frames=frames, reader=read.reader, max_bad=read.max_bad, log=r.out / log, by_class=by_class,
            )  # fmt: skip

        labelled_clips = clips(labelled, "bad_labelled.jsonl", by_class=True)
        unlabelled_clips = clips(unlabelled, "bad_files.jsonl", by_class=False)
        feed = Feed(
            r, labelled_clips, None if method == "supervised" else unlabelled_clips, augment,
            batch_size=training.batch_size, mu=training.mu, total_steps=steps, first_unlabelled=mvpl.warmup_steps,
        )  # fmt: skip
        peak = optimizer.peak(feed.clips)
        model, optim = r.setup(mvpl, build_optimizer(mvpl.network, optimizer, lr=peak))
        schedule = WarmupCosine(
            optim,
            peak_lr=peak,
            start_lr=peak / 10,
            warmup_steps=min(round(optimizer.warmup * steps), steps - 1),
            total_steps=steps,
        )
        r.track(
            model=mvpl, optimizer=optim, schedule=schedule, split=Unchanged(videos.digest, _OTHER_SPLIT.format(split))
        )
        r.say(f"{len(labelled)} labelled of {len(unlabelled)} videos, {feed.clips} clips per step, {steps} steps")

        def make_recognizer(count: int) -> Recognizer:
            size_, seed = max(feed.batch_size, 16), r.seed("recalibrate")
            return Recognizer(
                make_tested(
                    mvpl.tested, model_recipe, unlabelled_clips, weak=weak, count=count, batch_size=size_, seed=seed,
                    device=r.device,
                ),
                model_recipe, r.device, {},
            )  # fmt: skip

        unreadable: set[str] = set()
        for step in r.steps(steps, samples_per_step=feed.clips):
            batch = feed.batch(step)
            losses = model(
                batch.labelled, batch.labels, batch.weak or None, batch.strong or None,
                step=step, present=batch.present, labelled_present=batch.labelled_present,
                truth=truth[batch.unlabelled.cpu()].to(r.device) if truth is not None and batch.weak else None,
                reordered=batch.reordered if strong.temporal else None,
            )  # fmt: skip
            optim.zero_grad()
            r.fabric.backward(losses.loss)
            if optimizer.clip_gradients:
                with _finite(step, losses.loss):
                    r.fabric.clip_gradients(model, optim, max_norm=optimizer.clip_gradients)
            lr = optim.param_groups[0]["lr"]
            optim.step()
            schedule.step()
            mvpl.update()
            r.log(**losses.scalars(), lr=lr)
            if validation is not None and training.validates(step):
                r.record(
                    validation_accuracy=_accuracy(
                        make_recognizer(min(training.recalibrate, 64)),
                        validation,
                        max_bad=read.max_bad,
                        unreadable=unreadable,
                        say=r.say,
                    )
                )
        final = make_recognizer(training.recalibrate).network
        _say_cache(frames, (labelled, unlabelled), say=r.say)  # after recalibration, which reads further videos
        seen = {video.path: video for of in (labelled, unlabelled) for video in of.videos}.values()
        return save_recognizer(
            r, final, model_recipe, learned_from=seen,
            about={
                "method": method, "steps": steps, "split": videos.digest, "labelled": len(labelled), "bn": training.bn,
            },
        )  # fmt: skip


@contextmanager
def _finite(step: int, loss: Tensor) -> Iterator[None]:
    """Raise an error that explains a gradient which is not finite."""
    try:
        yield
    except RuntimeError as error:
        if "non-finite" not in str(error):
            raise
        raise UserError(
            f"step {step + 1}: the gradient is not finite (loss {loss.item():g}); training has diverged, or a custom "
            "network returns values that are not numbers. Lower --optimizer.lr and start again; if this happens in the "
            "first step, look at the network"
        ) from error


_FREE = ("data", "split", "read.flow_cache", "read.reader", "read.max_bad", "read.cache", "read.cache_size")
"""Settings that a resumed run may change: the place of the data, and how to read them. The split must be the same."""
_OTHER_SPLIT = "{}: is not the split that this run was started with; resume with the original split, or start a new run"


class _Videos(NamedTuple):
    labelled: VideoSet
    unlabelled: VideoSet
    validation: VideoSet | None
    truth: Tensor | None
    digest: str


def _open(data: str, split: Path, pseudo: PseudoOptions, *, validate: bool) -> _Videos:
    lists, videos = read_split(split), open_videos(data)
    labelled = select_labelled(videos, lists.labelled, lists.classes, file=split)
    validation = select_labelled(videos, lists.validation, lists.classes, file=split) if lists.validation else None
    if validate and validation is None:
        raise UserError(
            f"{split}: --validate-every was given, but the split has no validation videos; make one that has some "
            "(ssl-video make-splits --validation-fraction 0.1)"
        )
    unlabelled = videos.subset(select(videos, lists.train, file=split))
    if pseudo.exclude_labelled:
        few = {video.key for video in labelled.videos}
        unlabelled = unlabelled.subset(i for i, video in enumerate(unlabelled.videos) if video.key not in few)
    number = {name: place for place, name in enumerate(lists.classes)}
    truth = torch.tensor([number.get(str(video.label), -1) for video in unlabelled.videos]) if pseudo.diagnose else None
    return _Videos(labelled, unlabelled, validation, truth, lists.digest)


def _caches(
    read: TrainingReadOptions, inputs: InputOptions, videos: Sequence[VideoSet]
) -> tuple[FlowCache | None, FrameCache | None]:
    flow_cache = open_flow(read.flow_cache, method=inputs.flow, views=inputs.views, of=videos, max_bad=read.max_bad)
    if read.cache is None:
        return flow_cache, None
    folder = read.cache.resolve()
    if any(folder in video.path.resolve().parents for video_set in videos for video in video_set.videos):
        raise UserError(
            f"{read.cache} contains the videos; choose another folder for their frames, such as {folder.name}-frames"
        )
    return flow_cache, FrameCache(read.cache, limit=round(read.cache_size * GB))


def _say_cache(frames: FrameCache | None, videos: Sequence[VideoSet], *, say: Callable[[str], None]) -> None:
    if frames is not None:
        say(frames.summary(videos))


def _network(
    options: NetworkOptions, classes: Sequence[str], init: str | None, *, say: Callable[[str], None]
) -> nn.Module:
    network = build_network(options, len(classes))
    if init is not None:
        if is_address(init):
            raise UserError(f"{init}: found an address, expected a path on this computer; download the weights first")
        say(begin_from(network, Path(init)))
    return network


def _method(
    network: nn.Module,
    pseudo: PseudoOptions,
    recipe: Recipe,
    *,
    training: TrainingOptions,
    ema: float,
    seed: int,
    say: Callable[[str], None],
) -> MultiviewPseudoLabel:
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        method = MultiviewPseudoLabel(
            network,
            classes=len(recipe.classes),
            views=recipe.views,
            target=pseudo.target,
            fuse_by=pseudo.fuse_by,
            fusion=pseudo.view_weights or pseudo.fusion,
            threshold=pseudo.threshold,
            soft=pseudo.soft,
            temperature=pseudo.temperature,
            unlabelled_weight=pseudo.weight,
            warmup_steps=round(pseudo.warmup * training.steps),
            bn=training.bn,
            align=pseudo.align,
            select=pseudo.select,
            teacher=pseudo.labeller,
            mix=pseudo.mix,
            directed=[recipe.classes.index(name) for name in pseudo.directed],
            agreement_weight=pseudo.agreement_weight,
            ema_decay=ema,
            seed=seed,
            mean=recipe.network.mean,
            std=recipe.network.std,
        )
    for note in notes:
        say(f"note: {note.message}")
    return method


def _settle(
    pseudo: PseudoOptions,
    strong: StrongOptions,
    labelled: VideoSet,
    *,
    method: str,
    views: int,
    steps: int | None,
    say: Callable[[str], None],
) -> PseudoOptions:
    """Settle how pseudo-labels are selected, and print notes on settings with which they may do harm.

    Those on the number of steps are for networks without pre-trained weights; None for others.
    """
    pseudo = pseudo.settled(len(labelled), classes=len(labelled.classes), views=views)
    if method == "supervised" and pseudo.agreement_weight is None:
        pseudo = replace(pseudo, agreement_weight=0.0)
    _say_directed(pseudo, strong, labelled.classes, say=say)
    _say_doubts(pseudo, labelled, steps, say=say)
    return pseudo


def _say_directed(
    pseudo: PseudoOptions, strong: StrongOptions, classes: Sequence[str], *, say: Callable[[str], None]
) -> None:
    unknown = [name for name in pseudo.directed if name not in classes]
    if unknown:
        raise UserError(
            f"pseudo.directed names {', '.join(unknown)}; expected some of the {len(classes)} classes: "
            f"{', '.join(classes)}"
        )
    operations = [name for name in strong.temporal if name in REORDERING]
    if operations and pseudo.directed:
        say(
            f"note: {' and '.join(operations)} of frames: pseudo-labels of {', '.join(pseudo.directed)} are ignored on "
            "reordered clips"
        )
    elif operations:
        say(
            f"note: {' and '.join(operations)} of frames treats all {len(classes)} classes as independent of the order "
            "of frames; name the classes that direction defines (such as opening and closing) with --pseudo.directed"
        )


def _say_doubts(pseudo: PseudoOptions, labelled: VideoSet, steps: int | None, *, say: Callable[[str], None]) -> None:
    doubts = list(_doubts_about_few(pseudo, labelled))
    if steps is not None and steps < SHORT:
        doubts.append(
            f"{several(steps, 'step')} without pre-trained weights make a short run. In our measurements pseudo-labels "
            "lowered the accuracy with 300 steps, and raised it with 2,000"
        )
    if doubts:
        say(f"note: {'. '.join(doubts)}. Also train with --method supervised, and compare the two")


def _doubts_about_few(pseudo: PseudoOptions, labelled: VideoSet) -> Iterator[str]:
    each = len(labelled) / len(labelled.classes)
    if each >= FEW:
        return
    threshold = pseudo.threshold or 0.0  # never None once settled
    number = f"{each:.1f}".removesuffix(".0")
    videos = "video" if number == "1" else "videos"
    few = f"{number} labelled {videos} per class. With so few, most pseudo-labels may be wrong"
    if pseudo.select != "fixed":
        yield few
    elif threshold < SURE:
        yield (
            f"{few}, and in our measurements a threshold of {threshold:g} lowered the accuracy; "
            f"--pseudo.threshold {SURE} selects fewer pseudo-labels, more of them correct"
        )
    else:
        yield f"{few}; those with a confidence below {threshold:g} are ignored"


def _quietly(_: str) -> None:
    """Discard a message: notes on pseudo-labels do not apply to training with labels alone."""


def _accuracy(
    recognizer: Recognizer, videos: VideoSet, *, max_bad: float, unreadable: set[str], say: Callable[[str], None]
) -> float:
    """Return the accuracy on the videos that can be read; report those that cannot, once each."""
    first = recognizer.recipe.views[:1]
    results = classify_all(recognizer, videos.videos, views=first, sampling=SamplingOptions(clips=1, crops=1))
    predictions = keep_readable(videos.videos, results, total=len(videos), max_bad=max_bad)
    for key, reason in predictions.skipped.items():
        if key not in unreadable:
            unreadable.add(key)
            say(f"skipped in validation: {reason}")
    return score_view(predictions.probabilities[:, 0], videos.labels()[predictions.places]).top1 / 100

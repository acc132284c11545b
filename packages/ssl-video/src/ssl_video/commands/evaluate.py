"""`ssl-video evaluate`: test a trained network on held-out videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from contrastive_core.app.report.figures import confusion_figure, to_png
from contrastive_core.errors import UserError
from contrastive_core.text import some_of
from contrastive_core.training.config import DeviceName
from contrastive_core.training.files import check_space, open_atomic, write_atomic
from contrastive_core.training.model_file import module_hash
from contrastive_core.training.names import check_file_name
from contrastive_core.training.outputs import Outputs, run_files
from contrastive_core.training.progress import track
from ssl_video.data import VideoSet, open_videos
from ssl_video.data.reader import TolerantReadOptions
from ssl_video.data.splits import read_split, select_labelled
from ssl_video.data.torchcodec_reader import check_reader
from ssl_video.evaluation import (
    FUSED,
    Evaluation,
    SamplingOptions,
    classify_all,
    confusion_of,
    fused,
    keep_readable,
    score_view,
)
from ssl_video.models.model_folder import load_recognizer
from ssl_video.optical_flow.cache import open_flow

_ROW, _PICTURE = 100, 100_000  # bytes of a video's name and label, and of the confusion matrix


def evaluate(
    model: str,
    data: str,
    *,
    split: Path | None = None,
    part: str | None = None,
    sampling: SamplingOptions = SamplingOptions(),  # noqa: B008 - frozen
    read: TolerantReadOptions = TolerantReadOptions(),  # noqa: B008
    out: Path | None = None,
    device: DeviceName = "auto",
    network: str | None = None,
    overwrite: bool = False,
) -> Evaluation:
    """Test a network on held-out videos: mean probabilities over 10 clips x 3 crops per video.

    With a split, its test videos are used; without one, all videos of `data` that have a class. Videos that the network
    was trained on are refused, whatever their names and folders.

    The main result is that of the first view, frames, at the cost of an ordinary network; each other view alone and the
    mean of all views are reported beside it. Three files are written: ``PART.json`` with all numbers,
    ``PART-predictions.npz`` with probabilities float32 ``[N, M, K]``, labels, keys, views and classes, and
    ``PART-confusion.png``.

    Args:
        model: Run folder or model folder to use.
        data: Folder of class folders, CSV file with a column path, or list of lines ``path class``.
        split: Split file of `make-splits` that the network was trained with; by default all labelled videos are tested.
        part: Part of the split, test (the default) or validation; without a split, part of the data, such as test (by
            default all of it).
        sampling: Views, clips and crops of each video.
        read: Stored optical flow, the decoder of the frames, and the limit for unreadable videos.
        out: Folder for the files; by default ``evaluation`` in the model's folder.
        device: Device to run on: auto, cpu, cuda or mps.
        network: Custom network, ``package.module:function``, for a model that was trained with it; its code is run.
        overwrite: Whether to replace files that this command did not write.

    Returns:
        Scores of each view.
    """
    recognizer = load_recognizer(model, device=device, network=network)
    recipe = recognizer.recipe
    videos, part, digest = _test_videos(data, split, part, recipe.classes, model=model)
    check_file_name(part, what="part", source="--part")
    leaks = recognizer.learned_from(videos.videos)
    if leaks:
        raise UserError(
            f"{split or data}: {len(leaks)} of the {len(videos)} test videos were used for training "
            f"({leaks[0].key}); give the split that {model} was trained with, or other videos"
        )
    views = sampling.views_of(recipe.views, default=recipe.views)
    folder = out if out is not None else Path(model) / "evaluation"
    outputs = Outputs(
        [folder / f"{part}{end}" for end in (".json", "-predictions.npz", "-confusion.png")],
        command="ssl-video evaluate", overwrite=overwrite,
        inputs=[data, *([split] if split else []), *(video.path for video in videos.videos), *run_files(model)],
    )  # fmt: skip
    space = len(videos) * (_ROW + 4 * len(views) * len(recipe.classes)) + _PICTURE
    check_space(folder, space, what=f"the results of {len(videos):,} videos", files=3)
    flow_cache = open_flow(read.flow_cache, method=recipe.flow, views=views, of=(videos,), max_bad=read.max_bad)
    check_reader(read.reader)

    results = classify_all(
        recognizer, videos.videos, views=views, sampling=sampling, flow=flow_cache, reader=read.reader
    )
    probabilities, places, skipped = keep_readable(
        track(videos.videos, total=len(videos), what="testing"), results, total=len(videos), max_bad=read.max_bad
    )
    labels = videos.labels()[places]
    if bool(probabilities[:, 0].isnan().any(dim=1).all()):
        raise UserError(
            f"{data}: none of the {len(places)} test videos has the view {views[0]}; name another view first"
        )
    scores = {view: score_view(probabilities[:, place], labels) for place, view in enumerate(views)}
    if len(views) > 1:
        scores[FUSED] = score_view(fused(probabilities), labels)
    confusion, per_class = confusion_of(probabilities[:, 0], labels)
    result = Evaluation(
        model=model,
        model_hash=module_hash(recognizer.network),
        data=data,
        part=part,
        split=digest,
        headline=views[0],
        clips=sampling.clips,
        crops=sampling.crops,
        views=scores,
        classes=list(recipe.classes),
        per_class=per_class,
        confusion=confusion,
        skipped=skipped,
    )
    with outputs:
        folder.mkdir(parents=True, exist_ok=True)
        with open_atomic(folder / f"{part}-predictions.npz") as stream:
            np.savez(
                stream,
                probabilities=probabilities.numpy(),
                labels=labels.numpy(),
                keys=np.array([videos[place].key for place in places], dtype=np.str_),
                views=np.array(views, dtype=np.str_),
                classes=np.array(recipe.classes, dtype=np.str_),
            )
        write_atomic(folder / f"{part}-confusion.png", to_png(confusion_figure(confusion, recipe.classes)))
        write_atomic(folder / f"{part}.json", result.to_json())  # last: if it exists, the others do
    return result


def _test_videos(
    data: str, split: Path | None, part: str | None, classes: tuple[str, ...], *, model: str
) -> tuple[VideoSet, str, str]:
    """Return the test videos, the name of their part, and the hash of the split (empty without one)."""
    if split is None:
        data_videos = open_videos(data, part=part)
        strange = sorted({str(video.label) for video in data_videos.videos if video.label not in (None, *classes)})
        if strange:
            raise UserError(
                f"{data}: has videos of {len(strange)} classes that {model} was not trained on "
                f"({some_of(strange, 3)}); its classes are {some_of(classes)}"
            )
        labelled = [place for place, video in enumerate(data_videos.videos) if video.label is not None]
        if not labelled:
            raise UserError(
                f"{data}: none of its {len(data_videos)} videos has a class; expected folders of classes or a list"
            )
        labelled_videos = [data_videos[place] for place in labelled]
        return VideoSet(data_videos.name, labelled_videos, classes=classes), "all" if part is None else part, ""
    lists = read_split(split)
    if part not in (None, "test", "validation"):
        raise UserError(f"part is {part!r}; a split has the parts test and validation")
    part = part or "test"
    entries = lists.test if part == "test" else lists.validation
    if not entries:
        raise UserError(f"{split}: has no {part} videos; make a split with some, or name the other part")
    videos = select_labelled(open_videos(data), entries, lists.classes, file=split)
    if classes != lists.classes:
        raise UserError(f"{split}: its classes are not those that {model} was trained on")
    return videos, part, lists.digest

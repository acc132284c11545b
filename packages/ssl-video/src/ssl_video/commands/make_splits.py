"""`ssl-video make-splits`: what is learned from, with few labels, and what is kept for testing, as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from contrastive_core.errors import UserError
from ssl_video.data import VideoSet, open_videos
from ssl_video.data.lists import read_list
from ssl_video.data.splits import Labelled, Split, first_of_each, groups_by_class, hold_out, ranked, write_split


def make_splits(
    data: str,
    out: Path,
    *,
    fractions: tuple[float, ...] = (0.05, 0.1, 0.2),
    per_class: tuple[int, ...] = (),
    draws: int = 3,
    by: Literal["auto", "clip", "group", "block"] = "auto",
    blocks: int = 10,
    validation: float = 0.1,
    test: float = 0.2,
    train_list: Path | None = None,
    test_list: Path | None = None,
    labelled_list: Path | None = None,
    seed: int = 0,
) -> str:
    """Write split files such as ``10percent-draw0.json``, which `train` and `evaluate` take.

    Test and validation part are the same in all files of one call; draws differ in which videos keep their labels. Of
    every class ``max(1, round(fraction * n))`` of the n videos to learn from are labelled, whole groups after one
    another, the smaller choice inside the larger one of the same draw. Every file states a hash over its lists; a file
    that is there and says something else is an error.

    Args:
        data: a folder of class folders, a CSV file, or a list; see `ssl_video.data.open_videos`.
        out: folder for the files.
        fractions: of the labels of each class.
        per_class: numbers of labelled videos of each class, in files such as ``4each-draw0.json``.
        draws: files for each of them.
        by: what stays together. ``group``: the clips of one recording, from UCF-101's names or a CSV column. ``block``:
            neighbours in the order of names. ``clip``: nothing; where recordings were cut into clips this leaks.
            ``auto``: group where all videos have one, else block.
        blocks: how many blocks a class is cut into.
        validation: share of every class kept to choose settings by; 0: none.
        test: share of every class kept to the end; 0: none. Not with `test_list`.
        train_list: an official list of the videos to learn from: UCF-101's ``trainlist01.txt``, HMDB-51's folder of
            ``*_test_split1.txt`` (which holds the test list too), Kinetics' CSV, or names one a line.
        test_list: the official list of test videos.
        labelled_list: a list of the labelled videos, instead of choosing some; one file ``listed.json`` is written.
        seed: of all choices.

    Returns:
        What was written.
    """
    _check(fractions, per_class, draws=draws, blocks=blocks, validation=validation, test=test)
    videos = open_videos(data)
    by_list = None if train_list is None and test_list is None else _official(videos, train_list, test_list)
    learning, tested = by_list or (list(range(len(videos))), [])
    together = by
    if together == "auto":
        together = "group" if all(videos[i].group is not None for i in learning) else "block"
    pool = videos.subset(learning)
    classes = groups_by_class(pool, by=together, blocks=blocks)
    if by_list is None:
        classes, held = hold_out(classes, test, by=together, seed=seed, purpose="test")
        tested_pairs = _pairs(pool, held)
    else:
        tested_pairs = _pairs(videos, tested)
    classes, validated = hold_out(classes, validation, by=together, seed=seed, purpose="validation")
    train = sorted(place for groups in classes.values() for places in groups.values() for place in places)
    settings: dict[str, object] = {"data": data, "by": together, "seed": seed}
    if together == "block":
        settings["blocks"] = blocks
    kept = {"validation": _pairs(pool, validated), "test": tested_pairs}
    chosen: dict[str, tuple[list[int], dict[str, object]]] = {}
    if labelled_list is not None:
        listed = set(read_list(labelled_list, videos).places)
        keys = {videos[place].key for place in listed}
        chosen["listed"] = [place for place in train if pool[place].key in keys], {"labelled_list": labelled_list.name}
    else:
        for draw in range(draws):
            order = ranked(classes, seed=seed + draw)
            for fraction in fractions:
                name = f"{100 * fraction:g}percent-draw{draw}"
                chosen[name] = first_of_each(order, fraction=fraction), {"fraction": fraction, "draw": draw}
            for count in per_class:
                chosen[f"{count}each-draw{draw}"] = (
                    first_of_each(order, count=count),
                    {"per_class": count, "draw": draw},
                )
    lines = []
    for name, (places, how) in chosen.items():
        split = Split(
            classes=pool.classes,
            train=tuple(pool[place].key for place in train),
            labelled=_pairs(pool, places),
            settings={**settings, **how},
            **kept,
        )
        write_split(out / f"{name}.json", split)
        lines.append(f"{out / f'{name}.json'}: {len(places)} labelled of {len(train)}, sha256 {split.digest[:12]}")
    head = (
        f"{len(train)} videos of {len(pool.classes)} classes to learn from, {len(kept['validation'])} to validate on, "
        f"{len(kept['test'])} to test on; kept together by {together}"
    )
    return "\n".join([head, *lines])


def _official(videos: VideoSet, train_list: Path | None, test_list: Path | None) -> tuple[list[int], list[int]]:
    if train_list is None:
        raise UserError("test_list was given without train_list; expected both, or HMDB-51's folder as train_list")
    train = read_list(train_list, videos)
    test = train.test if test_list is None else read_list(test_list, videos).places
    return train.places, test


def _pairs(videos: VideoSet, places: Sequence[int]) -> Labelled:
    return tuple((videos[place].key, str(videos[place].label)) for place in places)


def _check(
    fractions: tuple[float, ...],
    per_class: tuple[int, ...],
    *,
    draws: int,
    blocks: int,
    validation: float,
    test: float,
) -> None:
    if any(not 0 < fraction <= 1 for fraction in fractions) or any(count < 1 for count in per_class):
        raise UserError(
            f"fractions are {fractions} and per_class {per_class}; expected shares of the labels above 0, and numbers "
            "of at least 1"
        )
    if not (fractions or per_class) or draws < 1 or blocks < 2:
        raise UserError("there is nothing to choose: expected fractions or numbers per class, draws >= 1, blocks >= 2")
    if not 0 <= validation < 1 or not 0 <= test < 1 or validation + test >= 1:
        raise UserError(
            f"validation is {validation:g} and test {test:g}; expected shares of at least 0, together less than 1"
        )

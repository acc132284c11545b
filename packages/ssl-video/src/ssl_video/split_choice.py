"""Choosing the parts of a split: by class, whole groups at a time, small choices inside larger ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Literal, TypeVar

from contrastive_core.errors import UserError
from contrastive_core.rng import derive, permutation
from ssl_video.data.video_set import VideoSet

By = Literal["clip", "group", "block"]
_T = TypeVar("_T")
Groups = dict[str, list[int]]
"""Name of a group -> places of its videos."""


def groups_by_class(videos: VideoSet, *, by: By, blocks: int = 10) -> dict[str, Groups]:
    """The videos of every class in groups that a split keeps together.

    ``clip``: every video for itself. ``group``: as the data says (UCF-101's names, a CSV column); a group that has
    videos of several classes counts in each. ``block``: the class's videos in the order of their keys, cut into
    `blocks` parts of consecutive ones, where neighbours are alike.

    Raises:
        UserError: a video without a label, or without a group where groups are asked for.
    """
    videos.labels()
    members: dict[str, list[int]] = defaultdict(list)
    for place, video in enumerate(videos.videos):
        members[str(video.label)].append(place)
    found: dict[str, Groups] = {}
    for label, places in sorted(members.items()):
        groups: Groups = defaultdict(list)
        for number, place in enumerate(places):
            groups[_group(videos, place, by, number * blocks // len(places))].append(place)
        found[label] = dict(groups)
    return found


def hold_out(
    classes: Mapping[str, Groups], share: float, *, by: By, seed: int, purpose: str
) -> tuple[dict[str, Groups], list[int]]:
    """Take whole groups out of every class until at least `share` of its videos are out.

    A group that has videos of several classes goes out of all. Blocks are taken from the end, so that as few as
    possible border on what stays; groups and clips at random.

    Returns:
        What stays, and the places of what was taken.

    Raises:
        UserError: nothing of a class would stay.
    """
    if not share:
        return dict(classes), []
    out: set[tuple[str, str]] = set()
    for label, groups in classes.items():
        names = list(groups)
        order = names[::-1] if by == "block" else _shuffled(names, derive(seed, purpose, label))
        wanted = Fraction(repr(share)) * sum(map(len, groups.values()))
        count = sum(len(groups[name]) for name in names if (_owner(by, label), name) in out)
        for name in order:
            if count < wanted and (_owner(by, label), name) not in out:
                out.add((_owner(by, label), name))
                count += len(groups[name])
    stays: dict[str, Groups] = {}
    taken: list[int] = []
    for label, groups in classes.items():
        stays[label] = {name: places for name, places in groups.items() if (_owner(by, label), name) not in out}
        taken += [place for name, places in groups.items() if name not in stays[label] for place in places]
        if not stays[label]:
            raise UserError(
                f"class {label} has {len(groups)} {by}(s), and all of them would be kept for {purpose}; expected one "
                "more to learn from. Split by clip or block, or leave the part out (0)"
            )
    return stays, sorted(taken)


def _owner(by: By, label: str) -> str:
    # A group of the data is one for all classes; blocks are counted in each class anew.
    return label if by == "block" else ""


def ranked(classes: Mapping[str, Groups], *, seed: int) -> dict[str, list[int]]:
    """The videos of every class in the order in which they are given labels: group after group, in random order.

    The first k are the choice of k videos; a smaller choice is inside a larger one.
    """
    found = {}
    for label, groups in classes.items():
        found[label] = [
            place
            for name in _shuffled(list(groups), derive(seed, "labels", label))
            for place in _shuffled(groups[name], derive(seed, "within", label, name))
        ]
    return found


def first_of_each(order: Mapping[str, list[int]], *, fraction: float | None = None, count: int = 0) -> list[int]:
    """The first `fraction` of every class's videos, at least one: ``max(1, round(fraction * n))``; or `count` of each.

    Raises:
        UserError: a class has fewer than `count`.
    """
    chosen: list[int] = []
    for label, places in order.items():
        number = count if fraction is None else max(1, round(Fraction(repr(fraction)) * len(places)))
        if number > len(places):
            raise UserError(f"class {label} has {len(places)} videos to learn from; expected at least {number}")
        chosen += places[:number]
    return sorted(chosen)


def _group(videos: VideoSet, place: int, by: By, block: int) -> str:
    video = videos[place]
    if by == "clip":
        return video.key
    if by == "block":
        return f"block {block}"
    if video.group is None:
        raise UserError(
            f"{video.path}: is of no group; expected a column `group` in the CSV, or names as UCF-101's "
            "(v_Diving_g03_c02.avi). Split by block (neighbours stay together) or by clip"
        )
    return video.group


def _shuffled(items: Iterable[_T], seed: int) -> list[_T]:
    listed = list(items)
    return [listed[i] for i in permutation(seed, len(listed)).tolist()]

"""Label fractions: class-balanced, nested, of the right size, the same for the same seed, never overwritten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from contrastive_core.errors import UserError
from ssl_vision.cli import main
from ssl_vision.commands.make_splits import LabelDrawOptions, SplitsWritten, make_splits
from ssl_vision.data import open_images
from ssl_vision.labels.choose import images_for, share_out
from ssl_vision.labels.files import read_labelled


def chosen(folder: Path, name: str, data: str = "digits") -> list[int]:
    return read_labelled(folder / name, open_images(data)).tolist()


def per_class(indices: list[int], data: str = "digits") -> list[int]:
    counts = Counter(open_images(data).labels()[indices].tolist())
    return [counts[label] for label in range(len(open_images(data).classes))]


def test_choices_are_balanced_nested_and_independent(tmp_path: Path) -> None:
    made = make_splits("digits", tmp_path, draw=LabelDrawOptions(fractions=(0.1, 0.01), per_class=(3,), draws=2))
    assert sorted(file.name for file in made.files) == sorted(
        f"{size}-draw{draw}.json" for size in ("1percent", "10percent", "3-per-class") for draw in (0, 1)
    )
    for draw in (0, 1):
        one, ten, three = (
            chosen(tmp_path, f"{size}-draw{draw}.json") for size in ("1percent", "10percent", "3-per-class")
        )
        assert (len(one), len(ten), len(three)) == (14, 143, 30)
        assert set(one) < set(ten)
        assert sorted(per_class(one)) == [1] * 6 + [2] * 4
        assert sorted(per_class(ten)) == [14] * 7 + [15] * 3
        assert per_class(three) == [3] * 10
    assert len(set(chosen(tmp_path, "10percent-draw0.json")) & set(chosen(tmp_path, "10percent-draw1.json"))) < 50
    assert "10percent-draw1.json       143  14 to 15" in str(made)


def test_files_with_the_same_images_are_noted(tmp_path: Path) -> None:
    made = make_splits("digits", tmp_path, draw=LabelDrawOptions(fractions=(0.001, 0.002, 0.1), draws=1))
    note = "note: 0.1percent-draw0 and 0.2percent-draw0 label the same samples"
    assert [line for line in str(made).splitlines() if line.startswith(note)]
    assert chosen(tmp_path, "0.1percent-draw0.json") == chosen(tmp_path, "0.2percent-draw0.json")


def test_the_seed_decides(tmp_path: Path) -> None:
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    for folder, seed in ((first, 1), (again, 1), (other, 2)):
        make_splits("digits", folder, draw=LabelDrawOptions(draws=1, seed=seed))
    name = "1percent-draw0.json"
    assert (first / name).read_bytes() == (again / name).read_bytes()
    assert chosen(first, name) != chosen(other, name)


def test_every_image_of_a_class_is_as_likely(tmp_path: Path) -> None:
    make_splits("digits", tmp_path, draw=LabelDrawOptions(fractions=(), per_class=(14,), draws=60))
    labels = open_images("digits").labels()
    zeros = torch.nonzero(labels == 0).flatten().tolist()
    seen = Counter(i for draw in range(60) for i in chosen(tmp_path, f"14-per-class-draw{draw}.json"))
    # 60 draws of 14 of 142: 5.9 expected of each; a binomial gives none of an image in one of 400 cases.
    counts = [seen[i] for i in zeros]
    assert sum(counts) == 60 * 14
    assert counts.count(0) <= 5
    assert max(counts) <= 17


def test_files_are_not_overwritten_and_none_is_written_if_one_cannot_be(tmp_path: Path) -> None:
    make_splits("digits", tmp_path, draw=LabelDrawOptions(draws=1, fractions=(0.1,)))
    make_splits("digits", tmp_path, draw=LabelDrawOptions(draws=1, fractions=(0.1,)))
    with pytest.raises(UserError, match=r"10percent-draw0.json already exists"):
        make_splits("digits", tmp_path, draw=LabelDrawOptions(draws=1, seed=1))
    assert [file.name for file in tmp_path.iterdir()] == ["10percent-draw0.json"]


def test_validation_images_are_nobody_s_labelled_images(tmp_path: Path) -> None:
    make_splits("digits", tmp_path, draw=LabelDrawOptions(fractions=(0.5, 1.0), draws=2, validation_fraction=0.2))
    held_out = chosen(tmp_path, "validation.json")
    assert len(held_out) == int(0.2 * 1433)
    shares = torch.tensor(per_class(held_out)) / torch.bincount(open_images("digits").labels())
    assert shares.min() > 0.19
    assert shares.max() < 0.21
    for draw in (0, 1):
        everything = chosen(tmp_path, f"100percent-draw{draw}.json")
        assert sorted(everything + held_out) == list(range(1433))
        assert len(chosen(tmp_path, f"50percent-draw{draw}.json")) == len(everything) // 2


def test_images_of_a_new_class_change_no_other_choice(
    write: Callable[[dict[str, Image.Image | str]], Path], noise: Callable[[int], Image.Image]
) -> None:
    files = {f"photos/{name}/{i}.png": noise(i) for name in ("bee", "cat") for i in range(8)}
    root = write(files)
    before = make_splits(
        str(root / "photos"), root / "before", draw=LabelDrawOptions(fractions=(), per_class=(2,), draws=1)
    )
    write({f"photos/ape/{i}.png": noise(i) for i in range(4)})
    after = make_splits(
        str(root / "photos"), root / "after", draw=LabelDrawOptions(fractions=(), per_class=(2,), draws=1)
    )
    old, new = (next(iter(made.files.values())).images for made in (before, after))
    assert len(old) == 4
    assert [image for image in new if image[1] != "ape"] == list(old)


def test_a_single_class_is_refused(write, noise, tmp_path: Path) -> None:
    data = write({f"photos/cat/{number}.png": noise(number) for number in range(4)}) / "photos"
    with pytest.raises(UserError, match=r"photos: found labelled images of one class only \(cat\), expected at least"):
        make_splits(str(data), tmp_path / "labels", draw=LabelDrawOptions(fractions=(0.5,), draws=1))
    assert not (tmp_path / "labels").exists()


def test_official_sizes() -> None:
    """The lists published with SimCLR: 12,811 and 128,116 images, 12 or 13 and 128 or 129 of every class."""
    sizes = {f"n{i:08d}": 732 + (i * 7919) % 569 for i in range(1000)}
    for fraction, total, low in ((0.01, 12_811, 12), (0.1, 128_116, 128)):
        assert images_for(fraction, 1_281_167) == total
        counts = share_out(total, sizes, balance="equal", at_least={}, seed=0)
        assert sum(counts.values()) == total
        assert set(counts.values()) == {low, low + 1}


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.sampled_from(["equal", "proportional"]), st.data())
def test_shares(sizes: list[int], balance: str, data: st.DataObject) -> None:
    by_class = {str(i): size for i, size in enumerate(sizes)}
    small = data.draw(st.integers(len(sizes), sum(sizes)))
    large = data.draw(st.integers(small, sum(sizes)))
    first = share_out(small, by_class, balance=balance, at_least={}, seed=3)
    second = share_out(large, by_class, balance=balance, at_least=first, seed=3)
    for counts, total in ((first, small), (second, large)):
        assert sum(counts.values()) == total
        assert all(1 <= counts[name] <= size for name, size in by_class.items())
    assert all(first[name] <= second[name] for name in by_class)
    if balance == "equal":
        unfilled = [first[name] for name, size in by_class.items() if first[name] < size]
        assert not unfilled or max(first.values()) - min(unfilled) <= 1
    elif min(small * size for size in sizes) >= sum(sizes):  # no class is lifted to its one image
        assert all(abs(first[name] - small * size / sum(sizes)) < 1 for name, size in by_class.items())


def test_unreadable_images_are_not_labelled(tmp_path: Path) -> None:
    """Their places go to the next images of their class, and they are named."""
    for label in "ab":
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(tmp_path / "photos" / label / f"{number}.png")
    data = str(tmp_path / "photos")

    def names(made: SplitsWritten) -> dict[str, set[str]]:
        return {file.name: {name for name, _ in listed.images} for file, listed in made.files.items()}

    whole = make_splits(data, tmp_path / "whole", draw=LabelDrawOptions(fractions=(1.0,), per_class=(2, 5), draws=1))
    two, five, every = (names(whole)[f"{size}-draw0.json"] for size in ("2-per-class", "5-per-class", "100percent"))
    assert len(every) == 12
    assert whole.unreadable == ()
    bad = min(two)
    (tmp_path / "photos" / bad).write_bytes(b"")
    made = make_splits(data, tmp_path / "made", draw=LabelDrawOptions(fractions=(1.0,), per_class=(2, 5), draws=1))
    other_class = {name for name in every if name[0] != bad[0]}
    assert names(made)["100percent-draw0.json"] == every - {bad}
    assert names(made)["5-per-class-draw0.json"] == (every - {bad} - other_class) | (five & other_class)
    replaced = names(made)["2-per-class-draw0.json"]
    assert len(replaced) == 4
    assert two - {bad} < replaced < names(made)["5-per-class-draw0.json"]
    (reason,) = made.unreadable
    assert bad in reason
    assert f"left out 1 unreadable image:\n  {reason}" in str(made)
    held = make_splits(
        data, tmp_path / "held", draw=LabelDrawOptions(fractions=(1.0,), draws=1, validation_fraction=0.5)
    )
    assert not any(bad in listed for listed in names(held).values())
    assert len(set.union(*names(held).values())) == 11
    with pytest.raises(UserError, match=r"number per class in 6-per-class-draw0.json: \w \(5\), 1 image could not be"):
        make_splits(data, tmp_path / "six", draw=LabelDrawOptions(fractions=(), per_class=(6,), draws=1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fractions": (1.5,)}, "fractions contains 1.5; expected shares above 0 and up to 1"),
        ({"fractions": (), "per_class": (0,)}, "per_class contains 0; expected numbers of at least 1"),
        ({"fractions": ()}, "nothing to label"),
        ({"draws": 0}, "nothing to label"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1; expected at least 0 and less than 1"),
        ({"fractions": (), "per_class": (200,)}, r"in 200-per-class-draw0.json: 0 \(142\)"),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_splits("digits", tmp_path / "out", draw=LabelDrawOptions(**arguments))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_the_command_takes_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["make-splits", "digits", str(tmp_path), "--fractions", "[0.05,0.5]", "--per_class", "[1]", "--draws", "1"]
    assert main(words) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "1-per-class-draw0.json", "50percent-draw0.json", "5percent-draw0.json",
    ]  # fmt: skip
    assert "images  per class" in capsys.readouterr().out

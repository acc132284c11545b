"""The largest slice size that an effort allows."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_medseg.commands.make_splits import make_splits
from ssl_medseg.datasets import DataOptions
from ssl_medseg.phantom import write_phantom
from ssl_medseg.preprocessing import PreprocessingOptions
from ssl_medseg.training.data import open_training_data


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    write_phantom(folder / "data", patients=3, frames=1, size=96)
    make_splits(str(folder / "data"), folder / "splits", n_labelled=(1,), draws=1, n_validation=0, n_test=0)
    return folder


def test_larger_data_are_resampled_to_the_limit(place: Path) -> None:
    split = next((place / "splits").glob("*.json"))

    def sizes(largest: int, options: PreprocessingOptions = PreprocessingOptions()) -> tuple[int, int]:  # noqa: B008
        seen = open_training_data(
            str(place / "data"), split, opening=DataOptions(), preprocessing=options, unlabelled=False, cache=None,
            largest=largest,
        )  # fmt: skip
        limited = any(f"limits slices to {largest} pixels" in note for note in seen.notes)
        assert limited == (max(seen.preprocessing.size) == largest and not options.image_size)
        return seen.preprocessing.size

    whole = max(sizes(0))
    assert whole > 64
    assert max(sizes(64)) == 64
    assert max(sizes(64, PreprocessingOptions(image_size=whole))) == whole, "what is asked for is not limited"
    assert max(sizes(whole + 32)) == whole

"""Pairs of slices, pseudo-labels of unlabelled cases, and the records of a round."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from contrastive_core.errors import UserError
from ssl_medseg.evaluation.metrics import class_dice
from ssl_medseg.preprocessing.cases import PreparedCase
from ssl_medseg.selftraining.contrast import draw_pairs, usable
from ssl_medseg.selftraining.options import ContrastOptions, PseudoLabelOptions
from ssl_medseg.selftraining.rounds import (
    UNUSED,
    PseudoCase,
    check_round,
    describe,
    make_pseudo_labels,
    pseudo_file,
    read_pseudo_labels,
    read_rounds,
    score_withheld_labels,
    write_pseudo_labels,
    write_round,
)

STRUCTURES = ("ring", "core")


def drawn(variant: Any, pairs: int = 10) -> list[tuple[int, int]]:
    """Draw pairs of slices; labelled ones have numbers 0 .. 99, unlabelled ones start at 100."""
    found = draw_pairs(
        torch.arange(100), torch.arange(100, 900), pairs=pairs, variant=variant,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return list(zip(found.first.tolist(), found.second.tolist(), strict=True))


def test_inter_pairs_are_those_of_the_released_code() -> None:
    pairs = drawn("inter", 20)
    assert len(pairs) == 20
    for ten in (pairs[:10], pairs[10:]):
        kinds = Counter(("l" if a < 100 else "u", "l" if b < 100 else "u", a == b) for a, b in ten)
        assert kinds == {("l", "l", True): 2, ("l", "u", False): 3, ("u", "u", True): 2, ("u", "u", False): 3}
        (l0, _), (l1, u1), (l2, _), (l3, u3), (l4, u4), (u0, _), (a, b), (u2, _), (c, d), (e, f) = ten
        assert (a, b, c, d, e, f) == (u0, u1, u2, u3, u3, u4)
        assert len({l0, l1, l2, l3, l4}) > 1
    assert drawn("inter") == pairs[:10]


def test_intra_pairs_join_each_slice_with_itself() -> None:
    pairs = drawn("intra")
    assert all(a == b for a, b in pairs)
    assert [a < 100 for a, _ in pairs] == [True] * 5 + [False] * 5


def test_usable_slices_show_every_class_or_else_any_structure() -> None:
    presence = torch.tensor([[1, 1, 1], [1, 0, 1], [1, 0, 0], [1, 1, 1]], dtype=torch.bool)
    assert usable(presence).tolist() == [0, 3]
    assert usable(presence[1:3]).tolist() == [0]
    assert usable(presence[2:3]).tolist() == []
    with pytest.raises(UserError, match="no unlabelled slice contains a structure"):
        draw_pairs(torch.arange(3), torch.arange(0), pairs=10, variant="inter", generator=torch.Generator())
    with pytest.raises(UserError, match="pairs is 15"):
        draw_pairs(torch.arange(3), torch.arange(3), pairs=15, variant="inter", generator=torch.Generator())


class Reader(nn.Module):
    """Predicts class k with probability c/10 where a pixel has intensity k + c/10; background in the last row."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        number, sure = images.floor().long(), images.frac().clamp(0.01)
        share = ((1 - sure) / 2).expand(-1, 3, -1, -1).scatter(1, number, sure)
        share[:, 0, -1], share[:, 1:, -1] = 1.0, 1e-6
        logits: Tensor = share.log() * self.one
        return logits


def case(name: str, rows: list[list[float]]) -> PreparedCase:
    """A case with one slice."""
    geometry: Any = None
    return PreparedCase(name, name, torch.tensor(rows)[None, None], None, geometry)


def made(options: PseudoLabelOptions, *cases: PreparedCase) -> list[PseudoCase]:
    return make_pseudo_labels(Reader(), cases, options)


ROWS = [[0.9, 1.8, 2.7], [1.6, 2.5, 0.9], [0.9, 0.9, 0.9]]


def test_pseudo_labels_are_the_likeliest_classes_above_the_threshold() -> None:
    [found] = made(PseudoLabelOptions(), case("a", ROWS))
    assert found.label.tolist() == [[[0, 1, 2], [1, 2, 0], [0, 0, 0]]]
    assert found.label.dtype == torch.uint8
    [found] = made(PseudoLabelOptions(threshold=0.65), case("a", ROWS))
    assert found.label.tolist() == [[[0, 1, 2], [UNUSED, UNUSED, 0], [0, 0, 0]]]
    assert found.predicted.tolist() == [[[0, 1, 2], [1, 2, 0], [0, 0, 0]]]


def test_the_most_confident_share_of_every_class_over_all_cases() -> None:
    others = [[0.9, 1.9, 2.9], [1.95, 2.95, 0.9], [0.9, 0.9, 0.9]]
    first, second = made(PseudoLabelOptions(class_share=0.5), case("a", ROWS), case("b", others))
    # Of the background, the last rows are surer than the rest.
    assert (first.label[0] == UNUSED).tolist() == [[True] * 3, [True] * 3, [False] * 3]
    assert (second.label[0] == UNUSED).tolist() == [[True, False, False], [False, False, True], [False] * 3]


def test_views_that_disagree_leave_pixels_and_cases_out() -> None:
    # The network sees nothing in the last row: mirrored up-down, that is the first.
    [found] = made(PseudoLabelOptions(predictions=3, agreement=1.0), case("a", ROWS))
    assert (found.label[0] == UNUSED).tolist() == [[False, True, True], [False] * 3, [False] * 3]
    assert found.view_dice is not None
    # Left-right agrees fully; up-down: ring 1 of (2 + 1) / 2, core likewise, so 2/3.
    assert found.view_dice == pytest.approx((1 + 1 + 2 / 3 + 2 / 3) / 4)
    same = [[0.9, 0.9, 0.9], [1.9, 2.9, 0.9], [0.9, 0.9, 0.9]]
    first, second = made(PseudoLabelOptions(predictions=3, case_dice=0.9), case("a", ROWS), case("b", same))
    assert (first.used, second.used, second.view_dice) == (False, True, 1.0)
    with pytest.raises(
        UserError, match=r"no usable pixel in 1 unlabelled case: pseudo.case_dice is 0.9 and .* views is 0.83"
    ):
        made(PseudoLabelOptions(predictions=3, case_dice=0.9), case("a", ROWS))


def test_the_crf_cleans_a_speck_and_what_it_would_erase_stays() -> None:
    image = torch.full((12, 12), 0.9)
    image[3:9, 3:9], image[5, 5] = 1.9, 2.6
    image[11] = 0.9
    [plain] = made(PseudoLabelOptions(), case("a", image.tolist()))
    assert (plain.predicted == 2).sum() == 1
    [refused] = made(PseudoLabelOptions(crf="official-prostate"), case("a", image.tolist()))
    assert refused.rejected == 1, "its only pixel of class 2 would go"
    assert torch.equal(refused.predicted, plain.predicted)


def test_pseudo_labels_come_back_from_their_file(tmp_path: Path) -> None:
    found = made(PseudoLabelOptions(threshold=0.65), case("b", ROWS), case("a", ROWS))
    write_pseudo_labels(tmp_path / "pseudo" / "x.safetensors", found)
    back = read_pseudo_labels(tmp_path / "pseudo" / "x.safetensors")
    assert [c.name for c in back] == ["a", "b"]
    assert torch.equal(back[1].label, found[0].label)
    assert torch.equal(back[1].predicted, found[0].predicted)
    (tmp_path / "pseudo" / "x.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="cannot be read as pseudo-labels"):
        read_pseudo_labels(tmp_path / "pseudo" / "x.safetensors")


def test_dice_of_label_maps() -> None:
    a, b = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 1, 1, 0])
    for scores in (class_dice(a, b, classes=4), class_dice(a.numpy(), b.numpy(), classes=4)):
        np.testing.assert_allclose(scores, [0.5, 0.8, 0.0, np.nan])


def a_round(predicted: list[list[int]], *, last: list[list[int]] | None = None, **options: Any) -> Any:
    """A round of two cases; the labelled case is half background, a quarter ring and a quarter core."""

    def cases(rows: list[list[int]]) -> list[PseudoCase]:
        labels = [torch.tensor(row, dtype=torch.uint8)[None, None] for row in rows]
        return [
            PseudoCase(f"case{i}", torch.where(x == 9, UNUSED, x), torch.where(x == 9, 0, x), rejected=i)
            for i, x in enumerate(labels)
        ]

    return describe(
        1, cases(predicted), None if last is None else cases(last), step=4, made_by="the segmenter",
        structures=STRUCTURES, labelled=[torch.tensor([[[0, 0, 1, 2]]])], options=PseudoLabelOptions(**options),
    )  # fmt: skip


def test_a_round_in_numbers(tmp_path: Path) -> None:
    found = a_round([[0, 1, 2, 9], [0, 0, 1, 9]], last=[[0, 1, 1, 0], [0, 0, 1, 0]])
    assert (found.cases, found.used, found.slices, found.coverage) == (2, 2, 2, 0.75)
    assert found.area == {"ring": 0.25, "core": 0.125}
    assert found.labelled_area == {"ring": 0.25, "core": 0.25}
    assert found.covered == {"ring": 1.0, "core": 1.0}
    assert found.missing == {"ring": 0, "core": 1}
    assert found.change == 0.125
    assert found.dice_to_last == {"ring": pytest.approx(0.8), "core": 0.0}
    assert found.crf == {"setting": "off", "refused_slices": 1}
    assert found.warnings == []
    assert found.metrics == {
        "round": 1, "pseudo_coverage": 0.75, "pseudo_area_ring": 0.25, "pseudo_area_core": 0.125, "pseudo_change": 0.125
    }  # fmt: skip
    write_round(tmp_path, found)
    assert read_rounds(tmp_path) == [found]
    assert "2 of 2 volumes" in str(found)


def test_vanished_and_flooding_classes_stop_the_run() -> None:
    vanished = a_round([[0, 1, 1, 0], [0, 0, 0, 0]])
    assert vanished.warnings == [
        "core is nearly missing (0.00% of the pixels of the pseudo-labels, 25.00% in the labelled cases)"
    ]
    with pytest.raises(
        UserError, match=r"round 1 have collapsed: core is .* the previous round is in old.*--pseudo.guard warn"
    ):
        check_round(vanished, PseudoLabelOptions(), model=Path("old"))
    check_round(vanished, PseudoLabelOptions(guard="warn"), model=None)
    assert a_round([[0, 1, 1, 0], [0, 0, 0, 0]], guard="off").warnings == []
    flooding = a_round([[2, 2, 2, 2], [2, 2, 2, 1]], most_area=3.0)
    assert flooding.warnings[0].startswith("core is over-represented (87.50% of the pixels")
    assert a_round([[0, 1, 2, 0], [0, 0, 0, 0]]).warnings == [], "12.5 % of 25 % is above a fifth"


def test_withheld_truth_is_added_to_the_rounds(tmp_path: Path) -> None:
    found = a_round([[0, 1, 2, 9], [0, 0, 1, 9]])
    write_round(tmp_path, found)
    pseudo = [
        PseudoCase(f"case{i}", x, x) for i, x in enumerate(torch.tensor([[[[0, 1, 2, 0]]], [[[0, 0, 1, 0]]]]).byte())
    ]
    write_pseudo_labels(pseudo_file(tmp_path, 1), pseudo)
    truth = {"case0": torch.tensor([[[0, 1, 1, 0]]]).byte()}
    assert score_withheld_labels(tmp_path, STRUCTURES, truth) == [pytest.approx((2 / 3 + 0) / 2)]
    [back] = read_rounds(tmp_path)
    assert back.withheld == {
        "cases": 1, "mean": pytest.approx(1 / 3), "structures": {"ring": pytest.approx(2 / 3), "core": 0.0},
        "by_case": {"case0": pytest.approx(1 / 3)},
    }  # fmt: skip
    assert score_withheld_labels(tmp_path, STRUCTURES, {}) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda: PseudoLabelOptions(threshold=2), "pseudo.threshold is 2; expected a fraction"),
        (lambda: PseudoLabelOptions(class_share=0), "pseudo.class_share is 0"),
        (lambda: PseudoLabelOptions(agreement=1.0), "but pseudo.predictions is 1; set --pseudo.predictions 3"),
        (lambda: ContrastOptions(weight=-1), "contrast has weight -1"),
        (lambda: ContrastOptions(pairs=5), "contrast.pairs is 5; expected a multiple of 10"),
    ],
)
def test_wrong_settings(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        options()

"""Averaged teachers, TubeMix, directed classes and feature agreement, each against its formula."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ssl_video import MultiviewPseudoLabel
from ssl_video.models.networks import SmallSlow
from ssl_video.mvpl.losses import feature_distance
from ssl_video.mvpl.mixing import draw_mix, tube_mix

VIEWS = ("rgb", "tg")
K = 4


def pictures(n: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {view: torch.rand(n, 2, 3, 12, 12, generator=generator) * 255 for view in VIEWS}


def network() -> SmallSlow:
    torch.manual_seed(3)
    net = SmallSlow(K, width=4, dropout=0.0)
    nn.init.normal_(net.fc.weight, std=2.0)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm3d):
            nn.init.ones_(part.weight)
    return net


def logits_of(net: nn.Module, batches: dict[str, Tensor]) -> np.ndarray:
    """[M, N, K] of every view, normalised by its own batch, as split batch norm does in training."""
    found = []
    for view in VIEWS:
        fresh = copy.deepcopy(net).train()
        with torch.no_grad():
            found.append(fresh((batches[view].permute(0, 2, 1, 3, 4) / 255 - 0.45) / 0.225).double().numpy())
    return np.stack(found)


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


LABELLED, LABELS = pictures(3, 0), torch.tensor([0, 3, 1])
WEAK, STRONG = pictures(5, 1), pictures(5, 2)


def joined(*batches: dict[str, Tensor]) -> dict[str, Tensor]:
    return {view: torch.cat([batch[view] for batch in batches]) for view in VIEWS}


def test_the_average_makes_the_pseudo_labels() -> None:
    net = network()
    start = {name: value.detach().clone() for name, value in net.named_parameters()}
    method = MultiviewPseudoLabel(net, classes=K, threshold=0.5, ema_decay=0.75, teacher="average")
    expected = dict(start)
    for number in range(3):
        with torch.no_grad():
            for value in net.parameters():
                value.add_(0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(number)))
        method.update()
        now = {name: value.detach() for name, value in net.named_parameters()}
        # The first average is the network itself, as torch's AveragedModel has it.
        expected = now if not number else {name: 0.75 * expected[name] + 0.25 * now[name] for name in now}
        expected = {name: value.clone() for name, value in expected.items()}
    plain = network()  # without split batch norm: the same parameters under the same names
    names = [name for name, _ in plain.named_parameters()]
    assert len(names) == len(expected)
    teacher = network()
    with torch.no_grad():
        for (name, value), mean in zip(teacher.named_parameters(), expected.values(), strict=True):
            assert name in names
            value.copy_(mean)
    q = softmax(logits_of(teacher, WEAK)).mean(axis=0)
    assert abs(q - softmax(logits_of(network(), WEAK)).mean(axis=0)).max() > 0.05  # another teacher, other labels
    found = method(LABELLED, LABELS, WEAK, STRONG)
    labels, sure = q.argmax(axis=-1), q.max(axis=-1) >= 0.5
    assert found.diagnostics is not None
    assert found.diagnostics.confidence.item() == pytest.approx(q.max(axis=-1).mean(), abs=1e-4)
    student = network()
    with torch.no_grad():
        for value, now in zip(student.parameters(), net.parameters(), strict=True):
            value.copy_(now)
    p = softmax(logits_of(student, joined(LABELLED, STRONG)))[:, 3:]
    losses = [-np.log(p[v, n, labels[n]]) * sure[n] for v in range(2) for n in range(5)]
    assert found.unlabelled.item() == pytest.approx(sum(losses) / 10, rel=1e-3)
    found.loss.backward()
    assert all(value.grad is None for value in method.tested.parameters())


@pytest.mark.parametrize("settings", [{"ema_decay": 0.0}, {"ema_decay": 0.9, "weak_batch": "joint"}])
def test_an_average_that_is_not_kept_cannot_teach(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="teacher is average"):
        MultiviewPseudoLabel(network(), classes=K, threshold=0.5, teacher="average", **settings)  # type: ignore[arg-type]


def test_one_box_for_all_frames() -> None:
    batch = torch.rand(5, 3, 3, 10, 14)
    mix = draw_mix(5, height=10, width=14, alpha=1.0, seed=1, step=2)
    assert sorted(mix.partners.tolist()) == list(range(5))
    assert not (mix.partners == torch.arange(5)).any()
    mixed = tube_mix(batch, mix, where=torch.tensor([True, True, True, False, True]))
    for n in range(5):
        top, bottom, left, right = mix.boxes[n].tolist()
        assert 0 <= top <= bottom <= 10
        assert 0 <= left <= right <= 14
        assert mix.share[n].item() == pytest.approx(1 - (bottom - top) * (right - left) / 140)
        for t in range(3):
            for y in range(10):
                for x in range(14):
                    inside = top <= y < bottom and left <= x < right and n != 3
                    source = int(mix.partners[n]) if inside else n
                    assert torch.equal(mixed[n, t, :, y, x], batch[source, t, :, y, x])
    again = draw_mix(5, height=10, width=14, alpha=1.0, seed=1, step=2)
    assert all(torch.equal(a, b) for a, b in zip(mix, again, strict=True))
    assert not torch.equal(mix.boxes, draw_mix(5, height=10, width=14, alpha=1.0, seed=1, step=3).boxes)


def test_boxes_follow_the_beta_distribution() -> None:
    shares = torch.cat([draw_mix(64, height=200, width=200, alpha=4.0, seed=0, step=s).share for s in range(40)])
    assert shares.mean().item() == pytest.approx(0.5, abs=0.02)
    assert shares.var().item() == pytest.approx(1 / (4 * (2 * 4 + 1)), abs=0.003)  # of Beta(4, 4)


def test_a_single_clip_is_not_mixed() -> None:
    mix = draw_mix(1, height=8, width=8, alpha=1.0, seed=0)
    batch = torch.rand(1, 2, 3, 8, 8)
    assert mix.share.tolist() == [1.0]
    assert torch.equal(tube_mix(batch, mix), batch)


@pytest.mark.parametrize("soft", [False, True])
def test_mixed_clips_learn_mixed_targets(soft: bool) -> None:
    q = softmax(logits_of(network(), WEAK)).mean(axis=0)
    threshold = float(np.sort(q.max(axis=-1))[1:3].mean())  # two of the five clips do not count
    sure = q.max(axis=-1) >= threshold
    method = MultiviewPseudoLabel(network(), classes=K, threshold=threshold, mix=1.0, seed=5, soft=soft)
    found = method(LABELLED, LABELS, WEAK, STRONG, step=7)
    mix = draw_mix(5, height=12, width=12, alpha=1.0, seed=5, step=7)
    one_hot = q if soft else np.eye(K)[q.argmax(axis=-1)]
    strong = {view: tube_mix(STRONG[view], mix) for view in VIEWS}
    log_p = np.log(softmax(logits_of(network(), joined(LABELLED, strong)))[:, 3:])
    total = 0.0
    for v in range(2):
        for n in range(5):
            share, partner = float(mix.share[n]), int(mix.partners[n])
            target = share * sure[n] * one_hot[n] + (1 - share) * sure[partner] * one_hot[partner]
            total -= (target * log_p[v, n]).sum()
    assert found.unlabelled.item() == pytest.approx(total / 10, rel=1e-4)


def test_directed_classes_do_not_count_where_time_runs_otherwise() -> None:
    q = softmax(logits_of(network(), WEAK)).mean(axis=0)
    labels = q.argmax(axis=-1)
    directed = int(labels[0])
    reordered = torch.tensor([True, False, True, True, False])
    with pytest.warns(UserWarning, match="twice chance"):
        method = MultiviewPseudoLabel(network(), classes=K, threshold=0.0, directed=[directed])
    found = method(LABELLED, LABELS, WEAK, STRONG, reordered=reordered)
    p = softmax(logits_of(network(), joined(LABELLED, STRONG)))[:, 3:]
    counts = [not (reordered[n] and labels[n] == directed) for n in range(5)]
    assert not all(counts)
    losses = [-np.log(p[v, n, labels[n]]) * counts[n] for v in range(2) for n in range(5)]
    assert found.unlabelled.item() == pytest.approx(sum(losses) / 10, rel=1e-4)
    with pytest.raises(ValueError, match="numbers from 0 to 3"):
        MultiviewPseudoLabel(network(), classes=K, threshold=0.5, directed=[4])


def test_features_of_frames_follow_those_of_the_gradient() -> None:
    net = network()
    method = MultiviewPseudoLabel(net, classes=K, threshold=0.99, agreement_weight=2.0)
    found = method(LABELLED, LABELS, WEAK, STRONG)

    def features(view: str) -> Tensor:
        fresh = network().train()
        clips = (joined(LABELLED, STRONG)[view].permute(0, 2, 1, 3, 4) / 255 - 0.45) / 0.225
        return fresh.stages(F.relu(fresh.norm(fresh.stem(clips)))).mean(dim=(2, 3, 4))

    rgb, tg = (features(view).detach().double().numpy() for view in VIEWS)
    cosine = (rgb * tg).sum(axis=1) / (np.linalg.norm(rgb, axis=1) * np.linalg.norm(tg, axis=1))
    assert found.feature_distance is not None
    assert found.feature_distance.item() == pytest.approx((1 - cosine).mean(), rel=1e-4)
    expected = found.supervised + found.unlabelled + 2 * found.feature_distance
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    labels_alone = method(LABELLED, LABELS)
    assert labels_alone.feature_distance is not None
    assert labels_alone.loss.item() == pytest.approx(
        (labels_alone.supervised + 2 * labels_alone.feature_distance).item(), rel=1e-6
    )


def test_agreement_sends_no_gradient_through_the_gradient_view() -> None:
    student, teacher = (torch.randn(4, 6, generator=torch.Generator().manual_seed(s)).requires_grad_() for s in (0, 1))
    feature_distance(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


def test_agreement_compares_the_clips_that_have_both_views() -> None:
    def distance(labelled: dict[str, Tensor], labels: Tensor, has: Tensor | None) -> float:
        net = network().eval()  # batch statistics would mix clips
        method = MultiviewPseudoLabel(net, classes=K, threshold=0.99, agreement_weight=1.0).eval()
        given = None if has is None else {"tg": has}
        found = method(labelled, labels, labelled_present=given).feature_distance
        assert found is not None
        return found.item()

    has = torch.arange(len(LABELS)) != 1
    few = {view: clips[has] for view, clips in LABELLED.items()}
    assert distance(LABELLED, LABELS, has) == pytest.approx(distance(few, LABELS[has], None), rel=1e-5)
    assert distance(LABELLED, LABELS, has) != pytest.approx(distance(LABELLED, LABELS, None), rel=1e-5)
    assert distance(LABELLED, LABELS, torch.zeros_like(has)) == 0


def test_agreement_needs_both_views() -> None:
    with pytest.raises(ValueError, match="rgb and tg"):
        MultiviewPseudoLabel(network(), classes=K, views=("rgb",), threshold=0.9, agreement_weight=1.0)


def test_agreement_without_effect_is_refused() -> None:
    """Re-entrant checkpointing gives features without a gradient; a layer may not see the clips, or see them twice."""

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.reentrant = network(), False

        def forward(self, clips: Tensor) -> Tensor:
            clips = clips.requires_grad_(torch.is_grad_enabled())
            return checkpoint(self.network, clips, use_reentrant=self.reentrant)  # type: ignore[no-any-return]

    own = Checkpointed()
    method = MultiviewPseudoLabel(own, classes=K, threshold=0.99, agreement_weight=1.0)
    plain = MultiviewPseudoLabel(network(), classes=K, threshold=0.99, agreement_weight=1.0)
    for one in (method, plain):
        one(LABELLED, LABELS, WEAK, STRONG).loss.backward()
    for a, b in zip(own.network.parameters(), plain.network.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)
    own.reentrant = True
    with pytest.raises(ValueError, match=r"have no gradient; expected gradient checkpointing with use_reentrant=False"):
        method(LABELLED, LABELS, WEAK, STRONG)

    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.other = network(), nn.Linear(2, 2)

        def forward(self, clips: Tensor) -> Tensor:
            return self.network(clips)  # type: ignore[no-any-return]

    unused = MultiviewPseudoLabel(Unused(), classes=K, threshold=0.99, agreement_weight=1.0)
    with pytest.raises(
        ValueError, match=r"was given nothing for \d+ clips; expected features .* Pass agreement_weight=0"
    ):
        unused(LABELLED, LABELS)
    usual = MultiviewPseudoLabel(Unused(), classes=K, threshold=0.99)
    assert usual.agreement_weight == 1
    with pytest.warns(UserWarning, match="the features of rgb and tg are not compared: the last linear layer"):
        found = usual(LABELLED, LABELS)
    assert (usual.agreement_weight, found.feature_distance) == (0, None)
    assert usual(LABELLED, LABELS).loss == found.loss == found.supervised


def test_agreement_is_the_default_with_both_views_and_a_linear_layer() -> None:
    assert MultiviewPseudoLabel(network(), classes=K, threshold=0.5).agreement_weight == 1
    assert MultiviewPseudoLabel(network(), classes=K, threshold=0.5, views=("rgb", "flow")).agreement_weight == 0
    method = MultiviewPseudoLabel(network(), classes=K, threshold=0.5)
    assert list(method.state_dict()) == list(
        MultiviewPseudoLabel(network(), classes=K, threshold=0.5, agreement_weight=0.0).state_dict()
    )


def test_options_off_change_nothing() -> None:
    """State dict and loss are those of the method without options."""
    with torch.no_grad():
        plain = MultiviewPseudoLabel(network(), classes=K, threshold=0.5)(LABELLED, LABELS, WEAK, STRONG)
        off = MultiviewPseudoLabel(network(), classes=K, threshold=0.5, mix=0.0, agreement_weight=1.0)(
            LABELLED, LABELS, WEAK, STRONG, reordered=torch.ones(5, dtype=torch.bool)
        )
    assert plain.loss.item() == off.loss.item()

"""Which pseudo-labels count: FreeMatch and SoftMatch against their formulas in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_video import MultiviewPseudoLabel
from ssl_video.models.networks import SmallSlow
from ssl_video.mvpl.losses import Targets, pseudo_label_loss
from ssl_video.mvpl.state import AdaptiveThreshold, DistributionAlignment, SoftWeights, ViewWeights, diagnose
from ssl_video.views import normalize

K = 4


def drawn(steps: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(steps):
        q = (2 * torch.randn(2, 5, K, generator=generator)).softmax(dim=-1)
        found.append((q, torch.rand(2, 5, generator=generator) > 0.2))
    return found


def test_thresholds_are_those_of_freematch() -> None:
    module = AdaptiveThreshold(K, decay=0.9)
    tau, p = 1 / K, np.full(K, 1 / K)
    for q, usable in drawn():
        rows = q[usable].numpy().astype(np.float64)
        tau = 0.9 * tau + 0.1 * rows.max(axis=1).mean()
        p = 0.9 * p + 0.1 * rows.mean(axis=0)
        assert np.allclose(module(q, usable), tau * p / p.max(), atol=1e-6)
    before = module.state_dict()["mean"].clone()
    module.eval()(*drawn()[0])
    assert torch.equal(before, module.mean)


def test_weights_are_those_of_softmatch() -> None:
    module = SoftWeights(K, decay=0.9)
    mu, variance = 1 / K, 1.0
    for q, usable in drawn():
        largest = q.numpy().astype(np.float64).max(axis=-1)
        mu = 0.9 * mu + 0.1 * largest[usable.numpy()].mean()
        variance = 0.9 * variance + 0.1 * largest[usable.numpy()].var(ddof=1)
        expected = np.exp(-(np.minimum(largest - mu, 0) ** 2) / (2 * variance / 4))
        assert np.allclose(module(q, usable), expected, atol=1e-6)


@pytest.mark.parametrize("created", [torch.float32, torch.bfloat16])
def test_averages_stay_in_float32_in_a_method_in_half_precision(created: torch.dtype) -> None:
    states = []
    for precision in (torch.float32, torch.bfloat16):
        torch.set_default_dtype(created if precision == torch.bfloat16 else torch.float32)
        try:
            modules = nn.ModuleList([AdaptiveThreshold(K), SoftWeights(K), DistributionAlignment(K)])
            modules.append(ViewWeights("adaptive", ("rgb", "tg")))
        finally:
            torch.set_default_dtype(torch.float32)
        modules.to(precision)
        for q, usable in drawn(30):
            for module in modules[:3]:
                module(q, usable)
            modules[2].count(q[0].argmax(dim=-1))
            modules[3].remember(q[:, 0, 0].to(precision))
        states.append(modules.state_dict())
    for name, value in states[0].items():
        assert torch.allclose(states[1][name], value, rtol=1e-2 if name == "3.losses" else 1e-6), name
    assert nn.ModuleList([SoftWeights(K)]).double().state_dict()["0.confidence"].dtype == torch.float64


def test_loss_takes_thresholds_by_class_and_weights() -> None:
    q, usable = drawn(1)[0]
    logits = torch.randn(2, 5, K, generator=torch.Generator().manual_seed(1))
    thresholds, weights = torch.tensor([0.9, 0.1, 0.6, 0.4]), torch.rand(2, 5)
    found = pseudo_label_loss(logits, Targets(q, usable), threshold=thresholds, weights=weights)
    total = 0.0
    for v in range(2):
        for n in range(5):
            label = int(q[v, n].argmax())
            if usable[v, n] and q[v, n, label] >= thresholds[label]:
                total += float(weights[v, n]) * float(-logits[v, n].log_softmax(dim=0)[label])
    assert found.loss.item() == pytest.approx(total / 10, rel=1e-5)


@pytest.mark.parametrize("select", ["freematch", "softmatch"])
def test_the_method_trains_and_resumes_with_its_averages(select: str) -> None:
    torch.manual_seed(0)
    network = SmallSlow(K, width=4, dropout=0.0)
    nn.init.normal_(network.fc.weight)
    method = MultiviewPseudoLabel(network, classes=K, views=("rgb", "tg"), threshold=0.99, select=select)  # type: ignore[arg-type]
    batch = {view: torch.rand(4, 2, 3, 12, 12) * 255 for view in ("rgb", "tg")}
    losses = method(batch, [0, 1, 2, 3], batch, batch)
    assert losses.unlabelled > 0
    losses.loss.backward()
    state = method.state_dict()
    name = "adaptive.confidence" if select == "freematch" else "soft_weights.confidence"
    assert state[name] != 1 / K
    with pytest.raises(ValueError, match="expected fixed, freematch or softmatch"):
        MultiviewPseudoLabel(network, classes=K, threshold=0.9, select="some")  # type: ignore[arg-type]


def test_videos_of_unknown_class_count_in_no_accuracy() -> None:
    q = torch.eye(K)[None, :3].repeat(2, 1, 1) * 0.8 + 0.05
    present = torch.ones(2, 3, dtype=torch.bool)
    loss = pseudo_label_loss(q.log(), Targets(q, present), threshold=0.5)
    there = {"present": present, "usable": present}
    found = diagnose(q.log(), loss, **there, views=("rgb", "tg"), truth=torch.tensor([0, 3, -1]))
    assert found.accuracy is not None
    assert found.accuracy.item() == found.accuracy_all.item() == 0.5  # type: ignore[union-attr]
    assert found.accuracy_by_view["rgb"].item() == 0.5
    unknown = diagnose(q.log(), loss, **there, views=("rgb", "tg"), truth=torch.full((3,), -1))
    for accuracy in (unknown.accuracy, unknown.accuracy_all, *unknown.accuracy_by_view.values()):
        assert accuracy is not None
        assert accuracy.isnan()


def test_targets_that_do_not_exist_count_in_no_diagnostic() -> None:
    method = MultiviewPseudoLabel(nn.Flatten(), classes=3, views=("rgb", "tg"), target="cross", bn="joint")
    pictures = {view: torch.rand(4, 1, 3, 1, 1) * 255 for view in method.views}
    present = {"tg": torch.tensor([True, True, True, False])}
    truth = torch.zeros(4, dtype=torch.int64)  # class 0, which zeros in place of logits predict
    found = method(pictures, truth, pictures, pictures, present=present, truth=truth).diagnostics
    by_view = [normalize(pictures[view]).flatten(1).softmax(dim=1) for view in method.views]
    targets = torch.cat([by_view[1][:3], by_view[0][:3]])  # of rgb and of tg: each from the other view
    assert found is not None
    assert found.confidence.item() == pytest.approx(targets.amax(dim=1).mean().item(), rel=1e-5)
    right = (targets.argmax(dim=1) == 0).float().mean().item()
    assert found.accuracy_all is not None
    assert found.accuracy_all.item() == pytest.approx(right)


def test_thresholds_follow_the_confidence_unless_one_is_given_or_there_is_one_view() -> None:
    def adapts(**settings: object) -> bool:
        network = SmallSlow(K, width=4, dropout=0.0)
        return MultiviewPseudoLabel(network, classes=K, **settings).adaptive is not None  # type: ignore[arg-type]

    assert adapts()
    assert not adapts(threshold=0.6)
    assert not adapts(views=("rgb",), threshold=None, select="softmatch")
    with pytest.warns(UserWarning, match=r"threshold 0\.4 is below twice chance"):
        assert not adapts(views=("rgb",))

"""The method in a user's loop, against an independent FixMatch and the formulas of the spec."""

from __future__ import annotations

import copy
import types
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from contrastive_core.errors import UserError
from ssl_video import MultiviewPseudoLabel, recalibrate_bn
from ssl_video.models import NetworkOptions, build_network
from ssl_video.models.networks import SmallSlow, ViewBatchNorm
from ssl_video.mvpl.method import Losses
from ssl_video.views import normalize


def pictures(n: int, *views: str, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {view: torch.rand(n, 2, 3, 12, 12, generator=generator) * 255 for view in views}


def small(classes: int = 4, *, dropout: float = 0.0) -> SmallSlow:
    torch.manual_seed(3)
    net = SmallSlow(classes, width=4, dropout=dropout)
    nn.init.normal_(net.fc.weight, std=0.5)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm3d):
            nn.init.ones_(part.weight)
    return net


def taken(batch: Tensor) -> Tensor:
    return (batch.permute(0, 2, 1, 3, 4) / 255 - 0.45) / 0.225


def fixmatch_step(net: nn.Module, x: Tensor, y: Tensor, weak: Tensor, strong: Tensor, threshold: float) -> Tensor:
    """FixMatch as in its code: one batch of labelled, weak and strong clips; hard labels; the mean over all clips."""
    logits = net(torch.cat([x, weak, strong]))
    labelled, rest = logits[: len(x)], logits[len(x) :]
    weak_logits, strong_logits = rest.chunk(2)
    probabilities = torch.softmax(weak_logits.detach(), dim=-1)
    best, label = torch.max(probabilities, dim=-1)
    mask = best.ge(threshold).float()
    return F.cross_entropy(labelled, y) + (F.cross_entropy(strong_logits, label, reduction="none") * mask).mean()


@pytest.mark.parametrize("threshold", [0.0, 0.6, 0.9])
def test_one_view_is_fixmatch(threshold: float) -> None:
    labelled, weak, strong = (pictures(n, "rgb", seed=n) for n in (3, 5, 6))
    strong = {"rgb": strong["rgb"][:5]}
    y = torch.tensor([0, 3, 1])
    ours, theirs = small().train(), small().train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a threshold below chance
        method = MultiviewPseudoLabel(
            ours, classes=4, views=("rgb",), target="self", threshold=threshold, weak_batch="joint"
        )
    found = method(labelled, y, weak, strong)
    expected = fixmatch_step(
        theirs, *(taken(b) for b in (labelled["rgb"],)), y, taken(weak["rgb"]), taken(strong["rgb"]), threshold
    )
    assert found.loss.item() == pytest.approx(expected.item(), abs=1e-6)
    found.loss.backward()
    expected.backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-6)
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_several_views_are_the_sums_of_the_spec() -> None:
    views = ("rgb", "flow", "tg")
    labelled, weak, strong = pictures(2, *views), pictures(4, *views, seed=1), pictures(4, *views, seed=2)
    y = torch.tensor([2, 0])
    net, other = small().train(), small().train()
    method = MultiviewPseudoLabel(
        net, classes=4, views=views, threshold=0.6, unlabelled_weight=0.7, bn="joint", agreement_weight=0.0
    )
    found = method(labelled, y, weak, strong, truth=torch.tensor([0, 1, 2, 3]))
    # Weak clips on their own, by batch statistics; then labelled and strong ones in one batch.
    with torch.no_grad():
        p = copy.deepcopy(other)(torch.cat([taken(weak[v]) for v in views])).softmax(-1).view(3, 4, 4)
    q = p.mean(dim=0)
    best, label = q.max(dim=-1)
    logits = other(torch.cat([torch.cat([taken(labelled[v]), taken(strong[v])]) for v in views])).view(3, 6, 4)
    supervised = sum(F.cross_entropy(logits[v, :2], y) for v in range(3)) / 3
    each = torch.stack([F.cross_entropy(logits[v, 2:], label, reduction="none") for v in range(3)])
    unlabelled = ((best > 0.6) * each).sum() / (3 * 4)
    assert found.supervised.item() == pytest.approx(supervised.item(), abs=1e-5)
    assert found.unlabelled.item() == pytest.approx(unlabelled.item(), abs=1e-5)
    assert found.loss.item() == pytest.approx((supervised + 0.7 * unlabelled).item(), abs=1e-5)
    assert 0 < (best > 0.6).sum() < 4, "the threshold decides nothing here"
    told = found.diagnostics
    assert told.coverage.item() == pytest.approx((best > 0.6).float().mean().item())
    assert told.histogram.tolist() == [3.0 * ((label == k) & (best > 0.6)).sum().item() for k in range(4)]
    votes = p.argmax(-1)
    same = [(votes[a] == votes[b]).float().mean().item() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert told.agreement.item() == pytest.approx(sum(same) / 3)
    right = label == torch.arange(4)
    assert told.accuracy_all.item() == pytest.approx(right.float().mean().item())
    assert told.accuracy.item() == pytest.approx(right[best > 0.6].float().mean().item())
    assert told.accuracy_by_view["tg"].item() == pytest.approx((votes[2] == torch.arange(4)).float().mean().item())
    assert set(told.scalars()) >= {"coverage", "agreement", "confidence", "pseudo_accuracy", "pseudo_accuracy_rgb"}
    # Running statistics are those of the second pass alone.
    for a, b in zip(net.buffers(), other.buffers(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_split_norm_trains_views_apart() -> None:
    views = ("rgb", "tg")
    net, apart = small().train(), small().train()
    method = MultiviewPseudoLabel(net, classes=4, views=views, threshold=0.5, bn="split", agreement_weight=0.0)
    labelled = pictures(4, *views)
    labelled["tg"] = labelled["tg"] / 8 + 100
    y = torch.tensor([0, 1, 2, 3])
    found = method(labelled, y)
    expected = (
        F.cross_entropy(apart(taken(labelled["rgb"])), y) + F.cross_entropy(apart(taken(labelled["tg"])), y)
    ) / 2
    assert found.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert any(isinstance(part, ViewBatchNorm) for part in method.tested.modules())
    assert found.diagnostics is None


def test_warm_up_has_labels_only() -> None:
    labelled, weak = pictures(2, "rgb"), pictures(4, "rgb", seed=1)
    method = MultiviewPseudoLabel(small(), classes=4, views=("rgb",), threshold=0.5, warmup_steps=3)
    y = torch.tensor([0, 1])
    assert method(labelled, y, weak, weak, step=2).diagnostics is None
    assert method(labelled, y, weak, weak, step=3).diagnostics is not None


def test_a_missing_view_counts_nowhere() -> None:
    views = ("rgb", "audio")
    labelled, weak, strong = pictures(2, *views), pictures(3, *views, seed=1), pictures(3, *views, seed=2)
    present = {"audio": torch.tensor([True, False, True])}
    there = {"audio": torch.tensor([False, True])}
    y = torch.tensor([0, 1])
    method = MultiviewPseudoLabel(small(), classes=4, views=views, threshold=0.5)
    state = copy.deepcopy(method.state_dict())
    first = method(labelled, y, weak, strong, present=present, labelled_present=there)
    after = copy.deepcopy(method.state_dict())
    for batch in (weak, strong):
        batch["audio"][1] = 255 - batch["audio"][1]
    labelled["audio"][0] = 3.0
    method.load_state_dict(state)
    second = method(labelled, y, weak, strong, present=present, labelled_present=there)
    assert torch.equal(first.loss, second.loss)
    assert all(torch.equal(value, after[name]) for name, value in method.state_dict().items())
    method.load_state_dict(state)
    assert not torch.equal(method(labelled, y, weak, strong, present=present).loss, first.loss)


def test_dropout_does_not_touch_the_pseudo_labels() -> None:
    weak = pictures(8, "rgb", seed=1)
    method = MultiviewPseudoLabel(small(dropout=0.9), classes=4, views=("rgb",), threshold=0.5)
    labels = []
    for seed in range(3):
        torch.manual_seed(seed)
        labels.append(method(pictures(2, "rgb"), torch.tensor([0, 1]), weak, weak).diagnostics.confidence)
    assert torch.equal(labels[0], labels[1])
    assert torch.equal(labels[0], labels[2])


def test_moving_average_follows() -> None:
    net = small()
    method = MultiviewPseudoLabel(net, classes=4, views=("rgb",), threshold=0.5, ema_decay=0.75)
    assert method.tested is not net
    method.update()
    start = net.fc.bias.detach().clone()
    with torch.no_grad():
        net.fc.bias += 1
    method.update()
    assert torch.allclose(method.tested.fc.bias, start + 0.25)
    assert not any(p.requires_grad for p in method.average.parameters())
    plain = MultiviewPseudoLabel(small(), classes=4, views=("rgb",), threshold=0.5)
    assert plain.tested is plain.network


def test_the_default_for_two_classes_is_not_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    MultiviewPseudoLabel(small(), classes=2, views=("rgb",), threshold=0.8)
    assert not [warning for warning in recwarn if "chance" in str(warning.message)]
    with pytest.warns(UserWarning, match="chance"):
        MultiviewPseudoLabel(small(), classes=2, views=("rgb",), threshold=0.7)


def test_a_low_threshold_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"below twice chance \(0\.5 for 4 classes\)"):
        MultiviewPseudoLabel(small(), classes=4, threshold=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MultiviewPseudoLabel(small(), classes=4, threshold=0.5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"classes": 1}, "classes is 1"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"target": "mean"}, "target is mean"),
        ({"views": ("rgb", "rgb")}, "each once"),
        ({"fusion": [1.0]}, "2 weights"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"temperature": 0.0}, "temperature"),
        ({"unlabelled_weight": -1.0}, "unlabelled_weight is -1.0"),
        ({"mean": [123.675, 116.28, 103.53]}, "mean is .*; expected .* on the scale 0 to 1"),
        ({"std": 0.0}, "std 0.0; expected"),
        ({"std": [0.2, 0.2]}, "expected one number or three"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MultiviewPseudoLabel(small(), **{"classes": 4, "threshold": 0.5, **settings})


def test_wrong_batches_are_refused() -> None:
    method = MultiviewPseudoLabel(small(), classes=4, threshold=0.5)
    with pytest.raises(ValueError, match="also expected tg"):
        method(pictures(2, "rgb"), torch.tensor([0, 1]))
    both = pictures(2, "rgb", "tg")
    with pytest.raises(ValueError, match="differ in number"):
        method(both, torch.tensor([0, 1]), pictures(3, "rgb", "tg"), pictures(4, "rgb", "tg"))


@pytest.mark.parametrize("name", ["small_slow", "slow_r50", "x3d_xs", "r3d_18"])
def test_networks_give_logits_in_both_modes(name: str) -> None:
    torch.manual_seed(0)
    net = build_network(NetworkOptions(name, width=8 if name in ("small_slow", "slow_r50") else 0), 5)
    for shape in ((2, 3, 4, 32, 32), (2, 3, 5, 40, 48)):
        assert net(torch.randn(shape)).shape == (2, 5)
        with torch.no_grad():
            assert (net.eval()(torch.randn(shape)).sum(dim=1) - 1).abs().max() > 0.1  # no probabilities
        net.train()


def test_the_slow_pathway_is_the_specified_one() -> None:
    net = build_network(NetworkOptions("slow_r50"), 400)
    assert sum(p.numel() for p in net.parameters()) == 32_454_096
    kernels = [tuple(part.kernel_size) for part in net.modules() if isinstance(part, nn.Conv3d)]
    assert kernels[0] == (1, 7, 7)
    assert kernels.count((3, 1, 1)) == 6 + 3  # first convolution of each block of the last two stages
    assert all(part.stride[0] == 1 for part in net.modules() if isinstance(part, nn.Conv3d))


def test_fabric_trains_it_as_it_is() -> None:
    from lightning_fabric import Fabric

    labelled, weak, strong = (pictures(n, "rgb", "tg", seed=n) for n in (2, 3, 4))
    strong = {view: batch[:3] for view, batch in strong.items()}
    y = torch.tensor([0, 1])
    results = []
    for with_fabric in (False, True):
        net = small()
        method = MultiviewPseudoLabel(net, classes=4, threshold=0.5, ema_decay=0.9)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        called, backward = method, torch.Tensor.backward
        if with_fabric:
            fabric = Fabric(accelerator="cpu", devices=1)
            called, optimizer = fabric.setup(method, optimizer)
            backward = fabric.backward
        for _ in range(2):
            losses = called(labelled, y, weak, strong)
            optimizer.zero_grad()
            backward(losses.loss)
            optimizer.step()
            method.update()
        results.append((losses.loss.detach(), losses.diagnostics.scalars()["coverage"], method.tested.fc.weight))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


class Wrapped(nn.Module):
    """A user's network whose output holds more than the logits."""

    def __init__(self, form: str, classes: int = 4) -> None:
        super().__init__()
        self.form, self.network = form, small(classes)

    def forward(self, clips: Tensor) -> object:
        logits = self.network(clips)
        return {
            "mapping": lambda: {"loss": None, "logits": logits},
            "object": lambda: types.SimpleNamespace(logits=logits),
            "tuple": lambda: (logits, "features"),
            "other mapping": lambda: {"features": logits},
            "text": lambda: "logits",
            "time": lambda: logits[:, None].expand(-1, 3, -1),
            "probabilities": lambda: logits.exp() / logits.exp().sum(dim=1, keepdim=True),
            "nothing": lambda: None,
            "written sigmoid": lambda: 1 / (1 + (-logits).exp()),
        }[self.form]()


def step(network: nn.Module, labels: object = (0, 1), **changes: object) -> Tensor:
    settings: dict[str, object] = {"classes": 4, "views": ("rgb", "tg"), "threshold": 0.9, **changes}
    method = MultiviewPseudoLabel(network, **settings)  # type: ignore[arg-type]
    batch = {view: pictures(2, view)[view] for view in ("rgb", "tg")}
    return method(batch, labels, batch, batch, step=0).loss


@pytest.mark.parametrize("form", ["mapping", "object", "tuple"])
def test_outputs_that_hold_logits_are_understood(form: str) -> None:
    torch.manual_seed(0)
    network = Wrapped(form)
    assert torch.equal(step(network), step(network.network))


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (Wrapped("other mapping"), "returned a dict with the entries features, without logits"),
        (Wrapped("text"), "returned a str"),
        (Wrapped("time"), r"returned \[4, 3, 4\]; expected logits \[4, 4\]"),
        (Wrapped("probabilities"), "returned probabilities"),
        (Wrapped("nothing"), "returned a NoneType, without logits"),
        (small(400), r"returned \[4, 400\]; expected logits \[4, 4\] for classes=4"),
    ],
    ids=["mapping", "text", "time", "probabilities", "nothing", "400"],
)
def test_outputs_that_hold_none_are_refused(network: nn.Module, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        step(network)


@pytest.mark.parametrize("bn", ["split", "joint"])
@pytest.mark.parametrize(
    "last",
    [
        nn.Sigmoid(),
        nn.Softmax(dim=1),
        nn.Sequential(nn.Unflatten(1, (3, 1, 1, 1)), nn.Sigmoid(), nn.AdaptiveAvgPool3d(1), nn.Flatten()),
        nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Sigmoid(), nn.Flatten()),
    ],
    ids=["sigmoid", "softmax", "pooled sigmoid", "reshaped sigmoid"],
)
def test_an_activation_at_the_end_is_refused_for_few_classes(last: nn.Module, bn: str) -> None:
    with pytest.raises(UserError, match=r"the network ends in a (sigmoid|softmax).*; expected logits .* for classes=3"):
        step(nn.Sequential(small(3), last), classes=3, bn=bn)


def test_an_activation_at_the_end_is_refused_under_autocast_and_after_the_warm_up() -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(UserError, match="the network ends in a sigmoid"):
        step(nn.Sequential(small(), nn.Sigmoid()))
    with pytest.raises(UserError, match="the network ends in a sigmoid"):
        step(nn.Sequential(small(), nn.Sigmoid()), warmup_steps=1)


@pytest.mark.parametrize("options", [{"warmup_steps": 2}, {"mix": 1.0}, {"target": "random"}], ids=str)
def test_options_that_depend_on_the_step_need_it(options: dict[str, object]) -> None:
    both, y = pictures(2, "rgb", "tg"), torch.tensor([0, 1])
    method = MultiviewPseudoLabel(small(), classes=4, threshold=0.9, **options)
    with pytest.raises(ValueError, match="step was not given; expected the number of the step"):
        method(both, y, both, both)
    assert method(both, y, both, both, step=2).diagnostics is not None


def test_an_unknown_operation_between_0_and_1_is_refused_for_many_classes_only() -> None:
    step(Wrapped("written sigmoid", 4))
    with pytest.raises(UserError, match=r"returned 320 values between 0 and 1, as after a sigmoid; expected logits"):
        step(Wrapped("written sigmoid", 40), classes=40)


@pytest.mark.parametrize("classes", [2, 3, 40])
def test_logits_of_a_linear_layer_may_lie_between_0_and_1(classes: int) -> None:
    network = small(classes)
    nn.init.uniform_(network.fc.weight, 0.0, 1e-3)
    nn.init.constant_(network.fc.bias, 0.5)
    step(network, classes=classes)
    nn.init.zeros_(network.fc.weight)
    nn.init.constant_(network.fc.bias, 1 / classes)  # rows that sum to 1
    step(network, classes=classes)


def test_a_scaled_sigmoid_is_no_probability() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = small(3)

        def forward(self, clips: Tensor) -> Tensor:
            return 8 * self.network(clips).sigmoid()

    step(Scaled(), classes=3)


def test_labels_may_be_a_list_and_must_be_classes() -> None:
    network = small()
    assert torch.equal(step(network, [0, 1]), step(network, torch.tensor([0, 1])))
    for wrong, said in (
        ([0, 4], "from 0 to 4; expected classes from 0 to 3"),
        ([0.0, 1.0], "float32"),
        ([0], r"\[1\]"),
        ([0, None], "labels are no numbers"),
    ):
        with pytest.raises(ValueError, match=said):
            step(network, wrong)


def test_pictures_on_another_scale_are_refused() -> None:
    method = MultiviewPseudoLabel(small(), classes=4, views=("rgb",), threshold=0.9)
    good = pictures(2, "rgb")["rgb"]
    for wrong in (good / 255, (good / 255 - 0.45) / 0.225):
        with pytest.raises(ValueError, match="expected the scale 0 to 255"):
            MultiviewPseudoLabel(small(), classes=4, views=("rgb",), threshold=0.9)({"rgb": wrong}, [0, 1])
    method({"rgb": good}, [0, 1])
    method({"rgb": torch.zeros_like(good)}, [0, 1])  # a black clip is no other scale


def test_synchronised_batch_norm_is_split_by_views() -> None:
    network = nn.SyncBatchNorm.convert_sync_batchnorm(small())
    method = MultiviewPseudoLabel(network, classes=4, views=("rgb", "tg"), threshold=0.9, bn="split")
    split = [part for part in method.network.modules() if isinstance(part, ViewBatchNorm)]
    assert split
    assert all(isinstance(norm, nn.SyncBatchNorm) for part in split for norm in part.norms.values())


def test_recalibration_of_a_split_network_measures_its_first_view() -> None:
    torch.manual_seed(0)
    method = MultiviewPseudoLabel(small(), classes=4, views=("rgb", "tg"), threshold=0.9, bn="split")
    batches = [torch.randn(3, 3, 3, 16, 16) + 2]
    named, unnamed = copy.deepcopy(method.tested), method.tested
    assert recalibrate_bn(unnamed, batches) == recalibrate_bn(named, batches, view="rgb") == 3
    assert all(torch.equal(a, b) for a, b in zip(unnamed.buffers(), named.buffers(), strict=True))


def test_mean_and_std_may_differ_by_channel() -> None:
    x = pictures(1, "rgb")["rgb"]
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    by_hand = torch.stack([(x[:, :, c] / 255 - mean[c]) / std[c] for c in range(3)], dim=1)
    assert torch.allclose(normalize(x, mean=mean, std=std), by_hand)
    assert torch.equal(normalize(x, mean=(0.4,) * 3, std=(0.2,) * 3), normalize(x, mean=0.4, std=0.2))


class Own(nn.Module):
    """A user's network with gradient checkpointing, dropout outside of modules, or a softmax for testing."""

    def __init__(self, *, reentrant: bool | None = None, dropout: float = 0.0, softmax: bool = False) -> None:
        super().__init__()
        self.network, self.reentrant, self.dropout, self.softmax = small(), reentrant, dropout, softmax

    def forward(self, clips: Tensor) -> Tensor:
        clips = clips.requires_grad_(torch.is_grad_enabled())
        logits = (
            self.network(clips)
            if self.reentrant is None
            else checkpoint(self.network, clips, use_reentrant=self.reentrant)
        )
        logits = F.dropout(logits, self.dropout, self.training)
        return logits.softmax(dim=1) if self.softmax and not self.training else logits


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("missing", [False, True])
def test_gradient_checkpointing_changes_no_gradient(reentrant: bool, missing: bool) -> None:
    batches = [pictures(n, "rgb", "tg", seed=n) for n in (3, 4, 5)]
    batches[2] = {view: batch[:4] for view, batch in batches[2].items()}
    present = {"tg": torch.tensor([True, False, not missing, True])}
    gradients = []
    for kind in (None, reentrant):
        method = MultiviewPseudoLabel(Own(reentrant=kind), classes=4, threshold=0.5, agreement_weight=0.0)
        for y in (torch.tensor([0, 1, 2]), torch.tensor([3, 1, 2])):  # the second with gradient accumulation
            method(batches[0], y, *batches[1:], present=present).loss.backward()
        gradients.append([p.grad for p in method.network.parameters()])
        assert all(part.layout is None for part in method.network.modules() if isinstance(part, ViewBatchNorm))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_dropout_outside_of_modules_does_not_touch_the_pseudo_labels() -> None:
    weak = pictures(8, "rgb", "tg", seed=1)
    found = []
    for dropout in (0.0, 0.9):
        method = MultiviewPseudoLabel(Own(dropout=dropout), classes=4, threshold=0.5)
        losses = method(pictures(2, "rgb", "tg"), torch.tensor([0, 1]), weak, weak)
        found.append(losses.diagnostics.confidence)
        assert all(part.training for part in method.network.modules())
    assert torch.equal(*found)


def test_a_softmax_in_evaluation_mode_is_refused() -> None:
    weak = pictures(4, "rgb", "tg", seed=1)
    method = MultiviewPseudoLabel(Own(softmax=True), classes=4, threshold=0.5)
    with pytest.raises(UserError, match="logits in training mode, but probabilities in evaluation mode"):
        method(pictures(2, "rgb", "tg"), torch.tensor([0, 1]), weak, weak)


@pytest.mark.parametrize("options", [{}, {"select": "freematch", "align": True, "fusion": "adaptive", "mix": 1.0}])
def test_the_loss_of_an_empty_batch_is_0(options: dict[str, object]) -> None:
    def losses(few: int, many: int) -> Losses:
        method = MultiviewPseudoLabel(small(), classes=4, threshold=0.5, **options)
        weak, strong = (pictures(many, "rgb", "tg", seed=seed) for seed in (1, 2))
        found = method(pictures(few, "rgb", "tg"), torch.arange(few), weak, strong, step=0)
        found.loss.backward()
        assert all(value.isfinite().all() for value in method.state_dict().values())
        return found

    assert losses(3, 0).unlabelled == 0
    # The losses of the others are those of a batch norm by view, which the missing clips do not enter.
    method = MultiviewPseudoLabel(small(), classes=4, threshold=0.5)
    torch.testing.assert_close(
        losses(3, 0).loss, method(pictures(3, "rgb", "tg"), torch.arange(3)).loss, rtol=1e-6, atol=0
    )
    nothing = losses(0, 4)
    assert nothing.supervised == 0
    assert nothing.loss.isfinite()


def test_values_that_are_not_finite_do_not_stay_in_the_averages() -> None:
    options = {"select": "freematch", "align": True, "fusion": "adaptive"}
    method = MultiviewPseudoLabel(small(), classes=4, threshold=0.5, **options)
    labelled, weak = pictures(2, "rgb", "tg"), pictures(4, "rgb", "tg", seed=1)
    broken = {view: batch.clone() for view, batch in weak.items()}
    broken["rgb"][1, 0, 0, 0, 0] = torch.nan
    y = torch.tensor([0, 1])
    method(labelled, y, broken, weak)
    method({view: batch[1:3] for view, batch in broken.items()}, y, weak, weak)
    assert all(part.isfinite().all() for part in (method.weights(), method.alignment.mean, method.adaptive.mean))


def test_networks_that_classify_frames_need_joint_batch_norm() -> None:
    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())

        def forward(self, clips: Tensor) -> Tensor:
            return self.network(clips.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(clips), -1)).mean(dim=1)

    with pytest.raises(UserError, match=r"got 8 rows for 4 clips.*Use bn=joint"):
        step(Frames())
    assert step(Frames(), bn="joint").isfinite()


@pytest.mark.parametrize("network", [torch.float32, torch.float64])
@pytest.mark.parametrize("given", [torch.uint8, torch.float16, torch.float32, torch.float64])
def test_pictures_and_networks_may_have_any_precision(given: torch.dtype, network: torch.dtype) -> None:
    whole = {view: batch.round() for view, batch in pictures(2, "rgb", "tg").items()}  # exact in every type
    losses = []
    for kind in (given, torch.float32):
        method = MultiviewPseudoLabel(small().to(network), classes=4, threshold=0.5)
        batch = {view: x.to(kind) for view, x in whole.items()}
        losses.append(method(batch, [0, 1], batch, batch).loss)
    assert losses[0].dtype == network
    assert torch.allclose(*losses)


def test_truth_and_reordered_may_be_lists_and_must_fit() -> None:
    method = MultiviewPseudoLabel(small(), classes=4, threshold=0.5, directed=[0])
    both = pictures(2, "rgb", "tg")
    listed = method(both, [0, 1], both, both, truth=[1, 3], reordered=[True, False])
    given = method(both, [0, 1], both, both, truth=torch.tensor([1, 3]), reordered=torch.tensor([True, False]))
    assert torch.equal(listed.loss, given.loss)
    for wrong, said in (
        ({"truth": [1]}, r"truth is \[1\]; expected \[2\]"),
        ({"reordered": torch.ones(3).bool()}, r"reordered is \[3\]; expected \[2\]"),
        ({"present": {"audio": [True, True]}}, "present names audio; expected views among rgb, tg"),
    ):
        with pytest.raises(ValueError, match=said):
            method(both, [0, 1], both, both, **wrong)


def test_batches_of_another_form_are_refused() -> None:
    method = MultiviewPseudoLabel(small(), classes=4, threshold=0.5)
    both, y = pictures(2, "rgb", "tg"), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="weak clips were given alone"):
        method(both, y, both)
    with pytest.raises(ValueError, match=r"of rgb are \[2, 3, 2, 12, 12\]; expected \[N, T, 3, H, W\]"):
        method({view: batch.transpose(1, 2) for view, batch in both.items()}, y)
    with pytest.raises(ValueError, match=r"of tg are \[1, 2, 3, 12, 12\].*as many and as large as those of rgb"):
        method({"rgb": both["rgb"], "tg": both["tg"][:1]}, y)
    with pytest.raises(ValueError, match=r"are \[2, 3, 8, 8\] and \[2, 3, 12, 12\]; expected clips of one length"):
        method({view: batch[..., :8, :8] for view, batch in both.items()}, y, both, both)
    with pytest.raises(ValueError, match=r"present of tg is \[1\]; expected \[2\]"):
        method(both, y, labelled_present={"tg": [True]})
    more = {**both, "audio": both["rgb"]}  # views that the method does not use
    assert method(more, y, both, both, labelled_present={"tg": [True, False]}).loss.isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_default_dtype_makes_no_difference(dtype: torch.dtype) -> None:
    networks = [small(), small()]
    networks[1].load_state_dict(networks[0].state_dict())
    clips, strong = pictures(4, "rgb", "tg"), pictures(4, "rgb", "tg", seed=1)
    expected = MultiviewPseudoLabel(networks[0], classes=4, fusion=(0.3, 0.7))(clips, [0, 1, 2, 3], clips, strong)
    torch.set_default_dtype(dtype)
    try:
        found = MultiviewPseudoLabel(networks[1], classes=4, fusion=(0.3, 0.7))(clips, [0, 1, 2, 3], clips, strong)
    finally:
        torch.set_default_dtype(torch.float32)
    for name, value in found.scalars().items():
        assert torch.equal(value, expected.scalars()[name]), name

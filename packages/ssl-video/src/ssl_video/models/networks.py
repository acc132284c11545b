"""Build the available networks by name, with batch normalisation for several views.

Batch statistics are separate for each view, or joint for all views and then recalibrated for one view.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from contrastive_core.errors import UserError
from contrastive_core.training.model_code import import_function
from ssl_video.views import check_normalization

NetworkName = Literal[
    "slow_r50",
    "small_slow",
    "x3d_xs",
    "x3d_s",
    "r3d_18",
    "r2plus1d_18",
    "slowfast_r50",
    "slowfast_r50_mm",
    "i3d_r50_mm",
    "r2plus1d_r50",
    "csn_r101",
    "csn_r50_mm",
    "csn_r152_mm",
    "mvit_b",
    "mvit_v2_s",
]
NETWORKS: tuple[NetworkName, ...] = get_args(NetworkName)

_X3D = {"x3d_xs": (4, 160), "x3d_s": (13, 160)}
_FIXED = {"mvit_b": (16, 224), "mvit_v2_s": (16, 224)}
"""Frames and side of the clips for networks with one embedding per position."""


@dataclass(frozen=True)
class NetworkOptions:
    """Network and normalisation.

    Attributes:
        name: Name of the network, such as small_slow (for CPUs), slow_r50, x3d_s or r3d_18 (the page on training lists
            all); or a custom network as ``package.module:function``, a function that is called with the number of
            classes.
        width: Channels after the stem of ``slow_r50`` (64 in the paper) and ``small_slow``; 0 for 64 and 16.
        dropout: Dropout before the last layer; not applied to custom networks.
        mean: Mean of the normalisation of pictures in [0, 1]: one number or three.
        std: Standard deviation of the normalisation: one number or three.

    ===================  ==================================================  =======================================
    name                 network                                             designed for (frames x stride, size)
    ===================  ==================================================  =======================================
    ``small_slow``       the Slow pathway in 10 layers, for CPUs             any
    ``slow_r50``         Slow pathway of SlowFast, ResNet-50 (PyTorchVideo)  8 x 8, 224 pixels
    ``slowfast_r50``     SlowFast, ResNet-50 (PyTorchVideo)                  32 x 2, 224; Slow sees every fourth frame
    ``slowfast_r50_mm``  the same with the lateral connections of mmaction2  32 x 2, 224
    ``x3d_xs``           X3D-XS (PyTorchVideo)                               4 x 12, 160
    ``x3d_s``            X3D-S (PyTorchVideo)                                13 x 6, 160
    ``i3d_r50_mm``       I3D, ResNet-50, with the strides of mmaction2       32 x 2, 224
    ``r2plus1d_r50``     R(2+1)D, ResNet-50 (PyTorchVideo)                   16 x 4, 224
    ``csn_r101``         CSN, ResNet-101 (PyTorchVideo)                      32 x 2, 224
    ``csn_r50_mm``       CSN, ResNet-50, with the batch norm of mmaction2    32 x 2, 224
    ``csn_r152_mm``      the same with ResNet-152                            32 x 2, 224
    ``mvit_b``           MViT-B (PyTorchVideo)                               16 x 4, 224; no others
    ``mvit_v2_s``        MViTv2-S (torchvision)                              16 x 4, 224; no others
    ``r3d_18``           3-D ResNet-18 (torchvision)                         16 x 2, 112
    ``r2plus1d_18``      R(2+1)D-18 (torchvision)                            16 x 2, 112
    ===================  ==================================================  =======================================

    All except ``mvit_b`` and ``mvit_v2_s`` accept clips of any length and size.
    """

    name: str = "slow_r50"
    width: int = 0
    dropout: float = 0.5
    mean: tuple[float, ...] = (0.45,)
    std: tuple[float, ...] = (0.225,)

    def __post_init__(self) -> None:
        if self.name not in NETWORKS and not self.is_own:
            raise UserError(
                f"network.name is {self.name!r}; expected one of {', '.join(NETWORKS)}, or package.module:function"
            )
        try:
            check_normalization(self.mean, self.std)
        except ValueError as error:
            raise UserError(f"network: {error}") from error
        if self.width < 0 or (self.width and self.name not in ("slow_r50", "small_slow")):
            raise UserError(
                f"network.width is {self.width} for {self.name}; expected 0, because only slow_r50 and small_slow "
                "accept a width"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"network.dropout is {self.dropout}; expected at least 0 and less than 1")

    @property
    def is_own(self) -> bool:
        """Whether it is a custom network, ``package.module:function``."""
        module, _, function = self.name.partition(":")
        return function.isidentifier() and all(part.isidentifier() for part in module.split("."))


_SLOW = 4
"""Frames of the Fast pathway per frame of the Slow one."""
_CHANNELS_LAST = ("small_slow", "x3d_xs", "x3d_s", "r3d_18")
"""Networks whose training step is a sixth to a third faster on a CPU with channels last. Slow R50 is not faster, and
the others were not measured."""


def build_network(options: NetworkOptions, classes: int) -> nn.Module:
    """Build a network, randomly initialised: ``[N, 3, T, H, W]`` -> logits ``[N, classes]``, in both modes.

    The last layer starts at N(0, 0.01), and the last batch norm of every residual branch at 0, as in SlowFast.

    Raises:
        UserError: A custom network cannot be imported or built.
    """
    if options.is_own:
        return _own(options.name, classes)
    if options.name == "slow_r50":
        return _slow_r50(options, classes)
    makers = {
        "small_slow": _small_slow,
        "r3d_18": _torchvision,
        "r2plus1d_18": _torchvision,
        "slowfast_r50": _slowfast,
        "slowfast_r50_mm": _slowfast_mm,
        "i3d_r50_mm": _i3d_mm,
        "r2plus1d_r50": _r2plus1d,
        "csn_r101": _csn,
        "csn_r50_mm": _csn_mm,
        "csn_r152_mm": _csn_mm,
        "mvit_b": _mvit,
        "mvit_v2_s": _mvit_v2,
    }
    network = makers.get(options.name, _x3d)(options, classes)
    if options.name not in _CHANNELS_LAST:
        return network
    return network.to(memory_format=torch.channels_last_3d)


def check_clip(options: NetworkOptions, *, frames: int, size: int) -> None:
    """Check that a network takes clips of this length and size.

    Raises:
        UserError: The network does not accept such clips.
    """
    shape = _FIXED.get(options.name)
    if shape is not None and (frames, size) != shape:
        raise UserError(
            f"network {options.name} got clips of {frames} frames at {size} pixels, but it has one embedding for each "
            f"position in {shape[0]} frames at {shape[1]} pixels; set clip.frames to {shape[0]} and "
            f"image_size to {shape[1]}"
        )


def last_layer(network: nn.Module) -> str:
    """Return the name of the linear layer that computes the logits, such as ``fc.``: the last one of the network."""
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return f"{names[-1]}." if names else "fc."


def logits_in(output: object) -> Tensor | None:
    """Return the logits in the output of a network: a tensor, the first entry of a tuple or list, or ``logits``."""
    logits: object = output
    if isinstance(output, Mapping):
        logits = output.get("logits")
    elif isinstance(output, tuple | list):
        logits = output[0] if output else None
    elif not isinstance(output, Tensor):
        logits = getattr(output, "logits", None)
    return logits if isinstance(logits, Tensor) else None


_ONE = 1e-3  # tolerance for the sum of a row of probabilities, in half precision


def are_probabilities(values: Tensor) -> bool:
    """Return whether the rows of `values` ``[N, K]``, at least two, are not negative and sum to 1."""
    values = values.detach().float()
    return len(values) > 1 and bool((values >= 0).all()) and bool((values.sum(dim=1) - 1).abs().max() < _ONE)


def _own(name: str, classes: int) -> nn.Module:
    make = import_function(name, setting="network.name")
    try:
        network = make(classes)
    except TypeError as error:
        raise UserError(f"{name}({classes}) fails ({error}); expected a function of the number of classes") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"{name}({classes}) returned a {type(network).__name__}; expected a torch.nn.Module")
    if lazy := [place for place, weight in network.named_parameters() if is_lazy(weight)]:
        raise UserError(
            f"{name}({classes}) returned a network whose parameter {lazy[0]} has no size yet (LazyModule); expected a "
            "complete one: call it once on a clip before it is returned"
        )
    return network


def _small_slow(options: NetworkOptions, classes: int) -> nn.Module:
    return SmallSlow(classes, width=options.width or 16, dropout=options.dropout)


def _torchvision(options: NetworkOptions, classes: int) -> nn.Module:
    from torchvision.models import video  # noqa: PLC0415 - heavy

    network: nn.Module = getattr(video, options.name)(weights=None)
    network.fc = nn.Sequential(nn.Dropout(options.dropout), _last(network.fc.in_features, classes))  # type: ignore[union-attr, arg-type]
    return network


def _slow_r50(options: NetworkOptions, classes: int) -> nn.Module:
    from pytorchvideo.models.resnet import create_resnet  # noqa: PLC0415 - heavy

    network: nn.Module = create_resnet(
        model_depth=50,
        model_num_class=classes,
        dropout_rate=options.dropout,
        stem_dim_out=options.width or 64,
        stem_conv_kernel_size=(1, 7, 7),
        head_pool=_global_pool,  # PyTorchVideo's default allows only one clip size
    )
    return network


def _x3d(options: NetworkOptions, classes: int) -> nn.Module:
    from pytorchvideo.models.x3d import create_x3d  # noqa: PLC0415 - heavy

    frames, side = _X3D[options.name]
    network: nn.Module = create_x3d(
        model_num_class=classes,
        dropout_rate=options.dropout,
        input_clip_length=frames,
        input_crop_size=side,
        head_activation=None,  # by default it returns probabilities in both modes
    )
    for module in network.modules():
        if isinstance(module, nn.Module) and type(module).__name__ == "ProjectedPool":
            module.pool = nn.AdaptiveAvgPool3d(1)
    return network


def _slowfast(options: NetworkOptions, classes: int) -> nn.Module:
    from pytorchvideo.models.hub import slowfast_r50  # noqa: PLC0415 - heavy

    network = slowfast_r50(
        pretrained=False, model_num_class=classes, dropout_rate=options.dropout, head_pool=nn.AdaptiveAvgPool3d
    )
    return SlowFast(network.blocks)


def _slowfast_mm(options: NetworkOptions, classes: int) -> nn.Module:
    """Build SlowFast 8x8 as in mmaction2, whose lateral connections are convolutions without batch norm and ReLU."""
    from pytorchvideo.models.hub import slowfast_r50  # noqa: PLC0415 - heavy
    from pytorchvideo.models.slowfast import FastToSlowFusionBuilder  # noqa: PLC0415 - heavy

    lateral = FastToSlowFusionBuilder(
        slowfast_channel_reduction_ratio=8,
        conv_fusion_channel_ratio=2,
        conv_kernel_size=(7, 1, 1),
        conv_stride=(_SLOW, 1, 1),
        norm=None,
        activation=None,
    )
    network = slowfast_r50(
        pretrained=False,
        model_num_class=classes,
        dropout_rate=options.dropout,
        head_pool=nn.AdaptiveAvgPool3d,
        fusion_builder=lateral.create_module,
    )
    return SlowFast(network.blocks)


def _i3d_mm(options: NetworkOptions, classes: int) -> nn.Module:
    """Build I3D as in mmaction2, whose stem and first pooling halve the number of frames."""
    from pytorchvideo.models.resnet import create_resnet  # noqa: PLC0415 - heavy

    network = create_resnet(
        model_depth=50,
        model_num_class=classes,
        dropout_rate=options.dropout,
        stem_conv_kernel_size=(5, 7, 7),
        stem_conv_stride=(2, 2, 2),
        stem_pool_stride=(2, 2, 2),
        stage1_pool=nn.MaxPool3d,
        stage_conv_a_kernel_size=(
            (3, 1, 1),
            [(3, 1, 1), (1, 1, 1)],
            [(3, 1, 1), (1, 1, 1)],
            [(1, 1, 1), (3, 1, 1)],
        ),
        head_pool=_global_pool,
    )
    return I3D(network.blocks)


def _csn_mm(options: NetworkOptions, classes: int) -> nn.Module:
    """Build CSN as in mmaction2, whose batch norms add 1e-3 to the variance."""
    from pytorchvideo.models.csn import create_csn  # noqa: PLC0415 - heavy

    network: nn.Module = create_csn(
        model_depth=50 if options.name == "csn_r50_mm" else 152,
        model_num_class=classes,
        dropout_rate=options.dropout,
        stem_pool=nn.MaxPool3d,
        head_pool=_global_pool,
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eps = 1e-3
    return network


def _r2plus1d(options: NetworkOptions, classes: int) -> nn.Module:
    from pytorchvideo.models.r2plus1d import create_r2plus1d  # noqa: PLC0415 - heavy

    network: nn.Module = create_r2plus1d(model_num_class=classes, dropout_rate=options.dropout, head_pool=_global_pool)
    return network


def _csn(options: NetworkOptions, classes: int) -> nn.Module:
    from pytorchvideo.models.hub import csn_r101  # noqa: PLC0415 - heavy

    network: nn.Module = csn_r101(
        pretrained=False, model_num_class=classes, dropout_rate=options.dropout, head_pool=_global_pool
    )
    return network


def _mvit_v2(options: NetworkOptions, classes: int) -> nn.Module:
    from torchvision.models.video import mvit_v2_s  # noqa: PLC0415 - heavy

    network: nn.Module = mvit_v2_s(weights=None)
    network.head = nn.Sequential(nn.Dropout(options.dropout), _last(768, classes))
    return network


def _mvit(options: NetworkOptions, classes: int) -> nn.Module:
    from pytorchvideo.models.hub import mvit_base_16x4  # noqa: PLC0415 - heavy

    network: nn.Module = mvit_base_16x4(pretrained=False, head_num_classes=classes, head_dropout_rate=options.dropout)
    return network


class SlowFast(nn.Module):
    """SlowFast that takes one clip: the Fast pathway takes all frames, the Slow pathway every fourth.

    Args:
        blocks: Blocks of PyTorchVideo's SlowFast, whose parameter names are kept.

    Shapes: ``[N, 3, T, H, W]`` -> ``[N, classes]``.
    """

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, clips: Tensor) -> Tensor:
        x: list[Tensor] | Tensor = [clips[:, :, ::_SLOW], clips]
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, x)


class I3D(nn.Module):
    """I3D with the strides of mmaction2.

    Args:
        stages: Blocks of PyTorchVideo's ResNet. They have another name than there, because weights of PyTorchVideo's
            I3D, whose strides differ, have the same shapes.

    Shapes: ``[N, 3, T, H, W]`` -> ``[N, classes]``.
    """

    def __init__(self, stages: nn.ModuleList) -> None:
        super().__init__()
        self.stages = stages

    def forward(self, clips: Tensor) -> Tensor:
        x = clips
        for stage in self.stages:
            x = stage(x)
        return x


def _global_pool(**_: object) -> nn.Module:
    return nn.AdaptiveAvgPool3d(1)


def _last(features: int, classes: int) -> nn.Linear:
    layer = nn.Linear(features, classes)
    with torch.no_grad():
        layer.weight.normal_(0, 0.01)
        layer.bias.zero_()
    return layer


class SmallSlow(nn.Module):
    """A 3-D ResNet of 10 layers in the style of SlowFast's Slow pathway.

    Stem 1x3x3 with spatial stride 2; four stages of one basic block each, with 1, 2, 4 and 8 times the width and, from
    the second stage on, spatial stride 2; the first convolution of the last two stages spans three frames; global
    average pool, dropout, linear. Width 8 has 0.3 million parameters.

    Shapes: ``[N, 3, T, H, W]``, any T, H, W -> ``[N, classes]``.
    """

    def __init__(self, classes: int, *, width: int = 16, dropout: float = 0.5) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, width, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1), bias=False)
        self.norm = nn.BatchNorm3d(width)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.Sequential(
            *(_Block(widths[i], widths[i + 1], stride=1 if i == 0 else 2, time=3 if i >= 2 else 1) for i in range(4))
        )
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(8 * width, classes)
        self._initialise()

    def forward(self, clips: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(clips)))
        x = self.stages(x).mean(dim=(2, 3, 4))
        return cast(Tensor, self.fc(self.dropout(x)))

    @torch.no_grad()
    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, _Block):
                nn.init.zeros_(module.norm2.weight)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)


class _Block(nn.Module):
    def __init__(self, before: int, after: int, *, stride: int, time: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(
            before, after, (time, 3, 3), stride=(1, stride, stride), padding=(time // 2, 1, 1), bias=False
        )
        self.norm1 = nn.BatchNorm3d(after)
        self.conv2 = nn.Conv3d(after, after, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.norm2 = nn.BatchNorm3d(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.Conv3d(before, after, 1, stride=(1, stride, stride), bias=False), nn.BatchNorm3d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


Layout = Sequence[tuple[str, int]]


class ViewBatchNorm(nn.Module):
    """Batch norms of several views that share weight and bias.

    `views_in_batch` states which rows belong to which view. Outside of it, all rows belong to the first view, so that a
    plain call of a trained network classifies that view. With one view this is an ordinary batch norm.
    """

    def __init__(self, norm: _BatchNorm, views: Sequence[str]) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({view: _twin(norm) for view in views})
        self.layout: Layout | None = None
        self.register_load_state_dict_post_hook(_share_parameters)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the rows of each view in `x` ``[N, C, ...]`` with the statistics of that view."""
        if self.layout is None:
            first: Tensor = self.of(None)(x)
            return first
        if len(self.layout) == 1:
            one: Tensor = self.norms[self.layout[0][0]](x)
            return one
        clips = sum(rows for _, rows in self.layout)
        if len(x) != clips:
            raise UserError(
                f"a batch norm got {len(x)} rows for {clips} clips, so that the view of each row is unknown; expected "
                "one row per clip. Use bn=joint for networks that classify frames"
            )
        batches = torch.split(x, [rows for _, rows in self.layout])
        return torch.cat([self.norms[view](batch) for (view, _), batch in zip(self.layout, batches, strict=True)])

    def of(self, view: str | None) -> nn.Module:
        """Return the batch norm of a view; None: the first one.

        Raises:
            UserError: There is no such view.
        """
        if view is not None and view not in self.norms:
            raise UserError(f"the batch norm of the network has the views {', '.join(self.norms)}, not {view}")
        return self.norms[next(iter(self.norms)) if view is None else view]


def split_batchnorm(network: nn.Module, views: Sequence[str]) -> nn.Module:
    """Give every batch norm in `network` statistics for each view, in place, and return `network`.

    Every view starts with the present statistics. Weight and bias remain the same objects, so that an existing
    optimiser still trains them. Subclasses of batch norm, as for several processes, are split like those of torch.

    Raises:
        ValueError: `network` is itself a batch norm, or is already split by other views or in another order.
    """
    if isinstance(network, _BatchNorm):
        raise ValueError("split_batchnorm got a batch norm; expected a network that contains some")
    split_norms = [module for module in network.modules() if isinstance(module, ViewBatchNorm)]
    for norm in split_norms:
        if tuple(norm.norms) != tuple(views):  # the first one is that of a plain call
            raise ValueError(
                f"the batch norm of the network is already split by the views {', '.join(norm.norms)}; expected "
                f"{', '.join(views)}. Join it first: ssl_video.models.networks.join_batchnorm(network, "
                f"{next(iter(norm.norms))!r})"
            )
    split_already = {module for norm in split_norms for module in norm.modules()}
    replacements: dict[nn.Module, ViewBatchNorm] = {}
    for parent in [module for module in network.modules() if module not in split_already]:
        for name, child in parent._modules.items():  # a norm that is used twice stays one
            if isinstance(child, _BatchNorm) and not isinstance(child, LazyModuleMixin):
                replacements.setdefault(child, ViewBatchNorm(child, views))
                setattr(parent, name, replacements[child])
    return network


def join_batchnorm(network: nn.Module, view: str) -> nn.Module:
    """Replace every `ViewBatchNorm` by the plain batch norm of one view in place, for export, and return `network`.

    Raises:
        UserError: The network has no such view.
    """
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, ViewBatchNorm):
                setattr(parent, name, child.of(view))
    return network


@contextmanager
def views_in_batch(network: nn.Module, layout: Layout) -> Iterator[None]:
    """State the views of the rows of a batch, in order: ``[("rgb", 4), ("tg", 4)]``."""
    layout = [(view, rows) for view, rows in layout if rows]
    norms = [module for module in network.modules() if isinstance(module, ViewBatchNorm)]
    for norm in norms:
        norm.layout = layout
    try:
        yield
    finally:
        for norm in norms:
            norm.layout = None


def views_in_backward(network: nn.Module, layout: Layout, logits: Tensor) -> None:
    """State the views of the rows also while the backward pass computes activations again (gradient checkpointing).

    Args:
        network: Network.
        layout: Views of the rows, as for `views_in_batch`.
        logits: Output of the network for this batch.
    """
    norms = [module for module in network.modules() if isinstance(module, ViewBatchNorm)]
    if not norms or not logits.requires_grad:
        return

    def state(layout: Layout | None) -> None:
        for norm in norms:
            norm.layout = layout

    def begin(_: Tensor) -> None:
        state([(view, rows) for view, rows in layout if rows])
        # As in DistributedDataParallel: called when the whole backward pass has ended.
        torch.autograd.Variable._execution_engine.queue_callback(lambda: state(None))

    logits.register_hook(begin)  # type: ignore[no-untyped-call]


@contextmanager
def labelling(network: nn.Module) -> Iterator[None]:
    """Let a network in training mode predict without changing its state.

    Batch norm uses the statistics of the batch and does not update its own. Everything else is in evaluation mode, so
    that dropout is off, also that of attention and of functions. No gradient is kept.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.training]
    with _normalising_by_batch(network, norms):
        yield


@contextmanager
def _normalising_by_batch(network: nn.Module, norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Let `norms` use the statistics of the batch without recording them, and all else be in evaluation mode.

    The modes are set one by one: layers such as those of LoRA merge their weights in `eval`, and would stay merged, and
    untrained, if only the mode were restored.
    """
    modes = [(module, module.training) for module in network.modules()]
    tracking = [(norm, norm.track_running_stats) for norm in norms]
    try:
        for module, _ in modes:
            module.training = False
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        with torch.no_grad():
            yield
    finally:
        for norm, tracks in tracking:
            norm.track_running_stats = tracks
        for module, mode in modes:
            module.training = mode


def _twin(norm: _BatchNorm) -> _BatchNorm:
    """Copy a batch norm of any class, with its statistics; parameters and processes remain the same objects."""
    same = [*norm.parameters(), getattr(norm, "process_group", None)]
    return copy.deepcopy(norm, {id(part): part for part in same})


def _share_parameters(norm: Any, _: object) -> None:
    """Share parameters again, which `load_state_dict(assign=True)` and `to_empty` replace in every norm."""
    first, *twins = norm.norms.values()
    for twin in twins:
        for name, parameter in first.named_parameters(recurse=False):
            setattr(twin, name, parameter)


@dataclass
class _Moments:
    count: float
    mean: Tensor
    variance: Tensor  # biased


def recalibrate_bn(network: nn.Module, batches: Iterable[Tensor], *, view: str | None = None) -> int:
    """Replace the running statistics of every batch norm by those of these batches, in place.

    Each layer gets the mean and the (unbiased) variance over all positions of all batches together. The layers before
    it normalise by the batch, as in training. Nothing else changes: dropout is off, no gradient is computed, and the
    network keeps its mode.

    Args:
        network: Network with batch norms, plain or of `split_batchnorm`.
        batches: Inputs of the network ``[N, 3, T, H, W]``; a few dozen clips suffice for a small network. Batches of
            the size and kind used in training fit best.
        view: View whose statistics are replaced, for a network with split statistics; None: the first one.

    Returns:
        Number of clips seen; 0 if the network has no batch norm.

    Raises:
        UserError: There are no batches, or the network has no such view.
    """
    norms = list(_norms(network, view))
    if not norms:
        return 0
    moments_by_norm: dict[_BatchNorm, _Moments] = {}
    handles = [norm.register_forward_pre_hook(_observer(moments_by_norm)) for norm in norms]
    clips = 0
    try:
        with _normalising_by_batch(network, norms):
            for batch in batches:
                with views_in_batch(network, [(view, len(batch))]) if view else nullcontext():
                    network(batch)
                clips += len(batch)
    finally:
        for handle in handles:
            handle.remove()
    if not clips:
        raise UserError("batch norm cannot be recalibrated without clips; give some, or skip the recalibration")
    for norm, moments in moments_by_norm.items():
        _set(norm, moments)
    return clips


def _norms(network: nn.Module, view: str | None) -> Iterable[_BatchNorm]:
    inside: set[nn.Module] = set()
    for module in network.modules():
        if isinstance(module, ViewBatchNorm):
            inside.update(module.norms.values())
            norm = module.of(view)
            if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
                yield norm
        elif isinstance(module, _BatchNorm) and module not in inside and module.running_mean is not None:
            yield module


def _observer(moments_by_norm: dict[_BatchNorm, _Moments]) -> Callable[[nn.Module, Any], None]:
    def observe(norm: nn.Module, inputs: Any) -> None:
        if not isinstance(norm, _BatchNorm):
            return
        x = inputs[0].detach().double()
        variance, mean = torch.var_mean(x, [d for d in range(x.ndim) if d != 1], correction=0)
        count = x.numel() / x.shape[1]
        before = moments_by_norm.get(norm)
        if before is None:
            moments_by_norm[norm] = _Moments(count, mean, variance)
            return
        # Variance of the union, from the variances within the parts and between their means (Chan et al. 1979).
        total = before.count + count
        joint = (before.count * before.mean + count * mean) / total
        spread = before.count * (before.variance + (before.mean - joint) ** 2) + count * (
            variance + (mean - joint) ** 2
        )
        moments_by_norm[norm] = _Moments(total, joint, spread / total)

    return observe


def _set(norm: _BatchNorm, moments: _Moments) -> None:
    if norm.running_mean is None or norm.running_var is None:
        return
    norm.running_mean.copy_(moments.mean)
    norm.running_var.copy_(moments.variance * moments.count / max(1.0, moments.count - 1))

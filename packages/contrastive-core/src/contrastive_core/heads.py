"""Projection head of SimCLR and SimCLRv2, with batch normalisation placed as in the released code."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """Map features [N, in_features] to the embeddings [N, out_features] that a contrastive loss compares.

    Hidden layers:  x -> relu(BN(W x)),  W [hidden, in] without bias, BN with scale and shift
    Last layer:     x -> BN(W x),        W [out, in] without bias, BN with a scale only: no shift, no ReLU

    The papers write z = W2 relu(W1 h). The released code normalises after every linear layer, as this head does.
    Weights are initialised from N(0, 0.01^2), BN scales to 1. SimCLR uses 2 layers; SimCLRv2 (and the current default
    of its code) uses 3. The losses of this package l2-normalise z themselves.

    For downstream tasks, SimCLR discards the head and uses its input. SimCLRv2 fine-tunes from the output of the first
    hidden layer. `head.first_layers(1)` returns that part as a module that shares the head's weights:

        classifier = nn.Sequential(encoder, head.first_layers(1), nn.Linear(head.hidden_features, classes))

    Running statistics follow PyTorch (eps 1e-5, momentum 0.1). PyTorch updates the running variance with the unbiased
    estimate, TensorFlow with the biased one; the updates differ by a factor N / (N - 1), 1.002 at N = 512. Outputs in
    training mode are the same. The BN layers are plain `nn.BatchNorm1d` (the last with `bias=None`), so that a
    conversion to synchronised BN finds them; the papers also aggregate the head's statistics across devices.

    Args:
        in_features: Width of the encoder's features.
        out_features: Width of the embeddings; 128 in the papers.
        hidden_features: Width of the hidden layers; `in_features` if None, as in the papers.
        layers: Number of linear layers, at least 1.

    Shape: [N, in_features] -> [N, out_features]. In training mode N must be at least 2.

    Raises:
        ValueError: A size is below 1, or an input is not [N, in_features].

    Reference: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations", section 2.1;
    Chen et al. 2020, "Big Self-Supervised Models are Strong Semi-Supervised Learners", section 2.

    >>> import torch
    >>> head = ProjectionHead(512, layers=3)
    >>> head(torch.randn(8, 512)).shape, head.first_layers(1)(torch.randn(8, 512)).shape
    (torch.Size([8, 128]), torch.Size([8, 512]))
    """

    def __init__(
        self, in_features: int, out_features: int = 128, *, hidden_features: int | None = None, layers: int = 2
    ) -> None:
        super().__init__()
        hidden = in_features if hidden_features is None else hidden_features
        sizes = {"in_features": in_features, "out_features": out_features, "hidden_features": hidden, "layers": layers}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"ProjectionHead: {name} is {size}, expected at least 1")
        self.in_features, self.out_features, self.hidden_features = in_features, out_features, hidden
        widths = [in_features] + [hidden] * (layers - 1)
        self.layers = nn.Sequential(
            *(_hidden_layer(width, hidden) for width in widths[:-1]), _last_layer(widths[-1], out_features)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return the embeddings [N, out_features] of features [N, in_features], not normalised."""
        if features.ndim != 2 or features.shape[1] != self.in_features:
            raise ValueError(
                f"ProjectionHead: got features of shape {list(features.shape)}, expected [N, {self.in_features}]; "
                "pool the encoder's output over space first, or set in_features to its width"
            )
        embeddings: Tensor = self.layers(features)
        return embeddings

    def first_layers(self, count: int) -> nn.Sequential:
        """Return the first `count` layers, each up to its ReLU, as a module that shares this head's weights.

        With 0, the module is empty and returns the head's input; with 1, it ends at the layer from which SimCLRv2
        fine-tunes; with the number of layers, it is the whole head. Copy the module (`copy.deepcopy`) to train it
        independently of the head.

        Raises:
            ValueError: `count` is negative or larger than the number of layers.
        """
        if not 0 <= count <= len(self.layers):
            raise ValueError(f"ProjectionHead.first_layers: got {count}, expected 0 to {len(self.layers)} layers")
        return self.layers[:count]


def _hidden_layer(in_features: int, out_features: int) -> nn.Sequential:
    parts = [
        ("linear", _linear(in_features, out_features)),
        ("norm", nn.BatchNorm1d(out_features)),
        ("relu", nn.ReLU()),
    ]
    return nn.Sequential(OrderedDict(parts))


def _last_layer(in_features: int, out_features: int) -> nn.Sequential:
    norm = nn.BatchNorm1d(out_features)
    # BatchNorm1d(bias=False) is not available in all supported releases of torch.
    norm.register_parameter("bias", None)
    return nn.Sequential(OrderedDict[str, nn.Module](linear=_linear(in_features, out_features), norm=norm))


def _linear(in_features: int, out_features: int) -> nn.Linear:
    linear = nn.Linear(in_features, out_features, bias=False)
    nn.init.normal_(linear.weight, std=0.01)
    return linear

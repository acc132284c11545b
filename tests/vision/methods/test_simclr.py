"""SimCLR as a module in a user's loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from contrastive_core import nt_xent
from ssl_vision.methods import SimCLR
from ssl_vision.models import resnet


def test_both_views_go_through_the_network_as_one_batch() -> None:
    torch.manual_seed(0)
    model = SimCLR(resnet(18, width=0.125, stem="cifar"), projection_dim=16)
    view_a, view_b = torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16)
    z_a, z_b = model(view_a, view_b)
    expected = model.head(model.encoder(torch.cat([view_a, view_b])))
    torch.testing.assert_close(torch.cat([z_a, z_b]), expected)
    # One at a time, batch norm would see other statistics.
    assert not torch.allclose(model.head(model.encoder(view_a)), z_a, atol=1e-3)


def test_training_pulls_views_together() -> None:
    torch.manual_seed(0)
    model = SimCLR(resnet(18, width=0.125, stem="cifar"), projection_dim=16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    images = torch.rand(16, 3, 16, 16)
    losses = []
    for _ in range(15):
        noise_a, noise_b = 0.1 * torch.rand(2, 16, 3, 16, 16)
        loss = nt_xent(*model(images + noise_a, images + noise_b), temperature=0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


def test_an_encoder_without_feature_dim_is_refused() -> None:
    encoder = nn.Flatten()
    encoder.feature_dim = None  # type: ignore[assignment]
    with pytest.raises(TypeError, match="feature_dim"):
        SimCLR(encoder)

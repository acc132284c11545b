"""A batch encoded in chunks has the gradient of the whole batch and the activation memory of one chunk."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from contrastive_core import encode_in_chunks, nt_xent, suncet
from contrastive_core.grad_cache import batch_norms
from tests.core.similarity.memory import allocations

DIM = 6
many = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def net(dropout: float = 0.3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(DIM, 9), nn.Dropout(dropout), nn.Tanh(), nn.LayerNorm(9), nn.Linear(9, 7), nn.Dropout(dropout)
    ).double()


def gradients(loss: Callable[[], Tensor], *modules: nn.Module, seed: int = 3) -> tuple[Tensor, ...]:
    """Return the value and its gradient with respect to the parameters."""
    torch.manual_seed(seed)
    value = loss()
    return value.detach(), *torch.autograd.grad(value, [p for module in modules for p in module.parameters()])


def close(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float = 1e-10) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@many
@given(n=st.integers(2, 30), chunk_size=st.integers(1, 31))
def test_without_random_draws_it_is_the_whole_batch(n: int, chunk_size: int) -> None:
    encoder, x = net(dropout=0.0), rows(2 * n)
    ours = gradients(lambda: nt_xent(*encode_in_chunks(encoder, x, chunk_size=chunk_size).chunk(2)), encoder)
    close(ours, gradients(lambda: nt_xent(*encoder(x).chunk(2)), encoder))


@pytest.mark.parametrize("chunk_size", [1, 5, 8, 19])
def test_dropout_drops_the_same_the_second_time(chunk_size: int) -> None:
    """Compared with the same chunks with all activations kept; later draws continue as they would."""
    encoder, x = net(), rows(20)

    def kept() -> Tensor:
        z = torch.cat([encoder(piece) for piece in x.split(chunk_size)])
        return nt_xent(*(z + 0.1 * torch.randn_like(z)).chunk(2))

    def cached() -> Tensor:
        z = encode_in_chunks(encoder, x, chunk_size=chunk_size)
        return nt_xent(*(z + 0.1 * torch.randn_like(z)).chunk(2))

    close(gradients(cached, encoder), gradients(kept, encoder), tolerance=1e-14)
    after = torch.rand(3)
    gradients(kept, encoder)
    assert torch.equal(torch.rand(3), after)
    different = gradients(cached, encoder, seed=4)
    assert (different[1] - gradients(kept, encoder)[1]).abs().max() > 1e-3


class Scaled(nn.Module):
    """Divide rows by a running mean of their norm, a buffer that every call replaces and that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.reader = net(), nn.Module()
        self.register_buffer("mean", torch.ones((), dtype=torch.float64))
        self.reader.register_buffer("mean", self.mean)

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.mean, Tensor)
        self.mean.lerp_(x.norm(dim=1).mean(), 0.3)
        z: Tensor = self.encode(x)
        return (z / self.reader.mean.clone()).tanh()


@pytest.mark.parametrize(
    "encoder",
    [
        nn.utils.parametrizations.spectral_norm(nn.Linear(DIM, 4)).double(),
        nn.utils.spectral_norm(nn.Linear(DIM, 4)).double(),
        Scaled(),
    ],
    ids=["parametrization", "hook", "shared"],
)
def test_buffers_of_the_first_pass_are_used_the_second_time(encoder: nn.Module) -> None:
    """Outputs that depend on buffers which every call updates, such as the vectors of spectral norm."""
    x, same = rows(20), copy.deepcopy(encoder)
    cached = gradients(lambda: nt_xent(*encode_in_chunks(encoder, x, chunk_size=6).chunk(2)), encoder)
    kept = gradients(lambda: nt_xent(*torch.cat([same(piece) for piece in x.split(6)]).chunk(2)), same)
    close(cached, kept, tolerance=1e-14)
    for ours, theirs in zip(encoder.buffers(), same.buffers(), strict=True):
        assert torch.equal(ours, theirs)


class Dual(nn.Module):
    """Two towers that encode pairs of different inputs together and output something about each."""

    def __init__(self) -> None:
        super().__init__()
        self.picture, self.text = net(), nn.EmbeddingBag(11, 7).double()

    def forward(self, picture: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return self.picture(picture), self.text(text)


def test_several_inputs_outputs_heads_and_losses() -> None:
    dual, head, other_head = Dual(), nn.Linear(7, 4).double(), nn.BatchNorm1d(7).double()
    x, words, labels = rows(17), torch.arange(34).view(17, 2) % 11, torch.arange(17) % 3

    def loss(pictures: Tensor, texts: Tensor) -> Tensor:
        return nt_xent(head(pictures), head(texts)) + 0.3 * suncet(other_head(pictures), labels)

    modules = (dual, head, other_head)
    ours = gradients(lambda: loss(*encode_in_chunks(dual, x, words, chunk_size=4)), *modules)

    def kept() -> Tensor:
        parts = [dual(*pieces) for pieces in zip(x.split(4), words.split(4), strict=True)]
        return loss(*(torch.cat(part) for part in zip(*parts, strict=True)))

    close(ours, gradients(kept, *modules))
    assert isinstance(encode_in_chunks(dual, x, words, chunk_size=4), tuple)
    assert isinstance(encode_in_chunks(dual, x, words, chunk_size=17), tuple)


def test_gradient_of_the_inputs() -> None:
    encoder = net(dropout=0.0)
    whole, pieces = rows(9).requires_grad_(), rows(9).requires_grad_()
    encoder(whole).square().sum().backward()
    encode_in_chunks(encoder, pieces, chunk_size=2).square().sum().backward()
    close([pieces.grad], [whole.grad])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_as_in_the_first_pass(dtype: torch.dtype) -> None:
    """The backward pass runs outside autocast, as usual, but computes the chunks again inside it."""
    encoder, x = net().float(), rows(20).float()

    def loss(z: Callable[[], Tensor]) -> Tensor:
        with torch.autocast("cpu", dtype):
            return nt_xent(*z().chunk(2))

    ours = gradients(lambda: loss(lambda: encode_in_chunks(encoder, x, chunk_size=6)), encoder)
    kept = gradients(lambda: loss(lambda: torch.cat([encoder(piece) for piece in x.split(6)])), encoder)
    for a, b in zip(ours, kept, strict=True):
        assert torch.equal(a, b)
    plain = gradients(lambda: nt_xent(*encode_in_chunks(encoder, x, chunk_size=6).chunk(2)), encoder)
    assert not torch.equal(plain[0], ours[0])


def test_accumulates_into_grad_like_any_backward() -> None:
    encoder, x = net(), rows(20)
    expected = gradients(lambda: nt_xent(*encode_in_chunks(encoder, x, chunk_size=6).chunk(2)), encoder)[1:]
    for _ in range(2):
        torch.manual_seed(3)
        (nt_xent(*encode_in_chunks(encoder, x, chunk_size=6).chunk(2)) * 0.5).backward()
    close([p.grad for p in encoder.parameters()], expected)


def test_memory_is_that_of_a_chunk(tmp_path: Path) -> None:
    """Peak of both passes, apart from parameters, their gradients and the embeddings."""
    wide = nn.Sequential(
        nn.Linear(DIM, 64), *(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(8)), nn.Linear(64, 4)
    )
    x = rows(4096).float()

    def peak(chunk_size: int) -> int:
        wide.zero_grad()
        return allocations(
            lambda: encode_in_chunks(wide, x, chunk_size=chunk_size).square().sum().backward(), tmp_path
        )[1]

    activations, embeddings = 8 * 64 * 4, 4 * 4  # bytes a row; of a layer its output is kept, after tanh
    assert peak(4096) > 4096 * activations
    assert peak(128) < 3 * 128 * activations + 4 * 4096 * embeddings
    assert peak(4096) > 10 * peak(128)


def test_the_last_chunk_is_encoded_once() -> None:
    seen: list[int] = []
    encoder = net()
    encoder[0].register_forward_hook(lambda *args: seen.append(len(args[2])))
    encode_in_chunks(encoder, rows(10), chunk_size=4).sum().backward()
    assert seen == [4, 4, 2, 4, 4]
    seen.clear()
    with torch.no_grad():
        assert not encode_in_chunks(encoder, rows(10), chunk_size=4).requires_grad
    encode_in_chunks(encoder, rows(10), chunk_size=10).sum().backward()
    assert seen == [4, 4, 2, 10]


# ---- batch norm


def with_norm() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(DIM, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4)).double()


def test_batch_norm_is_refused_where_it_sees_the_batch() -> None:
    encoder, x = with_norm(), rows(10)
    with pytest.raises(
        ValueError, match=r"(?s)batch norm in training mode \(1\) normalises by all 10 rows.*chunks of 4"
    ):
        encode_in_chunks(encoder, x, chunk_size=4)
    assert encode_in_chunks(encoder, x, chunk_size=10).shape == (10, 4)
    frozen = copy.deepcopy(encoder).eval()
    close([encode_in_chunks(frozen, x, chunk_size=4)], [frozen(x)])
    deep = nn.ModuleList([nn.BatchNorm2d(2), nn.BatchNorm3d(2), nn.Sequential(nn.SyncBatchNorm(2)), nn.LayerNorm(2)])
    assert batch_norms(deep) == ["0", "1", "2.0"]
    assert batch_norms(nn.BatchNorm1d(2, track_running_stats=False).eval()) == ["the encoder itself"]


def test_batch_norm_by_chunks_when_asked() -> None:
    """Chunks are random, rows return in their order, running statistics are updated once per chunk."""
    encoder, x = with_norm(), rows(10)
    expected = copy.deepcopy(encoder)
    ours = gradients(lambda: encode_in_chunks(encoder, x, chunk_size=4, batch_norm="chunk").square().sum(), encoder)

    def by_hand() -> Tensor:
        order = torch.randperm(10)
        assert not torch.equal(order, torch.arange(10))
        z = torch.cat([expected(x[piece]) for piece in order.split(4)])
        return z.square().sum()

    close(ours, gradients(by_hand, expected))
    for name, buffer in expected.named_buffers():
        torch.testing.assert_close(encoder.get_buffer(name), buffer, msg=name)
    assert encoder[1].num_batches_tracked == 3
    identity = nn.Sequential(nn.Linear(DIM, DIM, bias=False), nn.BatchNorm1d(DIM)).double()
    nn.init.eye_(identity[0].weight)
    z = encode_in_chunks(identity, x, chunk_size=5, batch_norm="chunk")
    assert (z.argsort(0) != x.argsort(0)).any()  # other statistics in the two chunks
    assert torch.corrcoef(torch.stack([z.flatten(), x.flatten()]))[0, 1] > 0.8  # but every row in its place


# ---- what is refused


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: encode_in_chunks(lambda x: x, rows(4), chunk_size=2),
            TypeError,
            "encoder is a function, expected a t",
        ),
        (lambda: encode_in_chunks(net(), [1], chunk_size=2), TypeError, "got a list, expected tensors"),
        (lambda: encode_in_chunks(net(), rows(4), chunk_size=0), ValueError, "chunk_size is 0, expected at least 1"),
        (lambda: encode_in_chunks(net(), chunk_size=2), ValueError, "got no inputs, expected tensors"),
        (lambda: encode_in_chunks(net(), rows(0), chunk_size=2), ValueError, r"got \[0, 6\], expected tensors"),
        (lambda: encode_in_chunks(net(), torch.tensor(1), chunk_size=2), ValueError, r"got \[\], expected tensors"),
        (
            lambda: encode_in_chunks(Dual(), rows(4), rows(5), chunk_size=2),
            ValueError,
            r"got \[4, 6\], \[5, 6\], expected tensors with the same number of rows",
        ),
        (
            lambda: encode_in_chunks(nn.Flatten(0), rows(4), chunk_size=2),
            ValueError,
            r"for 2 rows the encoder returned a tensor \[12\], expected one row for each",
        ),
        (
            lambda: encode_in_chunks(nn.LSTM(DIM, 2).double(), rows(4), chunk_size=2),
            TypeError,
            "the encoder returned a tuple, expected a tensor or a tuple of tensors",
        ),
    ],
)
def test_wrong_use_is_named(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_the_encoder_may_be_compiled() -> None:
    torch._dynamo.reset()
    encoder, x = net(), rows(20)
    compiled = torch.compile(encoder, backend="aot_eager")
    ours = gradients(lambda: nt_xent(*encode_in_chunks(compiled, x, chunk_size=5).chunk(2)), encoder)
    close(ours, gradients(lambda: nt_xent(*encode_in_chunks(encoder, x, chunk_size=5).chunk(2)), encoder))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_draws_on_a_device_are_repeated_though_inputs_lie_elsewhere() -> None:
    class Moving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net().cuda()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.cuda())

    encoder, x = Moving(), rows(20)
    ours = gradients(lambda: nt_xent(*encode_in_chunks(encoder, x, chunk_size=5).chunk(2)), encoder)
    kept = gradients(lambda: nt_xent(*torch.cat([encoder(piece) for piece in x.split(5)]).chunk(2)), encoder)
    close(ours, kept)

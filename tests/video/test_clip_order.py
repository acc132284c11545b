"""Changes of frame order as strong augmentation: what each operation does, the same for all views."""

from __future__ import annotations

import pytest
import torch

from contrastive_core.errors import UserError
from ssl_video.augment import TEMPORAL, ClipAugment, StrongOptions, Temporal, reorder_clip
from ssl_video.views import Clips, make_views

T = 8


def video(n: int = 1, *, frames: int = T + 1, size: int = 20) -> torch.Tensor:
    return torch.randint(
        0, 256, (n, frames, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def neighbours(n: int = 1) -> Clips:
    """Clips of T successive frames, with the frame after each."""
    whole = video(n)
    return Clips(whole[:, :-1], whole[:, 1:], torch.arange(n * 40.0).view(n, 40), torch.ones(n, dtype=torch.bool))


def order(operation: Temporal, draws: list[float]) -> list[int]:
    """Return which frames are shown, numbered by their value."""
    frames = torch.arange(T, dtype=torch.uint8).view(1, T, 1, 1, 1).expand(1, T, 3, 2, 2).contiguous()
    found = reorder_clip(Clips(frames, frames + 100), operation, draws)
    shown = found.frames[0, :, 0, 0, 0].tolist()
    assert found.following is not None
    if operation != "reverse":
        assert found.following[0, :, 0, 0, 0].tolist() == [frame + 100 for frame in shown]
    return shown


def test_a_reversed_clip_is_the_clip_of_the_reversed_video() -> None:
    whole = video(2)
    backwards = whole.flip(1)
    expected = Clips(backwards[:, :-1], backwards[:, 1:])
    found = reorder_clip(Clips(whole[:, :-1], whole[:, 1:]), "reverse", [0.0] * (T + 1))
    assert found.following is not None
    assert torch.equal(found.frames, expected.frames)
    assert torch.equal(found.following, expected.following)
    gradient = make_views(Clips(whole[:, :-1], whole[:, 1:]), ("tg",))["tg"]
    assert torch.equal(make_views(found, ("tg",))["tg"], 255 - gradient.flip(1))


def test_reversed_flow_points_the_other_way() -> None:
    pytest.importorskip("cv2")
    wide = torch.nn.functional.avg_pool2d(torch.rand(1, 3, 48, 80, generator=torch.Generator().manual_seed(1)), 3, 1, 1)
    wide = (wide * 255).to(torch.uint8)
    moving = torch.stack([wide[0, :, :, 2 * t : 2 * t + 48] for t in range(T + 1)])[None]  # to the left by 2
    clip = Clips(moving[:, :-1], moving[:, 1:])
    forwards = make_views(clip, ("flow",))["flow"][0, :, 0].median()
    backwards = make_views(reorder_clip(clip, "reverse", [0.0] * (T + 1)), ("flow",))["flow"][0, :, 0].median()
    assert forwards < 125 < 130 < backwards
    assert (forwards + backwards).item() == pytest.approx(255, abs=2)
    stored = Clips(clip.frames, clip.following, flow=torch.randn(1, T, 2, 4, 4))
    found = reorder_clip(stored, "reverse", [0.0] * (T + 1)).flow
    assert found is not None
    assert stored.flow is not None
    assert torch.equal(found, -stored.flow.flip(1))


def test_shuffled_frames_stay_in_their_quarter() -> None:
    seen = set()
    for seed in range(20):
        draws = torch.rand(T + 1, generator=torch.Generator().manual_seed(seed)).tolist()
        shown = order("shuffle", draws)
        assert sorted(shown) == list(range(T))
        assert [frame // 2 for frame in shown] == [t // 2 for t in range(T)]
        assert shown == sorted(range(T), key=lambda t: (t // 2, draws[t]))
        seen.add(tuple(shown))
    assert len(seen) > 8


@pytest.mark.parametrize(("more", "distinct"), [(0.2, 2), (0.7, 4)])
def test_warped_clips_repeat_few_frames_in_order(more: float, distinct: int) -> None:
    draws = torch.rand(T, generator=torch.Generator().manual_seed(3)).tolist()
    shown = order("warp", [*draws, more])
    chosen = sorted(sorted(range(T), key=lambda t: draws[t])[:distinct])
    assert shown == [frame for frame in chosen for _ in range(T // distinct)]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (0.0, [2, 2, 3, 3, 4, 4, 5, 5]),  # half as fast, around the middle
        (0.5, [0, 1, 2, 3, 4, 5, 6, 7]),
        (0.9, [0, 0, 1, 3, 4, 6, 7, 7]),  # 1.74 times as fast; beyond the ends the clip stands still
    ],
)
def test_speed(more: float, expected: list[int]) -> None:
    moments = [3.5 + (t - 3.5) * 2 ** (2 * more - 1) for t in range(T)]
    shown = order("speed", [0.0] * T + [more])
    assert shown == expected
    assert all(abs(min(max(m, 0), 7) - s) <= 0.51 for m, s in zip(moments, shown, strict=True))


@pytest.mark.parametrize("shared", [True, False])
def test_the_order_is_the_same_for_all_views_and_drawn_by_seed_and_clip(shared: bool) -> None:
    ids = torch.arange(6)
    options = StrongOptions(num_ops=0, cutout=0.0, temporal=("reverse",), temporal_probability=0.5)
    augment = ClipAugment(20, views=("rgb", "tg"), strong=options, shared_geometry=shared)
    clips = neighbours(6)
    weak, strong = augment.weak_and_strong(clips, seed=1, ids=ids)
    reordered = augment.reordered(seed=1, ids=ids)
    assert 0 < reordered.sum() < 6
    for n in range(6):
        if reordered[n]:
            # The first frame of the reversed clip is the frame after the last one; the frames in between are shared.
            assert torch.equal(strong["rgb"][n, 1:], weak["rgb"][n, 1:].flip(0))
            assert torch.equal(strong["tg"][n], 255 - weak["tg"][n].flip(0))
        else:
            assert torch.equal(strong["rgb"][n], weak["rgb"][n])
    alone = ClipAugment(20, views=("rgb", "tg"), strong=options, shared_geometry=shared).weak_and_strong(
        Clips(clips.frames[3:4], clips.following[3:4]),
        seed=1,
        ids=ids[3:4],  # type: ignore[index]
    )[1]
    assert torch.equal(alone["tg"][0], strong["tg"][3])


def test_only_reversing_and_shuffling_leave_the_direction_of_time() -> None:
    ids = torch.arange(50)
    for operation in TEMPORAL:
        options = StrongOptions(temporal=(operation,), temporal_probability=1.0)
        found = ClipAugment(16, strong=options).reordered(seed=0, ids=ids)
        assert found.all() if operation in ("reverse", "shuffle") else not found.any()
    assert not ClipAugment(16).reordered(seed=0, ids=ids).any()


def test_no_operation_is_no_change() -> None:
    ids = torch.arange(4)
    plain = ClipAugment(20, strong=StrongOptions()).weak_and_strong(neighbours(4), seed=3, ids=ids)
    never = StrongOptions(temporal=("reverse",), temporal_probability=0.0)
    off = ClipAugment(20, strong=never).weak_and_strong(neighbours(4), seed=3, ids=ids)
    for a, b in zip(plain, off, strict=True):
        assert all(torch.equal(a[view], b[view]) for view in a)


def test_unknown_operations_are_named() -> None:
    with pytest.raises(UserError, match=r"strong\.temporal is backwards"):
        StrongOptions(temporal=("backwards",))  # type: ignore[arg-type]

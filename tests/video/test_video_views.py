"""Views of a clip: signs, scales, flips, and messages where there is nothing to see or hear."""

from __future__ import annotations

import builtins
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.optical_flow import raft_small

from contrastive_core.errors import UserError
from ssl_video import views
from ssl_video.optical_flow import methods


@pytest.fixture(scope="module")
def shifted() -> Tensor:
    """A clip [2, 3, 64, 64] of a smooth texture that moves 2 pixels to the right and 1 up."""
    cv2 = pytest.importorskip("cv2")
    noise = np.random.default_rng(0).uniform(0, 255, (96, 96, 3)).astype(np.float32)
    texture = cv2.GaussianBlur(noise, (0, 0), 2.0)
    texture = (255 * (texture - texture.min()) / (texture.max() - texture.min())).astype(np.uint8)
    first, second = texture[16:80, 16:80], texture[17:81, 14:78]
    return torch.from_numpy(np.stack([first, second])).permute(0, 3, 1, 2).contiguous()


def inside(flow: Tensor) -> Tensor:
    """Return the median displacement (u, v) away from the border, of the first frame."""
    return flow[0, :, 12:-12, 12:-12].flatten(1).median(dim=1).values


@pytest.mark.parametrize("method", ["dis", "dis_fast", "farneback"])
def test_flow_points_where_things_go(shifted: Tensor, method: str) -> None:
    flow = views.displacement(shifted, method=method)
    assert flow.shape == (2, 2, 64, 64)
    assert inside(flow).tolist() == pytest.approx([2.0, -1.0], abs=0.2)
    # After the last frame of a clip nothing comes: it repeats what was before it.
    assert torch.equal(flow[0], flow[1])


def test_flow_of_a_mirrored_clip_has_the_other_sign(shifted: Tensor) -> None:
    mirrored = views.displacement(shifted.flip(-1))
    assert inside(mirrored).tolist() == pytest.approx([-2.0, -1.0], abs=0.2)
    turned = views.mirror_flow(views.displacement(shifted))
    assert (mirrored - turned).abs()[0, :, 12:-12, 12:-12].median() < 0.1


def test_flow_of_a_larger_clip_is_larger(shifted: Tensor) -> None:
    larger = torch.nn.functional.interpolate(shifted.float(), scale_factor=2, mode="bilinear").round().to(torch.uint8)
    assert inside(views.displacement(larger)).tolist() == pytest.approx([4.0, -2.0], abs=0.4)


def test_flow_does_not_depend_on_the_threads(shifted: Tensor) -> None:
    cv2 = pytest.importorskip("cv2")
    before = cv2.getNumThreads()
    results = []
    for threads in (1, 2):
        cv2.setNumThreads(threads)
        results.append(views.displacement(shifted))
        assert cv2.getNumThreads() == threads
    cv2.setNumThreads(before)
    assert torch.equal(*results)


def test_flow_between_given_frames(shifted: Tensor) -> None:
    apart = views.displacement(shifted[:1], shifted[1:])
    assert torch.equal(apart, views.displacement(shifted)[:1])


def test_flow_of_tiny_frames() -> None:
    pytest.importorskip("cv2")
    still = torch.randint(0, 256, (2, 1, 3, 8, 12), dtype=torch.uint8)
    assert views.displacement(still, still).abs().max() < 0.05


def test_flow_picture_has_a_fixed_scale() -> None:
    flow = torch.tensor([[0.0, 10, -10, 50], [0, 0, 0, -50]]).view(2, 1, 4)
    picture = views.flow_picture(flow, bound=20.0)
    assert picture[:, 0].T.tolist() == [
        [127.5, 127.5, 0],
        [191.25, 127.5, 127.5],
        [63.75, 127.5, 127.5],
        [255, 0, 255],
    ]
    assert views.flow_picture(torch.full((2, 128, 200), 5.0))[0, 0, 0] == 127.5 * (1 + 5 / 10)
    assert views.flow_picture(flow, third="mid")[2].unique().tolist() == [127.5]
    assert views.flow_picture(flow, third="zero")[2].unique().tolist() == [0]


def test_temporal_gradient_is_exact() -> None:
    clip = torch.randint(0, 256, (2, 4, 3, 5, 6), dtype=torch.uint8)
    following = torch.randint(0, 256, (2, 4, 3, 5, 6), dtype=torch.uint8)
    expected = torch.from_numpy((clip.numpy().astype(np.float64) - following.numpy() + 255) / 2)
    found = views.temporal_gradient(clip, following)
    assert found.dtype == torch.float32
    assert torch.equal(found.double(), expected)
    inner = views.temporal_gradient(clip)
    assert torch.equal(inner[:, :3], views.temporal_gradient(clip[:, :3], clip[:, 1:]))
    assert torch.equal(inner[:, 3], inner[:, 2])


def test_nothing_moves() -> None:
    still = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8).expand(4, -1, -1, -1)
    assert views.temporal_gradient(still).unique().tolist() == [127.5]
    assert views.temporal_gradient(still[:1]).unique().tolist() == [127.5]
    assert views.temporal_gradient(still, gain=4.0).unique().tolist() == [127.5]
    assert torch.equal(views.rgb(still), still.float())


def test_gain_stretches_changes() -> None:
    dark, light = torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.full((1, 3, 2, 2), 10, dtype=torch.uint8)
    assert views.temporal_gradient(dark, light).unique().tolist() == [122.5]
    assert views.temporal_gradient(dark, light, gain=4).unique().tolist() == [107.5]
    assert views.temporal_gradient(dark, light, gain=100).unique().tolist() == [0]


def test_normalize_moves_channels_first() -> None:
    pictures = torch.rand(2, 4, 3, 5, 6) * 255
    taken = views.normalize(pictures)
    assert taken.shape == (2, 3, 4, 5, 6)
    assert taken[1, 2, 3, 4, 5].item() == pytest.approx((pictures[1, 3, 2, 4, 5].item() / 255 - 0.45) / 0.225, rel=1e-5)


@pytest.mark.parametrize("wrong", [torch.zeros(2, 3, 8, 8), torch.zeros(3, 2, 8, 8, dtype=torch.uint8)])
def test_what_is_no_clip_is_refused(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match="expected uint8 clips"):
        views.rgb(wrong)


def test_wrong_arguments_are_refused() -> None:
    clip = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="in the same shape"):
        views.temporal_gradient(clip, clip[:1])
    with pytest.raises(ValueError, match="gain"):
        views.temporal_gradient(clip, gain=0)
    with pytest.raises(ValueError, match="bound"):
        views.flow_picture(torch.zeros(2, 4, 4), bound=0)
    with pytest.raises(ValueError, match=r"\[\.\.\., 2, H, W\]"):
        views.flow_picture(torch.zeros(3, 4, 4))
    with pytest.raises(UserError, match="unknown flow method 'diss'"):
        views.optical_flow(clip, method="diss")


def tone(hertz: float, *, seconds: float = 1.0) -> Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(int(16000 * seconds)) / 16000)


def test_log_mel_shows_pitch_and_time() -> None:
    pytest.importorskip("torchaudio")
    silence = torch.zeros(8000)
    sound = torch.stack([torch.cat([tone(400, seconds=0.5), silence]), torch.cat([silence, tone(4000, seconds=0.5)])])
    pictures = views.log_mel(sound, frames=4, size=(20, 24))
    assert pictures.shape == (2, 4, 3, 20, 24)
    assert pictures.min() >= 0
    assert pictures.max() <= 255
    assert torch.equal(pictures[:, :, 0], pictures[:, :, 2])
    loud = pictures.mean(dim=(2, 3, 4))
    assert loud[0, 0] > 10 * loud[0, 3] + 1
    assert loud[1, 3] > 10 * loud[1, 0] + 1
    row = [pictures[clip, piece, 0].mean(dim=1).argmax().item() for clip, piece in ((0, 0), (1, 3))]
    assert row[0] > row[1]  # low notes further down


def test_log_mel_is_that_of_librosa_s_formula() -> None:
    torchaudio = pytest.importorskip("torchaudio")
    sound = tone(1000) * 0.25
    mel = torchaudio.functional.melscale_fbanks(257, 0, 8000, 80, 16000)
    window = torch.hann_window(400)
    power = torch.stft(sound, 512, 160, 400, window, return_complex=True, pad_mode="reflect").abs() ** 2
    decibels = 10 * torch.log10((mel.T.double() @ power.double()).clamp(min=1e-10))
    expected = ((decibels - decibels.max()).clamp(-80, 0) / 80 + 1) * 255
    times = expected.shape[1]
    found = views.log_mel(sound, frames=1, size=(80, times))[0, 0]
    assert (found.double() - expected.flip(0)).abs().max() < 0.05


def test_log_mel_is_computed_where_the_sound_is() -> None:
    pytest.importorskip("torchaudio")
    sound = torch.zeros(2, 16_000, device="meta")  # as on a GPU, no operation may mix devices
    assert views.log_mel(sound, frames=4, size=(8, 8)).device.type == "meta"


def test_silence_is_black() -> None:
    pytest.importorskip("torchaudio")
    assert views.log_mel(torch.zeros(16000), frames=2, size=(8, 8)).unique().tolist() == [0]
    with pytest.raises(ValueError, match="a window"):
        views.log_mel(torch.zeros(400), frames=8, size=(8, 8))
    with pytest.raises(ValueError, match=r"256 samples, 2 windows, for 1 frames; .* 257 samples in all"):
        views.log_mel(torch.zeros(256), frames=1, size=(8, 8))
    assert views.log_mel(torch.zeros(257), frames=1, size=(8, 8)).shape == (1, 3, 8, 8)


def test_make_views_gives_every_view(shifted: Tensor) -> None:
    clips = views.Clips(shifted[None, :1], shifted[None, 1:], torch.zeros(1, 16000))
    made = views.make_views(clips, views.VIEWS)
    assert {name: tuple(picture.shape) for name, picture in made.items()} == dict.fromkeys(
        views.VIEWS, (1, 1, 3, 64, 64)
    )
    assert torch.equal(made["tg"], views.temporal_gradient(clips.frames, clips.following))
    assert made["flow"][0, 0, 0, 20, 20] > 127.5
    with pytest.raises(ValueError, match="some of rgb, flow, tg, audio"):
        views.make_views(clips, ("rgb", "depth"))
    with pytest.raises(ValueError, match="read them with audio"):
        views.make_views(views.Clips(shifted[None]), ("audio",))


@pytest.mark.parametrize(("module", "ask"), [("cv2", "flow"), ("torchaudio", "audio")])
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, module: str, ask: str) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object, **more: object) -> object:
        if name.partition(".")[0] == module:
            raise ImportError(f"No module named {module!r}")
        return real(name, *rest, **more)

    from ssl_video import views

    views._spectrogram.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    clips = views.Clips(torch.zeros(1, 2, 3, 16, 16, dtype=torch.uint8), audio=torch.zeros(1, 16000))
    with pytest.raises(UserError, match=rf"ssl-video\[{ask}\]"):
        views.make_views(clips, (ask,))
    assert set(views.make_views(clips, ("rgb", "tg"))) == {"rgb", "tg"}


def test_tvl1_without_contrib_is_named() -> None:
    cv2 = pytest.importorskip("cv2")
    if hasattr(cv2, "optflow"):
        assert callable(methods.flow_method("tvl1"))
    else:
        with pytest.raises(UserError, match="opencv-contrib-python-headless"):
            methods.flow_method("tvl1")


def test_raft_takes_the_user_s_weights(tmp_path: Path, shifted: Tensor) -> None:
    torch.manual_seed(0)
    network = raft_small(weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "raft.pth")
    a, b = (
        torch.nn.functional.interpolate(x[None].float() / 127.5 - 1, size=(128, 128), mode="bilinear") for x in shifted
    )
    with torch.no_grad():
        expected = torch.nn.functional.interpolate(network(a, b)[-1], size=(64, 64), mode="bilinear") / 2
    found = views.displacement(shifted[:1], shifted[1:], method=f"raft:{tmp_path / 'raft.pth'}")
    assert torch.allclose(found, expected, atol=1e-4)
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not those of torchvision's raft"):
        views.displacement(shifted, method=f"raft:{tmp_path / 'other.pth'}")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match=r"text\.pth cannot be read as weights"):
        views.displacement(shifted, method=f"raft:{tmp_path / 'text.pth'}")
    with pytest.raises(UserError, match=r"nowhere\.pth does not exist"):
        views.displacement(shifted, method="raft:nowhere.pth")

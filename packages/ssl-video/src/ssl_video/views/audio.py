"""Sound as a picture: the log-mel spectrogram of a clip, cut into as many pieces as it has frames."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive_core.errors import UserError

RATE = 16_000
_FLOOR_DB = -80.0
_QUIET = 1e-10


def log_mel(audio: Tensor, *, frames: int, size: tuple[int, int]) -> Tensor:
    """Spectrograms as pictures: time from left to right, high notes on top, three equal channels.

    Power of 80 mel bands (16 kHz, windows of 25 ms every 10 ms, FFT of 512), in dB below the clip's loudest point, cut
    off at -80 and scaled to 0 to 255. Time is cut into `frames` equal pieces, each resized to `size`. A silent clip is
    all 0. The values are our choice, the usual ones for speech and sound.

    Args:
        audio: float ``[..., S]``, mono samples at 16 kHz of the clip's whole duration.
        frames: T, as the other views of the clip have.
        size: height and width of a picture.

    Returns:
        float32 ``[..., T, 3, H, W]``, 0 to 255.

    Raises:
        ValueError: too few samples for `frames` pieces.
        UserError: torchaudio is not installed.
    """
    spectrogram = _spectrogram()(audio.reshape(-1, audio.shape[-1]).to(torch.float32))
    times = spectrogram.shape[-1]
    if times < frames:
        raise ValueError(
            f"log_mel got {audio.shape[-1]} samples, {times} windows, for {frames} frames; expected at least a window "
            "(160 samples) for each"
        )
    peak = spectrogram.amax(dim=(-2, -1), keepdim=True)
    decibels = 10 * torch.log10(spectrogram.clamp(min=_QUIET) / peak.clamp(min=_QUIET))
    decibels = torch.where(peak > _QUIET, decibels, torch.full_like(decibels, _FLOOR_DB))
    loudness = (decibels.clamp(_FLOOR_DB, 0) / -_FLOOR_DB + 1) * 255
    edges = [round(i * times / frames) for i in range(frames + 1)]
    pieces = [
        F.interpolate(loudness[:, None, :, a:b].flip(-2), size=size, mode="bilinear", antialias=True)
        for a, b in itertools.pairwise(edges)
    ]
    pictures = torch.stack(pieces, dim=1).expand(-1, -1, 3, -1, -1)
    return pictures.reshape(*audio.shape[:-1], frames, 3, *size).contiguous()


@functools.cache
def _spectrogram() -> Any:
    try:
        from torchaudio.transforms import MelSpectrogram  # noqa: PLC0415 - an extra
    except (ImportError, OSError) as error:
        raise UserError(
            f"the view 'audio' needs torchaudio, which is not installed here ({error}); "
            "pip install 'ssl-video[audio]', or leave the view out"
        ) from error
    return MelSpectrogram(sample_rate=RATE, n_fft=512, win_length=400, hop_length=160, n_mels=80, power=2.0)

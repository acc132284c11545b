"""Networks of the user, given as package.module:function."""

from __future__ import annotations

from pathlib import Path

import pytest

from contrastive_core.errors import UserError
from ssl_video.models.networks import NetworkOptions, build_network


def test_a_network_with_sizes_still_to_come_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lazy_video_network.py").write_text(
        "from torch import nn\n\ndef make(classes):\n    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"whose parameter 1\.weight has no size yet .*call it once on a clip"):
        build_network(NetworkOptions("lazy_video_network:make"), 3)

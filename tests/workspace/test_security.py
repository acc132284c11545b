"""What SECURITY.md states, compared with the packages."""

from __future__ import annotations

import csv
import importlib
import json
import os
import pickle
import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from contrastive_core.errors import UserError
from contrastive_core.training import documents, weights
from tests.workspace.test_outputs_of_commands import CASES, call, filled
from tools.results import ROOT

PAGE = " ".join((ROOT / ".github" / "SECURITY.md").read_text(encoding="utf-8").split())


def stated(pattern: str) -> str:
    found = re.search(pattern, PAGE)
    assert found is not None, f"the page does not say {pattern}"
    return found[1]


def test_the_limits_are_those_of_the_readers() -> None:
    from ssl_medseg.io import dicom
    from ssl_video.data import video_index
    from ssl_vision.data import decode
    from ssl_vision.data.dataset import ReadOptions

    assert int(stated(r"limited to (\d+) MB\. YAML")) << 20 == documents._LARGEST
    assert int(stated(r"YAML is also limited to (\d+) levels")) == documents._DEEPEST
    assert (stated(r"to (a million) values"), documents._NODES) == ("a million", 10**6)
    assert int(stated(r"CSV to ([\d,]+) characters").replace(",", "")) == csv.field_size_limit()
    assert int(stated(r"Image files are limited to (\d+) GiB")) << 30 == decode._LARGEST_FILE
    assert int(stated(r"and (\d+) megapixels")) == ReadOptions().max_megapixels
    assert int(stated(r"frames of videos to (\d+)K")) * 960 * 8640 == video_index._LARGEST
    assert int(stated(r"deflated DICOM files to (\d+) MB")) << 20 == dicom._UNPACKED
    assert int(stated(r"PyTorch files to (\d+) times")) == weights._RATIO


def test_the_commands_that_start_again_after_a_crash_are_listed() -> None:
    listed = set(re.findall(r"`(\w+)`", stated(r"the commands that only read \(([^)]+)\)")))
    verbs = {name: importlib.import_module(f"{name}.cli").VERBS for name in CASES}
    found = {verb for name in CASES for verb, about in verbs[name].items() if about.restart}
    assert found == listed
    page = " ".join((ROOT / "docs/contrastive-core/damaged-files.md").read_text().split())
    (sentence,) = re.findall(r"on Linux, (.*?) run in a child process", page)
    assert set(re.findall(r"`(\w+)`", sentence)) == found
    assert {
        verb for name in CASES for verb, about in verbs[name].items() if verb in listed and not about.restart
    } == set()


def test_withdrawn_versions_are_those_of_the_metadata() -> None:
    requirements = tomllib.loads((ROOT / "packages/contrastive-core/pyproject.toml").read_text())["project"]
    (fabric,) = [text for text in str(requirements).split("'") if text.startswith("lightning-fabric")]
    versions = re.findall(r"\d+\.\d+\.\d+", stated(r"`lightning-fabric` ([^)]+)\)"))
    assert versions
    assert all(f"!={version}" in fabric for version in versions)


TAGS = (
    "!!python/object/apply:os.mkdir [{folder}]",
    "!!python/object/new:os.mkdir [{folder}]",
    "!!python/name:os.abort ''",
)
CONFIGURED = {
    "ssl_vision": "pretrain digits OUT --device cpu",
    "ssl_medseg": "train DATA OUT --split SPLIT --device cpu",
    "ssl_video": "train DATA OUT --split SPLIT --device cpu",
}


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("domain", CONFIGURED)
def test_a_configuration_makes_no_objects(
    domain: str, tag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    place = {"DATA": tmp_path / "data", "SPLIT": tmp_path / "split.json"}
    for text in ("run:\n  seed: {tag}\n", "{tag}\n", "steps: {tag}\n"):
        file.write_text(text.format(tag=tag.format(folder=tmp_path / "made")))
        assert call(domain, [*filled(CONFIGURED[domain], place, tmp_path / "out"), "--config", str(file)]) in (1, 2)
        assert "c.yaml: is not readable as YAML" in capsys.readouterr().err
        assert not (tmp_path / "made").exists()


LOADING = re.compile(
    r"<(script|iframe|object|embed|link)\b|\bon\w+=|javascript:|(src|href)=.?(https?:)?//|url\(.?https?:"
)


@pytest.mark.parametrize("domain", CASES)
def test_a_report_runs_and_loads_nothing(domain: str, places: Callable[[str], dict[str, Path]], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert call(domain, ["report", str(places(domain)["RUN"]), "--out", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert len(text) > 5000
    assert LOADING.findall(text) == []


class Payload:
    """An object whose unpickling makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("ending", [".pt", ".pth", ".ckpt", ".bin", ".npy", ".npz", ".safetensors", ".pkl"])
def test_nothing_in_a_checkpoint_is_run(ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, file = tmp_path / "made", tmp_path / f"weights{ending}"
    content = {"state_dict": {"conv1.weight": torch.zeros(4, 3, 3, 3)}, "hyper_parameters": Payload(made)}
    if ending in (".npy", ".npz"):
        (np.save if ending == ".npy" else np.savez)(file, np.array([Payload(made)], dtype=object))
    elif ending in (".safetensors", ".pkl"):
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file)
    commands = [
        ("ssl_vision", f"import-checkpoint {file} OUT"),
        ("ssl_vision", f"embed none digits OUT --encoder.weights {file}"),
        ("ssl_video", f"train DATA OUT --split SPLIT --init {file} --device cpu"),
        ("ssl_medseg", f"predict {file} DATA OUT"),
    ]
    place = {"DATA": tmp_path, "SPLIT": tmp_path / "split.json"}
    for domain, words in commands:
        assert call(domain, filled(words, place, tmp_path / "out")) in (1, 2), words
        assert "Traceback" not in capsys.readouterr().err
        assert not made.exists(), words


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    from ssl_video.data.synthetic import make_videos
    from ssl_video.optical_flow.cache import FlowCache, FlowSettings
    from ssl_vision.evaluation.predictions import _ARRAYS, read_predictions

    made = tmp_path / "made"
    objects = np.array([Payload(made)], dtype=object)
    np.savez(tmp_path / "x.npz", **dict.fromkeys(_ARRAYS, objects))
    with pytest.raises(UserError, match=r"x\.npz: .*allow_pickle=False"):
        read_predictions(tmp_path / "x.npz")
    video = min(make_videos(tmp_path / "videos", per_class=1).rglob("*.mkv"))
    cache = FlowCache(tmp_path / "flow", FlowSettings("dis", "", "opencv 4", 16, "byte"))
    cache.write_settings()
    cache.file(video).parent.mkdir(parents=True, exist_ok=True)
    np.save(cache.file(video), objects)
    with pytest.raises(UserError, match=r"cannot be read as flow .*Python objects"):
        cache.read(video, [0])
    assert not made.exists()


def test_the_configurations_of_a_bundle_are_not_read(places: Callable[[str], dict[str, Path]], tmp_path: Path) -> None:
    """MONAI runs what they name under `_target_`; a bundle is opened by its model.json alone."""
    from ssl_medseg.models.model_folder import load_segmenter

    bundle, made = tmp_path / "bundle", tmp_path / "made"
    shutil.copytree(places("ssl_medseg")["RUN"] / "model", bundle / "model")
    (bundle / "configs").mkdir()
    for name in ("inference.json", "metadata.json", "train.json"):
        (bundle / "configs" / name).write_text(json.dumps({"network_def": {"_target_": "os.mkdir", "path": str(made)}}))
    load_segmenter(bundle, device="cpu")
    assert not made.exists()

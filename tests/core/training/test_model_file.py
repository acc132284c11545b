"""The model folder of a run."""

from __future__ import annotations

import json
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from contrastive_core.errors import UserError
from contrastive_core.training import check_model_code, load_model, trust_model_code
from contrastive_core.training.checkpoint import save
from contrastive_core.training.model_code import import_function
from contrastive_core.training.model_file import build_from, save_model, write_card, write_tensors


@dataclass
class Card:
    name: str
    source: Path


def test_roundtrip_from_the_run_or_the_model_folder(tmp_path: Path) -> None:
    shared = torch.randn(2, 3)
    tensors = {"a": shared, "tied": shared, "n": torch.tensor(3), "view": torch.arange(10.0)[::2]}
    target = save_model(tmp_path / "run" / "model", tensors, {"card": Card("x", Path("d")), "sizes": (1, 2)})
    assert target == tmp_path / "run" / "model"
    assert sorted(p.name for p in target.parent.iterdir()) == ["model"]
    for folder in (target, target.parent, str(target)):
        found, metadata = load_model(folder)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], value) for name, value in tensors.items())
        assert metadata == {"card": {"name": "x", "source": "d"}, "sizes": [1, 2]}
    save_model(target, {"a": torch.zeros(1)}, {})
    assert load_model(target)[0].keys() == {"a"}
    assert sorted(p.name for p in target.parent.iterdir()) == ["model"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_colleagues_can_read_models_and_checkpoints(tmp_path: Path, mask: int, mode: int) -> None:
    """safetensors makes files that only their owner can read."""
    before = os.umask(mask)
    try:
        folders = [save_model(tmp_path / "model", {"a": torch.ones(4)}, {}), save(tmp_path, 1, {"x": torch.ones(2)})]
        export = tmp_path / "export.safetensors"
        for _ in range(2):  # the second replaces the first
            write_tensors(export, {"a": torch.ones(4)}, {"name": "x"})
    finally:
        os.umask(before)
    written = [export, *(file for folder in folders for file in folder.iterdir())]
    assert {file.suffix for file in written} == {".safetensors", ".json"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in written} == {mode}


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="epoch is a int, expected a tensor"):
        save_model(tmp_path / "model", {"epoch": 3}, {})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match=r"metadata\.x is a Tensor"):
        save_model(tmp_path / "model", {}, {"x": torch.ones(1)})
    with pytest.raises(UserError, match="contains no model"):
        load_model(tmp_path)


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none is not a folder; expected a run folder"):
        load_model(tmp_path / "none")
    with pytest.raises(UserError, match=r"contains no model; expected model\.json and model\.safetensors"):
        load_model(tmp_path)
    (tmp_path / "config.yaml").write_text("a: 1\n")
    with pytest.raises(UserError, match=r"has not written its model yet .* --resume"):
        load_model(tmp_path)
    target = save_model(tmp_path / "model", {"a": torch.ones(4)}, {})
    weights, card = target / "model.safetensors", target / "model.json"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"\x01")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        load_model(target)
    weights.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors does not exist; restore it"):
        load_model(target)
    weights.write_bytes(content)
    good = json.loads(card.read_text())
    write_card(card, {**good, "format": 3})
    with pytest.raises(UserError, match=r"format 3; this version reads format 2\. Update"):
        load_model(target)
    for text in ("[]", "{}"):
        card.write_text(text)
        with pytest.raises(UserError, match=r"model\.json: is damaged .*write the model again"):
            load_model(target)


def test_every_altered_card_is_refused(tmp_path: Path) -> None:
    target = save_model(tmp_path / "model", {"a": torch.ones(4)}, {"encoder": {"name": "resnet18", "width": 1}})
    card = target / "model.json"
    content = card.read_bytes()
    for place in range(len(content)):
        for other in (b"0", b"x", b"[", b""):
            if content[place : place + 1] in (other, b" ", b"\n"):  # blanks between values mean nothing
                continue
            card.write_bytes(content[:place] + other + content[place + 1 :])
            with pytest.raises(UserError, match=r"model\.json|damaged"):
                load_model(target)
    for text in ("[" * 100_000, "9" * 5000, "[]", "{}", "null", '{"format": []}'):
        card.write_text(text)
        with pytest.raises(UserError, match=r"model\.json"):
            load_model(target)


def test_code_of_a_model_runs_only_where_it_is_trusted() -> None:
    with pytest.raises(
        UserError, match=r"run: opening this model would run os:abort, which is not part.*--trust-model-code"
    ):
        check_model_code("os:abort", model="run")
    with trust_model_code():
        check_model_code("os:abort", model="run")
    with pytest.raises(UserError):
        check_model_code("os:abort", model="run")


def test_a_custom_network_is_imported_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_nets_here.py").write_text("def make(): return 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert import_function("own_nets_here:make", setting="network.name")() == 3
    for name in ("own_nets_here:other", "no_such_module:make", "own_nets_here", ":make", ""):
        with pytest.raises(UserError, match=r"network\.name is '.*; expected package\.module:function"):
            import_function(name, setting="network.name")


def test_a_network_beyond_all_sizes_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    built = []

    def build() -> torch.nn.Module:
        built.append(torch.empty(0).device.type)
        return torch.nn.Linear(1 << 40, 1 << 40)

    with pytest.raises(UserError, match=r"model\.json does not describe the network .*overflow"):
        build_from(build, {}, source=tmp_path)
    assert built == ["meta"]


def test_loading_a_model_draws_no_random_numbers(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 2)
    before = torch.get_rng_state()
    built = build_from(lambda: torch.nn.Linear(3, 2), layer.state_dict(), source=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(built.weight, layer.weight)

"""Every verb that writes, in all three command lines: files of others stay, and inputs are never targets.

A verb either runs here and shows what it writes, or (training, demos) its targets are listed. At every one of these
places a file of somebody else is then put before the verb is called again.
"""

from __future__ import annotations

import importlib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

THEIRS = b"somebody else's\n"
#: Verbs that write nothing.
READ_ONLY: set[tuple[str, str]] = set()
_OWN = (".outputs.json", ".outputs.journal", ".lock")


@dataclass(frozen=True)
class Case:
    """A command line that writes.

    Attributes:
        words: The command line; DATA, MODEL and the like are files of `Place`, OUT is a new folder.
        targets: Files in OUT that it would write, where it does not run here.
        read: Command lines whose output is one of their inputs; refused even with --overwrite.
        status: Exit status of a run that went well.
    """

    words: str
    targets: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    status: int = 0

    @property
    def verb(self) -> str:
        return self.words.split()[0]


_RUN = ("config.yaml", "metrics.jsonl", "model/model.json", "notes.txt")
VISION = [
    Case("check DATA --out OUT/found.json", read=("check TABLE --out TABLE", "check TABLE --out DATA/a/0.png")),
    Case("make-splits digits OUT --fractions 0.1 --draws 2 --validation-fraction 0.1", read=("make-splits TABLE OUT",)),
    Case(
        "pretrain digits OUT --epochs 1 --device cpu",
        _RUN,
        read=("pretrain DATA DATA --epochs 1 --device cpu", "pretrain digits RUN --init MODEL --epochs 1 --device cpu"),
    ),
    Case(
        "finetune MODEL digits OUT --epochs 1 --device cpu",
        _RUN,
        read=(
            "finetune MODEL digits MODEL --epochs 1 --device cpu",
            "finetune MODEL DATA DATA --epochs 1 --device cpu",
        ),
    ),
    Case(
        "distill MODEL digits OUT --epochs 1 --device cpu",
        _RUN,
        read=("distill MODEL digits MODEL --epochs 1 --device cpu", "distill MODEL DATA DATA --epochs 1 --device cpu"),
    ),
    Case(
        "few-labels MODEL digits OUT --labels LABELS",
        ("few-labels.json", "linear/model/model.json", "lists/all.json"),
        read=("few-labels MODEL digits MODEL --labels LABELS", "few-labels MODEL DATA DATA"),
    ),
    Case(
        "linear pixels digits --out OUT/score.json --device cpu --epochs 1",
        read=("linear MODEL digits --out MODEL/model/model.json --device cpu",),
    ),
    Case(
        "knn pixels digits --out OUT/score.json --device cpu", read=("knn pixels digits --labels LABELS --out LABELS",)
    ),
    Case(
        "transfer pixels DATA --out OUT/score.json --test-part train --device cpu",
        read=("transfer pixels digits --labels LABELS --out LABELS", "transfer pixels TABLE --out TABLE"),
    ),
    Case(
        "evaluate MODEL digits --out OUT --name scores --device cpu",
        read=("evaluate MODEL digits --out MODEL/model --name model --device cpu",),
    ),
    Case(
        "predict MODEL DATA OUT/table.csv --device cpu",
        read=("predict MODEL TABLE TABLE", "predict RUN DATA RUN/metrics.csv"),
    ),
    Case(
        "embed pixels DATA OUT/features.npz --device cpu",
        read=("embed pixels DATA DATA/a/0.png --points 2", "embed pixels TABLE DATA/b/0.png --points 2"),
    ),
    Case("report RUN --out OUT/page.html --device cpu", read=("report RUN --out RUN/metrics.jsonl",)),
    Case("import-checkpoint WEIGHTS OUT", read=("import-checkpoint WEIGHTS OUT",)),
    Case("export MODEL OUT/net.pt2", read=("export MODEL MODEL/model/model.safetensors",)),
    Case(
        "demo --out OUT --epochs 1 --device cpu",
        ("report.html", "report.png", "config.yaml", "evaluation/linear-5.json"),
        read=("demo --out DATA --epochs 1 --device cpu", "demo --out RUN --epochs 1 --device cpu"),
    ),
]
_SMALL = "--network.width 2 --image-size 32 --batch-size 4 --device cpu --no-progress"
MEDSEG = [
    Case(
        "check DATA --out OUT/found.json --propose-map OUT/map.json --picture-folder OUT/pictures --picture-all",
        read=("check DATA --out IMAGE", "check DATA --propose-map LABEL", "check DATA --split SPLIT --out SPLIT"),
    ),
    Case(
        "check DATA --repair fractions --repaired OUT",
        ("notes.txt", "imagesTr/patient001_ED.nii.gz"),
        read=("check DATA --repair fractions --repaired DATA",),
    ),
    Case("make-splits DATA OUT --n-labelled 1 --draws 1 --n-validation 1"),
    Case(
        f"run DATA OUT --labelled patient001 --steps 1 --baseline-steps 1 {_SMALL}",
        (*_RUN, "split.json"),
        read=(f"run DATA DATA --labelled patient001 --steps 1 --baseline-steps 1 {_SMALL}",),
    ),
    Case(
        f"train DATA OUT --split SPLIT --steps 1 {_SMALL}",
        _RUN,
        read=(f"train DATA DATA --split SPLIT --steps 1 {_SMALL}", f"train DATA RUN --split SPLIT --steps 2 {_SMALL}"),
    ),
    Case(
        "pretrain DATA OUT --split SPLIT --device cpu --no-progress",
        _RUN,
        read=("pretrain DATA DATA --split SPLIT --device cpu --no-progress",),
    ),
    Case(
        "selftrain MODEL DATA OUT --split SPLIT --steps 1 --device cpu --no-progress",
        _RUN,
        read=("selftrain MODEL DATA MODEL --split SPLIT --steps 1 --device cpu --no-progress",),
    ),
    Case("predict MODEL DATA OUT --pictures --uncertainty --device cpu", read=("predict MODEL IMAGE IMAGE",)),
    Case(
        "evaluate MODEL DATA --out OUT --name scores --part all --device cpu",
        read=("evaluate MODEL DATA --out RUN/model --name model --part all --device cpu",),
    ),
    Case("next MODEL DATA OUT --split SPLIT --device cpu"),
    Case("report RUN --out OUT/page.html", read=("report RUN --out RUN/metrics.jsonl",)),
    Case("export MODEL OUT/net.pt2", read=("export MODEL MODEL/model/model.safetensors", "export MODEL MODEL")),
    Case("export MODEL OUT", ("notes.txt", "configs/metadata.json", "model/model.json")),
    Case(
        "demo --out OUT --steps 4 --device cpu",
        ("split.json", "data/dataset.json", "report.html", "baseline/config.yaml"),
        read=("demo --out DATA --steps 4 --device cpu", "demo --out RUN --steps 4 --device cpu"),
    ),
]
VIDEO = [
    Case("check DATA --out OUT/found.csv", read=("check TABLE --out TABLE", "check TABLE --out VIDEO")),
    Case("make-splits DATA OUT --per-class 1 --draws 1 --validation-fraction 0 --test-fraction 0.3"),
    Case(
        "flow DATA OUT --workers 0 --method dis_ultrafast --short-side 32",
        ("videos.csv", "flow.json"),
        read=("flow DATA DATA --workers 0 --method dis_ultrafast --short-side 32",),
    ),
    Case(
        "train DATA OUT --split SPLIT --steps 1 --device cpu --no-progress",
        _RUN,
        read=(
            "train DATA DATA --split SPLIT --steps 1 --device cpu --no-progress",
            "train DATA RUN --split SPLIT --init RUN --steps 1 --device cpu --no-progress",
        ),
    ),
    Case(
        "evaluate MODEL DATA --split SPLIT --out OUT --clips 1 --crops 1 --device cpu",
        read=("evaluate MODEL DATA --split SPLITS/test.json --out SPLITS --clips 1 --crops 1 --device cpu",),
    ),
    Case(
        "predict MODEL DATA OUT/table.csv --clips 1 --crops 1 --device cpu",
        read=(
            "predict MODEL TABLE TABLE --clips 1 --crops 1",
            "predict MODEL DATA VIDEO --sheet 0 --clips 1 --crops 1",
            "predict MODEL DATA RUN/metrics.csv --sheet 0 --clips 1 --crops 1",
        ),
    ),
    Case("report RUN --out OUT/page.html", read=("report RUN --out RUN/metrics.jsonl",)),
    Case("export MODEL OUT/net.safetensors", read=("export MODEL RUN/model/model.safetensors",)),
    Case(
        "demo --out OUT --steps 1 --device cpu",
        ("report.html", "run/config.yaml", "videos/red/000.mkv", "notes.txt"),
        read=("demo --out DATA --steps 1 --device cpu", "demo --out RUN --steps 1 --device cpu"),
    ),
]
CASES = {"ssl_vision": VISION, "ssl_medseg": MEDSEG, "ssl_video": VIDEO}


def vision_place(folder: Path) -> dict[str, Path]:
    import torchvision
    from safetensors.torch import save_file

    from contrastive_core.training import Run, RunOptions
    from ssl_vision.data import open_images
    from ssl_vision.labels.files import LabelFile, write_label_file
    from ssl_vision.models import EncoderOptions
    from ssl_vision.models.model_folder import Architecture, save_classifier

    for name in ("a", "b"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (12, 12), (number * 40, 90, ord(name))).save(folder / "photos" / name / f"{number}.png")
    (folder / "table.csv").write_text("path,label\nphotos/a/0.png,a\nphotos/b/0.png,b\n")
    digits = open_images("digits")
    listed = [(digits.key(i), digits.classes[int(digits.labels()[i])]) for i in range(40)]
    write_label_file(folder / "labels.json", LabelFile("digits", "train", tuple(listed), {}))
    architecture = Architecture(EncoderOptions(width_multiplier=0.125), image_size=8)
    options = RunOptions(device="cpu", threads=1, progress=False)
    with Run(folder / "model", config={}, command="test", options=options) as run:
        save_classifier(run, architecture.build(10), architecture=architecture, classes=digits.classes, epoch=0)
    line = ["finetune", str(folder / "model"), "digits", str(folder / "run"), "--labels", str(folder / "labels.json")]
    assert call("ssl_vision", [*line, "--epochs", "1", "--batch-size", "20", "--device", "cpu", "--no-progress"]) == 0
    save_file(torchvision.models.resnet18(num_classes=3).state_dict(), folder / "weights.safetensors")
    return {
        "DATA": folder / "photos", "TABLE": folder / "table.csv", "LABELS": folder / "labels.json",
        "MODEL": folder / "model", "RUN": folder / "run", "WEIGHTS": folder / "weights.safetensors",
    }  # fmt: skip


def medseg_place(folder: Path) -> dict[str, Path]:
    from ssl_medseg.datasets import Split, open_dataset, write_split
    from ssl_medseg.phantom import write_phantom

    data, split = folder / "data", folder / "split.json"
    write_phantom(data, patients=4, frames=1, size=32)
    names = open_dataset(data).names
    write_split(split, Split(names[:1], names[1:2], names[2:3], names[3:]), open_dataset(data))
    words = ["train", str(data), str(folder / "run"), "--split", str(split), "--steps", "1", *_SMALL.split()]
    assert call("ssl_medseg", words) == 0
    image, label = (next((data / part).glob(f"{names[0]}*")) for part in ("imagesTr", "labelsTr"))
    return {
        "DATA": data, "SPLIT": split, "IMAGE": image, "LABEL": label, "MODEL": folder / "run", "RUN": folder / "run"
    }  # fmt: skip


def video_place(folder: Path) -> dict[str, Path]:
    from ssl_video.data.synthetic import make_videos

    videos = make_videos(folder / "videos", per_class=4)
    first = videos / "red" / "000.mkv"
    (folder / "table.csv").write_text(f"path,class\n{first},red\n")
    line = ["--per-class", "1", "--draws", "1", "--validation-fraction", "0", "--test-fraction", "0.3", "--by", "clip"]
    assert call("ssl_video", ["make-splits", str(videos), str(folder / "splits"), "--fractions", "", *line]) == 0
    split = Path(shutil.copy(folder / "splits" / "1each-draw0.json", folder / "splits" / "test.json"))
    small = (
        "--views rgb --steps 1 --batch-size 4 --mu 1 --image-size 16 --clip.frames 4 --clip.stride 2 --recalibrate 0"
    )
    network = "--network.name small_slow --network.width 4 --device cpu --no-progress"
    line = ["train", str(videos), str(folder / "run"), "--split", str(split), *small.split(), *network.split()]
    assert call("ssl_video", line) == 0
    return {
        "DATA": videos, "TABLE": folder / "table.csv", "VIDEO": first, "SPLIT": split, "MODEL": folder / "run",
        "RUN": folder / "run", "SPLITS": split.parent,
    }  # fmt: skip


PLACES = {"ssl_vision": vision_place, "ssl_medseg": medseg_place, "ssl_video": video_place}


def call(domain: str, words: list[str]) -> int:
    main: Callable[[list[str]], int] = importlib.import_module(f"{domain}.cli").main
    return main(words)


def filled(words: str, place: dict[str, Path], out: Path) -> list[str]:
    line = []
    for word in words.split():
        first, slash, rest = word.partition("/")
        known = {**place, "OUT": out}.get(first)
        line.append(word if known is None else f"{known}{slash}{rest}")
    return line


def contents(*folders: Path) -> dict[Path, bytes]:
    return {
        file: file.read_bytes()
        for folder in folders
        for file in folder.rglob("*")
        if file.is_file() and file.name not in _OWN
    }


@pytest.mark.parametrize("domain", CASES)
def test_every_verb_is_here(domain: str) -> None:
    verbs = set(importlib.import_module(f"{domain}.cli").VERBS)
    assert {case.verb for case in CASES[domain]} | {verb for name, verb in READ_ONLY if name == domain} == verbs


@pytest.mark.parametrize(
    ("domain", "case"),
    [
        pytest.param(domain, case, id=f"{domain}-{number}-{case.verb}")
        for domain in CASES
        for number, case in enumerate(CASES[domain])
    ],
)
def test_files_of_others_stay(
    domain: str,
    case: Case,
    places: Callable[[str], dict[str, Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    place, out = places(domain), tmp_path / "out"
    root = next(iter(place.values())).parent
    line, inputs = filled(case.words, place, out), contents(root)
    targets = [out / name for name in case.targets]
    if not targets:
        assert call(domain, line) == case.status, capsys.readouterr().err
        targets = sorted(contents(out))
        assert call(domain, line) == case.status, "its own files are replaced"
        assert targets
        assert sorted(contents(out)) == targets
    for number, target in enumerate(targets):
        shutil.rmtree(out, ignore_errors=True)
        target.parent.mkdir(parents=True)
        target.write_bytes(THEIRS)
        capsys.readouterr()
        status = call(domain, line)
        said = capsys.readouterr().err
        assert target.read_bytes() == THEIRS, f"{target} was overwritten"
        assert status == 1, said
        assert target.name in said or out.name in said
        assert contents(out) == {target: THEIRS}, "refused before anything is written"
        assert contents(root) == inputs
        if "--overwrite" in help_of(domain, case.verb) and number == 0 and case.targets == ():
            assert call(domain, [*line, "--overwrite"]) == case.status
            assert f"--overwrite replaces {target}" in capsys.readouterr().err
            assert target.read_bytes() != THEIRS
    for words in case.read:
        line = filled(words, place, out)
        for more in ([], ["--overwrite"]):
            call(domain, [*line, *more])
            assert contents(root) == inputs, f"{words}: an input was changed"


def test_every_file_is_put_in_place_by_one_function() -> None:
    """A file renamed in another way is not in the journal, so after a kill the command would not recognise it."""
    renaming = re.compile(r"\.rename\(|os\.(replace|rename)\(|shutil\.move|\.replace\((path|target|file|out)\)")
    sources = sorted(Path(__file__).parents[2].glob("packages/*/src/**/*.py"))
    assert len(sources) > 100
    renamed = {path.name for path in sources if renaming.search(path.read_text(encoding="utf-8"))}
    assert renamed == {"files.py", "build.py", "checkpoint.py"}, "the library and checkpoints are in folders of our own"


def help_of(domain: str, verb: str) -> str:
    from contrastive_core.app.declarations import declared_function
    from contrastive_core.app.flags import Flags

    about = importlib.import_module(f"{domain}.cli").VERBS[verb]
    return " ".join(f"--{name}" for name in Flags(declared_function(about.target)).types)

"""The study of the strong recipe: scores by draw, and tables that grow from run to run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from ssl_medseg.cli import main
from tools.studies import ingredients
from tools.studies.strong import MATERIALS, Study, collect, rows

ROWS = ("labels alone, 2N steps", "consistency")


def finished(study: Study, name: str, draw: int, dice: float) -> None:
    """Write the scores of a run, as `evaluate` does."""
    structures = [{"measures": {"hd95": {"mean": 10 * dice, "n_missing": 0}}}]
    for which, value in (("chosen", dice), ("last", dice - 0.01)):
        path = study.out(name, 2, draw) / "evaluation" / f"{which}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        summary = {"mean_dice": {"mean": value}, "structures": structures}
        path.write_text(json.dumps({"summary": summary, "cases": []}))


def test_draws_of_an_earlier_file_stay(tmp_path: Path) -> None:
    """Draws 1 and 2 ran on one machine, draw 2 again and draw 3 on the next one, whose folder lacks draw 1."""
    first, second = (Study(MATERIALS["acdc"], Path("data"), tmp_path / name, 3, "minutes") for name in ("a", "b"))
    for study, draws in ((first, {1: (0.7, 0.8), 2: (0.7, 0.75)}), (second, {2: (0.7, 0.9), 3: (0.6, 0.5)})):
        for draw, scores in draws.items():
            for name, dice in zip(("labels", "consistency"), scores, strict=True):
                finished(study, name, draw, dice)
    old = json.loads(json.dumps({"scores": collect(first, {}), "table": {"rows": rows(collect(first, {}))}}))
    assert [row[:6] for row in old["table"]["rows"]] == [
        [2, ROWS[0], 2, "0.700 ± 0.000", "0.700", None],
        [2, ROWS[1], 2, "0.775 ± 0.035", "0.750", "+0.075 (2 of 2)"],
    ]
    table = rows(collect(second, old), old["table"]["rows"])
    assert [row[:7] for row in table] == [
        [2, ROWS[0], 3, "0.667 ± 0.058", "0.600", None, "0.657 ± 0.058"],
        [2, ROWS[1], 3, "0.733 ± 0.208", "0.500", "+0.067 (2 of 3)", "0.723 ± 0.208"],
    ]


def test_rows_without_scores_stay(tmp_path: Path) -> None:
    study = Study(MATERIALS["acdc"], Path("data"), tmp_path, 1, "minutes")
    finished(study, "consistency", 1, 0.8)
    old = [
        ["all", ROWS[0], 1, "0.872", "0.872", None, "0.873", None],
        [1, ROWS[1], 5, "0.755", "0.470", None, None, None],
    ]
    table = rows(collect(study, {}), old)
    assert [(row[0], row[3]) for row in table] == [(1, "0.755"), (2, "0.800"), ("all", "0.872")]


def test_ingredients_differ_from_the_recipe_in_one_setting(capsys: pytest.CaptureFixture[str]) -> None:
    catalogue = ingredients.LABELS | ingredients.SELFTRAINING
    study = Study(MATERIALS["acdc"], Path("data"), Path("runs"), 1, "minutes", counts=(2,), catalogue=catalogue)

    def config(name: str) -> dict[str, object]:
        (job, *_) = study.line(name, 2, 1)
        assert main([*job.arguments, "--print-config"]) == 0
        return leaves(yaml.safe_load(capsys.readouterr().out))

    for base, methods in ((ingredients.RECIPE, ingredients.LABELS), (ingredients.UNLABELLED, ingredients.SELFTRAINING)):
        recipe = config(base)
        for name in methods.keys() - {base}:
            changes = {key for key, value in config(name).items() if recipe[key] != value} - {"out"}
            assert len(changes) == {"augment-none": 3, "size-96": 2}.get(name, 1), (name, changes)


def leaves(settings: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Return the values of nested settings by dotted name."""
    values: dict[str, object] = {}
    for key, value in settings.items():
        values |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return values

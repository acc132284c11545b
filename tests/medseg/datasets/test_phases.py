"""The heart phase that a case shows, from its name, a table, or ACDC's Info.cfg."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from contrastive_core.errors import UserError
from ssl_medseg.datasets import open_dataset
from ssl_medseg.datasets.phases import phase_of
from ssl_medseg.io import ImageFile
from tests.medseg.volumes_on_disk import affine, write_nifti

INFO = "ED: 1\nES: 12\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n"


def test_phase_by_name_and_by_the_info_of_acdc(tmp_path: Path) -> None:
    (tmp_path / "Info.cfg").write_text(INFO)
    image = ImageFile(tmp_path / "patient001_4d.nii.gz")
    assert phase_of("P3_ED", image) == "ED"
    assert phase_of("p3-es", image) == "ES"
    assert phase_of("speed", image) == ""
    assert phase_of("patient001_frame12", image) == "ES"
    assert phase_of("patient001_frame02", image) == ""
    assert phase_of("patient001_4d", image.at_frame(0)) == "ED"  # time points are counted from 0, frames of ACDC from 1
    assert phase_of("patient001_frame12", ImageFile(tmp_path / "elsewhere" / "a.nii.gz")) == ""


def test_phase_by_tables(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        write_nifti(tmp_path / "images" / f"{name}.nii.gz", np.zeros((8, 8, 3, 4), np.int16), affine((1, 1, 5)))
    (tmp_path / "labels.json").write_text(json.dumps({"background": 0, "LV": 1}))
    rows = "images/a.nii.gz,a,0,ED\nimages/b.nii.gz,b,2,end-systole\n"
    (tmp_path / "all.csv").write_text("image,case,frame,phase\n" + rows)
    data = open_dataset(tmp_path / "all.csv", allow_unlabelled=True)
    assert [(case.phase, case.image.frame) for case in data.cases] == [("ED", 0), ("ES", 2)]
    (tmp_path / "frames.csv").write_text("case,frame,phase\na,3,ES\nb,1,\n")
    data = open_dataset(tmp_path, frame_table=tmp_path / "frames.csv", allow_unlabelled=True)
    assert [(case.phase, case.image.frame) for case in data.cases] == [("ES", 3), ("", 1)]
    (tmp_path / "all.csv").write_text("image,phase\nimages/a.nii.gz,late\n")
    with pytest.raises(UserError, match=r"all\.csv: found the phase 'late'; expected ED, ES or an empty cell"):
        open_dataset(tmp_path / "all.csv", allow_unlabelled=True)

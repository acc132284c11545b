"""Write a self-contained HTML report of a run (`ssl-medseg report`)."""

from __future__ import annotations

from pathlib import Path

from contrastive_core.app.report import page
from contrastive_core.app.report.run_record import showing
from contrastive_core.training.files import write_atomic
from contrastive_core.training.outputs import Outputs, run_files
from ssl_medseg.reports import sections
from ssl_medseg.reports.evaluation_section import evaluation_section, stages_table
from ssl_medseg.reports.rounds import rounds_section
from ssl_medseg.reports.run_folder import open_run


def report(run: Path, *, out: Path | None = None, show_paths: bool = False, overwrite: bool = False) -> Path:
    """Write the report of a run as a single HTML file without external resources.

    The report shows the data and the training curves; statistics of the pseudo-labels over the rounds; for every
    evaluation in the run folder ``evaluation``, tables by structure and case, Bland-Altman plots, and the best, median
    and worst case with mask overlays; settings and environment. It starts with the limitations that a reader must know.
    It contains the names of cases and of the data set; file paths are shown on request only. Unfinished and unevaluated
    runs have a report, too.

    Args:
        run: Run folder of ``ssl-medseg train``, ``pretrain``, ``selftrain`` or ``run``.
        out: HTML file to write; by default ``report.html`` in the run's folder.
        show_paths: Show the paths of data and run in the settings, as in config.yaml.
        overwrite: Whether to replace files that this command did not write.

    Returns:
        The HTML file.
    """
    with showing(Path(run)):
        text = _document(Path(run), show_paths=show_paths)
    target = Path(out) if out is not None else Path(run) / "report.html"
    with Outputs([target], command="ssl-medseg report", inputs=run_files(run), overwrite=overwrite):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, text.encode())
    return target


def _document(run: Path, *, show_paths: bool) -> str:
    run_content = open_run(run)
    several = sum(bool(stage.rounds) for stage in run_content.stages) > 1
    return page.document(
        sections.title(run_content),
        [
            sections.header(run_content),
            stages_table(run_content.stage_evaluations),
            *(evaluation_section(each, folder, place=i) for i, (each, folder) in enumerate(run_content.evaluations)),
            sections.next_steps(run_content),
            sections.learnt_from(run_content),
            sections.training(run_content),
            *(rounds_section(stage.rounds, name=stage.name if several else "") for stage in run_content.stages),
            sections.settings(run_content, show_paths=show_paths),
            sections.surroundings(run_content),
        ],
    )

"""Evaluate masks: overlap, surface distances and volumes by case and structure, and summaries over cases."""

from ssl_medseg.evaluation.results import CaseScores, Evaluation, StructureScore, read_evaluation, write_evaluation
from ssl_medseg.evaluation.summary import BlandAltman, StructureSummary, Summary, bland_altman, summarise

__all__ = [
    "BlandAltman",
    "CaseScores",
    "Evaluation",
    "StructureScore",
    "StructureSummary",
    "Summary",
    "bland_altman",
    "read_evaluation",
    "summarise",
    "write_evaluation",
]

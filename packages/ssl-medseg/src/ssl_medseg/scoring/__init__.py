"""How good masks are: overlap, distances and volumes by case and structure, and what may be said of many cases."""

from ssl_medseg.scoring.agreement import BlandAltman, bland_altman
from ssl_medseg.scoring.records import CaseScores, Evaluation, StructureScore, read_evaluation, write_evaluation
from ssl_medseg.scoring.summary import StructureSummary, Summary, paper_dice, summarise

__all__ = [
    "BlandAltman",
    "CaseScores",
    "Evaluation",
    "StructureScore",
    "StructureSummary",
    "Summary",
    "bland_altman",
    "paper_dice",
    "read_evaluation",
    "summarise",
    "write_evaluation",
]

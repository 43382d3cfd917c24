"""Judging rows: evidence that one is unusual, how sure that is, and drift of the whole."""

from refold.detection.base import Evidence, evidences, register
from refold.detection.calibration import Calibration
from refold.detection.detector import Detector, ordinary
from refold.detection.discoveries import benjamini_hochberg
from refold.detection.drift import Change, Drift, Reference
from refold.detection.errors import Errors
from refold.detection.hidden import Hidden
from refold.detection.judge import Rule, contributions, scores
from refold.detection.mahalanobis import Mahalanobis
from refold.detection.neighbours import Neighbours
from refold.detection.smoothed import Smoothed

__all__ = [
    "Calibration",
    "Change",
    "Detector",
    "Drift",
    "Errors",
    "Evidence",
    "Hidden",
    "Mahalanobis",
    "Neighbours",
    "Reference",
    "Rule",
    "Smoothed",
    "benjamini_hochberg",
    "contributions",
    "evidences",
    "ordinary",
    "register",
    "scores",
]

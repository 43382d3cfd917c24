"""Several recipes on the same rows, judged by the same measures and ranked by a purpose."""

from refold.comparison.contest import compare
from refold.comparison.outcome import MEASURES, Comparison, Contender

__all__ = ["MEASURES", "Comparison", "Contender", "compare"]

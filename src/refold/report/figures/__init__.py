"""Figures about a fitted model: each function returns a :class:`Figure` to show or to save.

>>> import numpy as np, refold
>>> from refold.report import figures
>>> X = np.random.default_rng(0).normal(size=(60, 5))
>>> ae = refold.Autoencoder(2, epochs=1).fit(X)
>>> figures.histograms(ae, X).title
'Histograms of the units'
"""

from refold.report.figures.alarms import alarms
from refold.report.figures.anomaly import p_values, scores
from refold.report.figures.code import activity, codes, correlation, histograms
from refold.report.figures.decoder import dictionary, traversals, units
from refold.report.figures.figure import Figure, Panel
from refold.report.figures.lacking import missing
from refold.report.figures.points import scatter
from refold.report.figures.restoring import restoration
from refold.report.figures.rows import pairs
from refold.report.figures.sparsity import density
from refold.report.figures.targets import confusion, parity, shares
from refold.report.figures.training import losses, prefixes, weights

__all__ = [
    "Figure",
    "Panel",
    "activity",
    "alarms",
    "codes",
    "confusion",
    "correlation",
    "density",
    "dictionary",
    "histograms",
    "losses",
    "missing",
    "p_values",
    "pairs",
    "parity",
    "prefixes",
    "restoration",
    "scatter",
    "scores",
    "shares",
    "traversals",
    "units",
    "weights",
]

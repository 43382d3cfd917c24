"""The report: one HTML page about a trained model, which opens anywhere and needs no network."""

from refold.report.page import write

__all__ = ["write"]

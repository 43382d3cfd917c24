"""Judging rows that are new: detectors, discoveries among many, drift of the whole."""

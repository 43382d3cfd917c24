"""What is measured: a file for each kind of work, and a :class:`Case` for each size of it."""

from __future__ import annotations

from cases import (
    contractive,
    conv,
    dense,
    detecting,
    dictionary,
    ensemble,
    loading,
    scoring,
    starting,
    variational,
)
from contest import Case

KINDS = (
    dense,
    conv,
    variational,
    contractive,
    dictionary,
    ensemble,
    scoring,
    detecting,
    starting,
    loading,
)


def every(quick: bool) -> dict[str, Case]:
    """All cases by name; ``quick`` ones are so small that they only show that all runs."""
    return {case.name: case for kind in KINDS for case in kind.cases(quick)}

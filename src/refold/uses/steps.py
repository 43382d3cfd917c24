"""How far each step of a series is from what comes back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refold.data.schema import Schema
from refold.errors import InputError
from refold.fields import Series
from refold.model import Model
from refold.types import Batch
from refold.uses.inspect import examine


def step_errors(
    model: Model, rows: Batch, schema: Schema, field: str | None = None
) -> NDArray[np.float64]:
    r"""Squared error of every step of the series of every row, ``[n, T, C]``.

    .. math:: e_{itc} = (x_{itc} - \hat x_{itc})^2

    Values are in the model's own scale: one is a deviation of the channel in training, or with
    ``scale="window"`` of the row itself. NaN where nothing was observed. ``field`` is the series
    that is meant, where there are several.

    Raises :class:`InputError` where the model rebuilds no series, or several and none is named.
    """
    known = [k for k in model.rebuilt if isinstance(schema.fields[k], Series)]
    wanted = known if field is None else [k for k in known if k == field]
    if len(wanted) != 1:
        found = f"has {', '.join(known)}" if known else "rebuilds none"
        asked = "one field of series is expected" if field is None else f"'{field}' is no series"
        raise InputError(f"{asked}, but this model {found}; name one that it rebuilds")
    (name,) = wanted
    x, seen = rows.x[name], rows.observed[name]
    found = (x - examine(model, rows, schema).points[name].view_as(x)).double().square()
    found = found if seen is None else found.masked_fill(~seen.view_as(x), np.nan)
    return found.numpy()

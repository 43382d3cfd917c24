"""All rows scored and written in order, however many they are."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from refold.cli.commands import working
from refold.data.sinks import write, writing
from refold.data.sources import read
from refold.data.writers import Columns
from refold.detection import Drift, Rule
from refold.detection.drift import SAMPLE
from refold.detection.judge import doubt
from refold.detection.two_samples import chosen
from refold.errors import InputWarning
from refold.estimator import Autoencoder
from refold.judging import DRIFTING, drifted, facing
from refold.table import Table
from refold.uses.portions import Picked, Portions


def score(
    ae: Autoencoder, rows: Portions, rule: Rule, out: Path, *, hidden: bool
) -> tuple[NDArray[np.int64], Drift | None]:
    """Write what is judged of every row; return the places of anomalies, and how the rows differ.

    ``hidden`` says that no progress is to be shown.
    """
    own = facing(ae, rows)
    # Flags follow from what is known of all rows; until then any rule will do.
    judging = working(rows, lambda t: own.judge(t, contamination=0.5), "scoring", hidden=hidden)
    few, most = chosen(len(rows), DRIFTING).numpy(), chosen(len(rows), SAMPLE).numpy()
    picked = Picked(np.union1d(few, most))
    with writing(out) as add, judging as parts:
        lowest, flagged = _written(parts, rule, len(rows), picked, add)
    sentence = doubt(ae.calibration_, rule, len(rows), lowest, len(flagged))
    if sentence is not None:
        warnings.warn(sentence, InputWarning, stacklevel=2)
    some, _ = ae.schema_.encode(picked.table())
    compared, embedded = (
        some.rows(torch.from_numpy(np.searchsorted(picked.places, own))) for own in (most, few)
    )
    return flagged, drifted(ae, compared, embedded)


def explain(ae: Autoencoder, rows: Portions, flagged: NDArray[np.int64], out: Path) -> None:
    """Write the causes of the rows at these places."""
    names = ("row", "cause", "seen", "expected", "share", "p_value")
    found: dict[str, Any] = {name: np.zeros(0) for name in names}
    if len(flagged):
        found = dict(read(ae.explain(rows.take(flagged))).columns)
        found["row"] = flagged[np.asarray(found["row"], dtype=np.int64)]
    write(found, out)


def _written(
    parts: Iterable[tuple[Table, dict[str, Any]]],
    rule: Rule,
    count: int,
    picked: Picked,
    add: Callable[[Columns], None],
) -> tuple[float, NDArray[np.int64]]:
    """Write what is judged of ``count`` rows; return the lowest p-value, and who is flagged.

    Rules by which the rows compete with each other have to wait for the last one, with a score, a
    p-value and a cause of each row kept till then.
    """
    waits = rule.contamination is not None or rule.fdr is not None
    scores, p_values = np.empty((2, count if waits else 0))
    causes, places = list[Any](), list[NDArray[np.int64]]()
    lowest, begin = 1.0, 0
    for table, found in parts:
        picked.add(table)
        lowest = min(lowest, float(found["p_value"].min()))
        end = begin + len(table)
        if waits:
            scores[begin:end], p_values[begin:end] = found["score"], found["p_value"]
            causes.append(pa.array(found["cause"]).dictionary_encode())
        else:
            flags = found["p_value"] <= rule.level(count)
            add({**found, "is_anomaly": flags})
            places.append(begin + np.flatnonzero(flags))
        begin = end
    if waits:
        every, end = rule.flags(scores, p_values), 0
        places.append(np.flatnonzero(every))
        for cause in causes:
            own = slice(end, end + len(cause))
            end = own.stop
            add(
                {
                    "score": scores[own],
                    "p_value": p_values[own],
                    "is_anomaly": every[own],
                    "cause": cause,
                }
            )
    return lowest, np.concatenate(places)

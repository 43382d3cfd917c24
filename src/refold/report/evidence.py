"""What the report rests on: a model's saved results, and rows where they are given."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from refold import inference
from refold.data.sources import read
from refold.detection.judge import Rule, judge
from refold.errors import InputError
from refold.estimator import Autoencoder
from refold.fields import Field
from refold.fusion import Dictionary
from refold.table import Column, Table
from refold.types import Batch
from refold.uses.inspect import Examined, examine
from refold.wording import counted

MOST = 2000  # rows that go into a page
ALPHA = 0.01


@dataclass(frozen=True)
class Data:
    """Rows the report was given: all of them judged, and a seeded subsample of them to show.

    ``rows`` are the subsample's positions, ascending, and ``batch`` its tensors; ``score``,
    ``p_value``, ``is_anomaly`` and ``cause`` are of all rows, as is ``learnt``: whether a row was
    in the fit, where such rows are judged apart.
    """

    table: Table
    everything: Batch
    notes: tuple[str, ...]
    rows: NDArray[np.int64]
    batch: Batch
    score: NDArray[np.float64]
    p_value: NDArray[np.float64]
    is_anomaly: NDArray[np.bool_]
    cause: NDArray[np.object_]
    learnt: NDArray[np.bool_]

    @classmethod
    def of(cls, ae: Autoencoder, source: Any) -> Data:
        """Read, encode and judge the rows of anything that can be read."""
        table = read(source)
        if len(table) == 0:
            raise InputError("the data holds no rows to report on; give at least one")
        batch, notes = ae.schema_.encode(table)
        judged: dict[str, Any] = judge(
            ae.model_, ae.detector_, ae.calibration_, batch, ae.schema_, Rule(ALPHA)
        )
        order = np.random.default_rng(ae.seed).permutation(len(table))
        rows = np.sort(order[:MOST])
        shown = batch.rows(torch.from_numpy(rows))
        learnt = _learnt(ae, batch)
        return cls(table, batch, (*table.notes, *notes), rows, shown, learnt=learnt, **judged)

    def seen(self, name: str) -> torch.Tensor:
        """Return which entries ``[n, E]`` of a field the shown rows have."""
        found = self.batch.observed[name]
        if found is not None:
            return found
        return torch.ones_like(self.batch.x[name].flatten(1), dtype=torch.bool)

    def number(self, row: int) -> int:
        """Return what a row is called: its position where it comes from."""
        return int(row if self.table.places is None else self.table.places[row])

    def raw(self, rows: NDArray[np.int64]) -> dict[str, Column]:
        """Columns as they were given, of the rows at the given positions."""
        return self.table.take(rows)


@dataclass(frozen=True)
class Evidence:
    """Codes ``[n, D]`` of the shown rows, with score and p-value ``[n]``.

    They are of the given rows, or, where none were (``data`` is None), of held-out rows.
    """

    ae: Autoencoder
    codes: NDArray[np.float32]
    score: NDArray[np.float64]
    p_value: NDArray[np.float64]
    data: Data | None

    @classmethod
    def of(cls, ae: Autoencoder, source: Any) -> Evidence:
        """Take what was saved with the model, or what it makes of the given rows."""
        _refuse_unfitted(ae)
        if source is None:
            return cls.saved(ae)
        data = Data.of(ae, source)
        codes = inference.embed(ae.model_, data.batch, ae.schema_).float().numpy()
        return cls(ae, codes, data.score[data.rows], data.p_value[data.rows], data)

    @classmethod
    def saved(cls, ae: Autoencoder) -> Evidence:
        """Take what was saved with the model."""
        _refuse_unfitted(ae)
        kept = ae.calibration_
        if not len(kept.codes):
            raise InputError(
                "this model was truncated and holds no rows of its own to show; give data"
            )
        return cls(ae, kept.codes, kept.code_scores, kept.p_values(kept.code_scores), None)

    @property
    def rows(self) -> NDArray[np.int64]:
        """Positions of the shown rows in the data, or among those saved."""
        return np.arange(len(self.codes)) if self.data is None else self.data.rows

    @property
    def numbers(self) -> list[int]:
        """What the shown rows are called."""
        return list(map(int if self.data is None else self.data.number, self.rows))

    def given(self) -> Data:
        """Return the rows of data; an error where a figure needs them and none were given."""
        if self.data is None:
            raise InputError("this figure shows rows, and none were given; give X")
        return self.data

    @cached_property
    def found(self) -> Examined:
        """What the model makes of the rows in :attr:`Data.batch`."""
        return examine(self.ae.model_, self.given().batch, self.ae.schema_)

    def whose(self) -> str:
        """Say whose codes these are."""
        if self.data is not None:
            every = len(self.data.table)
            count = counted(every, "row")
            if every <= MOST:
                return f"the {count} of the data"
            return (
                f"{MOST:,} rows drawn at random (seed {self.ae.seed}) from the {count} of the data"
            )
        kind = "held-out" if self.ae.calibration_.held_out else "training"
        return f"{counted(len(self.codes), f'{kind} row')} saved with the model"

    def examined(self, rows: NDArray[np.int64]) -> tuple[Batch, Examined]:
        """Reconstruct the rows at the given positions of the data."""
        assert self.data is not None
        batch = self.data.everything.rows(torch.from_numpy(rows))
        return batch, examine(self.ae.model_, batch, self.ae.schema_)


@torch.inference_mode()
def _learnt(ae: Autoencoder, rows: Batch) -> NDArray[np.bool_]:
    if not len(ae.calibration_.learnt):
        return np.zeros(len(rows), dtype=np.bool_)
    passes = inference.outputs(ae.model_, rows, ae.schema_)
    detector = ae.detector_.facing(rows)
    return torch.cat([detector.learnt(o)[:n].cpu() for o, n in passes]).numpy()


def is_dictionary(ae: Autoencoder) -> bool:
    """Whether rows are sums of few directions of a dictionary."""
    return isinstance(ae.model_.fusion, Dictionary)


def unit(ae: Autoencoder) -> str:
    """Return the word for an entry of the code: of a dictionary it is a latent."""
    return "latent" if is_dictionary(ae) else "unit"


def role(own: Field) -> str:
    """Say what a field is to the model, where it is not both seen and rebuilt."""
    return "target" if own.target else "given" if own.given else ""


def _refuse_unfitted(ae: Autoencoder) -> None:
    if not hasattr(ae, "model_"):
        raise InputError("the model is not fitted, so there is nothing to draw; call fit first")

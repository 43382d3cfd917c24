"""How training went, and how much each length of an ordered code keeps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refold.errors import InputError
from refold.estimator import Autoencoder
from refold.report.charts import Axis, bars, line_chart
from refold.report.evidence import is_dictionary
from refold.report.figures import draw
from refold.report.figures.figure import Figure, Panel
from refold.report.text import number, shortened
from refold.training.fit import Row

TRAIN, HELD, NORM, WEIGHT = "train_", "valid_", "grad_", "weight_"
SPENT = "kl_"  # divergence of each unit, by number
STILL = 1e-6  # share by which a weight that stays may seem to move
BOX, BOTTOM, SIZE = (52.0, 8.0, 392.0, 168.0), 168.0, (400.0, 190.0)
LAYERS = 8  # curves of gradient norms, or of weights, that colours tell apart


def losses(ae: Autoencoder) -> Figure:
    """Draw the loss and each of its terms over the steps, in training and held out.

    Where training had several phases, lines with their names part them; norms of each layer's
    gradient and the number of silent units follow where they were recorded. Raises
    :class:`InputError` for a model that took no steps.
    """
    if not hasattr(ae, "history_"):
        raise InputError("the model is not fitted, so there is nothing to draw; call fit first")
    found = losses_of(ae)
    if not found.panels:
        raise InputError("no steps were trained, so there are no losses to draw")
    return found


def start_of(ae: Autoencoder) -> str:
    """Say what the first point of the history is, which is before any step."""
    if is_dictionary(ae):
        return "where the directions are random"
    return "where the decoder predicts a constant or the principal components"


def losses_of(ae: Autoencoder) -> Figure:
    """Draw the history; without steps a figure without panels."""
    history, judged = ae.history_, judged_rows(ae)
    if len(history) < 2:
        return Figure("Training", ())
    phases = phase_starts(ae)
    terms = terms_of(history)
    shown = ["loss", *terms] if len(terms) > 1 else ["loss"]
    panels = [_term(term, history, phases, len(shown) > 1) for term in shown]
    keys = [("line train", "training batches"), ("line held", judged)]
    keys.append(("kept", "the weights that were kept"))
    note = "In nats per row, weighted as in the objective, by step."
    return Figure("Training", tuple(panels), note, tuple(keys), tile=19, columns=2)


def judged_rows(ae: Autoencoder) -> str:
    """Say which rows the evaluations were of."""
    return "held-out rows" if ae.calibration_.held_out else "training rows, weights at rest"


def terms_of(history: Sequence[Row]) -> list[str]:
    """Names of the objective's terms, without their sum."""
    names = dict.fromkeys(
        k.removeprefix(p) for row in history for p in (TRAIN, HELD) for k in row if k.startswith(p)
    )
    return [t for t in names if t != "loss"]


def best_row(history: Sequence[Row]) -> int:
    """Position of the evaluation whose weights were kept: the best of the last phase.

    It is chosen by the held-out loss, or by the objective where weights of the outputs move.
    """
    last = history[-1].get("phase", 0.0)
    held = [
        r.get("objective", r.get(f"{HELD}loss", float("inf")))
        if r.get("phase", 0.0) == last
        else float("inf")
        for r in history
    ]
    return held.index(min(held))


def phase_starts(ae: Autoencoder) -> list[tuple[float, str]]:
    """Step at which each phase of a run begins, and its name; empty where it had but one."""
    names: tuple[str, ...] = tuple(getattr(ae.run_, "phases", ()) or ())
    starts: dict[int, float] = {}
    for row in ae.history_:
        if "phase" in row:
            starts.setdefault(int(row["phase"]), row["step"])
    if len(starts) < 2:
        return []
    return [
        (step, shortened(names[i] if i < len(names) else f"phase {i + 1}", 24))
        for i, step in starts.items()
    ]


def _term(
    term: str, history: Sequence[Row], phases: Sequence[tuple[float, str]], several: bool
) -> Panel:
    curves: list[tuple[str, list[float], list[float]]] = []
    for name, prefix in (("train", TRAIN), ("held", HELD)):
        found = [(r["step"], r[prefix + term]) for r in history if prefix + term in r]
        if found:
            curves.append((name, [e for e, _ in found], [v for _, v in found]))
    mark = history[best_row(history)]["step"]
    chart = line_chart(term, curves, box=BOX, log=True, mark=mark, phases=phases)
    caption = "loss, the sum of all terms" if term == "loss" and several else shortened(term)
    ends = {"low": f"{chart.x.low:g}", "high": f"{chart.x.high:g}"}
    data = {"term": term, **ends, "start": f"{chart.x.start:g}", "end": f"{chart.x.end:g}"}
    note = "log scale, by step" if chart.y.log else "by step"
    return Panel(draw.line_chart(chart, BOTTOM), *SIZE, caption, note, term, data)


def health_of(ae: Autoencoder) -> Figure:
    """Draw the norm of each layer's gradient and the units that were silent, where recorded.

    Of a variational model also how many units' posteriors vary, and how far each is from its prior.
    """
    history, panels, keys = ae.history_, list[Panel](), list[tuple[str, str]]()
    phases = phase_starts(ae)
    layers = list(dict.fromkeys(k for r in history for k in r if k.startswith(NORM)))
    curves: list[tuple[str, list[float], list[float]]] = []
    for i, layer in enumerate(_spaced(layers)):
        found = [(r["step"], r[layer]) for r in history if r.get(layer, 0.0) > 0]
        if len(found) > 1:
            curves.append((f"s{i % LAYERS}", [s for s, _ in found], [v for _, v in found]))
            keys.append((f"line s{i % LAYERS}", layer.removeprefix(NORM)))
    if curves:
        chart = line_chart("gradient", curves, box=BOX, log=True, phases=phases)
        note = ("log scale, " if chart.y.log else "") + "by step"
        panels.append(
            Panel(draw.line_chart(chart, BOTTOM), *SIZE, "Norm of each layer's gradient,", note)
        )
    # Of a sparse code, the figure of its density has their share.
    dead = [(r["step"], r["dead_units"]) for r in history if "dead_units" in r and "l0" not in r]
    if len(dead) > 1 and any(v > 0 for _, v in dead):
        curve = ("held", [s for s, _ in dead], [v for _, v in dead])
        chart = line_chart("dead units", [curve], box=BOX, phases=phases, floor=0.0)
        final = f"{number(dead[-1][1])} of {ae.spec_.size} at the end"
        caption = "Units that were zero in every row,"
        panels.append(Panel(draw.line_chart(chart, BOTTOM), *SIZE, caption, final))
    panels += _posterior(ae, phases)
    varied = [(r["step"], r["perplexity"]) for r in history if "perplexity" in r]
    if len(varied) > 1:
        curve = ("held", [s for s, _ in varied], [v for _, v in varied])
        chart = line_chart("perplexity", [curve], box=BOX, phases=phases, floor=0.0)
        used = history[best_row(history)]["usage"]
        marks = draw.line_chart(chart, BOTTOM)
        panels.append(Panel(marks, *SIZE, "Perplexity of the book,", f"{used:.0%} of it in use"))
    return Figure("Health of training", tuple(panels), "", tuple(keys), tile=19, most=23, columns=2)


def _posterior(ae: Autoencoder, phases: Sequence[tuple[float, str]]) -> list[Panel]:
    """Draw the active units over the steps, and each unit's divergence with the weights kept."""
    history, panels = ae.history_, list[Panel]()
    active = [(r["step"], r["active_units"]) for r in history if "active_units" in r]
    if len(active) > 1:
        best = history[best_row(history)]
        curve = ("held", [s for s, _ in active], [v for _, v in active])
        mark = best["step"]
        chart = line_chart("active units", [curve], box=BOX, mark=mark, phases=phases, floor=0.0)
        final = f"{number(best['active_units'])} of {ae.spec_.size} in the weights kept"
        marks = draw.line_chart(chart, BOTTOM)
        panels.append(Panel(marks, *SIZE, "Active units,", final))
        spent = sorted((v for k, v in best.items() if k.startswith(SPENT)), reverse=True)
        if spent:
            panels.append(_bars(spent))
    return panels


def _bars(spent: Sequence[float]) -> Panel:
    """Draw the divergence of each unit from its prior as a bar."""
    left, high, right, low = BOX
    x = Axis(0, len(spent), left, right)
    y = Axis(0, max(max(spent), 1e-9), low, high)
    marks = [draw.path(f"M{left:g} {t.at:g}H{right:g}", "grid") for t in y.ticks(4)]
    marks += [draw.text(left - 6, t.at + 4, t.label, anchor="end") for t in y.ticks(4)]
    edges = [x.at(i) for i in range(len(spent) + 1)]
    heights = np.array([low - y.at(max(v, 0.0)) for v in spent])
    marks.append(draw.path(bars(edges, heights, low), "bars"))
    marks.append(draw.text(left, low + 16, f"{len(spent)} units, the largest first"))
    title, total = "Divergence of each unit,", f"nats; {number(sum(spent))} in all"
    return Panel("".join(marks), *SIZE, title, total, "divergence of each unit from the prior")


def weights(ae: Autoencoder) -> Figure:
    """Draw how much each output counts in training, where that moves.

    Raises :class:`InputError` for a model whose weights stay as they start.
    """
    if not hasattr(ae, "history_"):
        raise InputError("the model is not fitted, so there is nothing to draw; call fit first")
    found = weights_of(ae)
    if not found.panels:
        raise InputError(
            "the weights of this model's outputs do not move; fit with several outputs and "
            "weights='uncertainty' or 'gradnorm'"
        )
    return found


def weights_of(ae: Autoencoder) -> Figure:
    """Draw moving weights as multiples of those at the start; where none moves, no panels."""
    history, title = ae.history_, "Weights of the outputs"
    found: dict[str, tuple[list[float], list[float]]] = {}
    for name in dict.fromkeys(k for r in history for k in r if k.startswith(WEIGHT)):
        seen = [(r["step"], r[name]) for r in history if name in r]
        start = seen[0][1]
        if start > 0:
            found[name.removeprefix(WEIGHT)] = [s for s, _ in seen], [w / start for _, w in seen]
    if not any(abs(w - 1) > STILL for _, ws in found.values() for w in ws):
        return Figure(title, ())
    far = sorted(found, key=lambda k: -max(max(w, 1 / w) for w in found[k][1] if w > 0))
    shown = [k for k in found if k in far[:LAYERS]]
    curves = [(f"s{i}", *found[k]) for i, k in enumerate(shown)]
    chart = line_chart("weights", curves, box=BOX, log=True, phases=phase_starts(ae))
    note = "log scale, by step" if chart.y.log else "by step"
    marks = draw.line_chart(chart, BOTTOM)
    panel = Panel(marks, *SIZE, "Weight, as a multiple of the one at the start,", note)
    few = f" The {LAYERS} of {len(found)} that moved most." if len(found) > LAYERS else ""
    words = f"How much each output counts in training; the rule moves it as training goes.{few}"
    keys = tuple((f"line s{i}", shortened(k)) for i, k in enumerate(shown))
    return Figure(title, (panel,), words, keys, tile=19, columns=1)


def _spaced(layers: list[str]) -> list[str]:
    """Pick at most eight layers, the first and the last among them."""
    if len(layers) <= LAYERS:
        return layers
    return [layers[round(i * (len(layers) - 1) / (LAYERS - 1))] for i in range(LAYERS)]


def prefixes(ae: Autoencoder) -> Figure:
    """Draw the variance an ordered code loses when it is cut after its first entries.

    Beside it, what as many principal components lose. Raises :class:`InputError` for a model whose
    code is not ordered.
    """
    curve = getattr(getattr(ae, "quality_", None), "curve", ())
    if not curve:
        raise InputError(
            "the model's code is not ordered, so there is no curve of its prefixes; fit with a "
            "latent whose entries are ordered"
        )
    sizes = [float(d) for d, _, _ in curve]
    lines = [
        ("pca", sizes, [1 - p for _, _, p in curve]),
        ("model", sizes, [1 - k for _, k, _ in curve]),
    ]
    chart = line_chart("error", lines, box=BOX, floor=0.0)
    panel = Panel(
        draw.line_chart(chart, BOTTOM), *SIZE, "Share of the variance that is lost,",
        "by entries of the code that are kept", "error of code prefixes",
    )  # fmt: skip
    keys = (("line model", "this model, its code cut short"), ("line pca", "as many components"))
    note = "One model gives every smaller code: the first entries matter most."
    return Figure("Prefixes of the code", (panel,), note, keys, tile=19, columns=1)

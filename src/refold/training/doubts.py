"""What a run leaves to be desired, in words: what was seen, what was expected, what to do."""

from __future__ import annotations

from refold.fusion import Dictionary
from refold.latents import JumpReLU, Variational
from refold.latents.dictionary import Selective
from refold.model import Model
from refold.penalties import Resample
from refold.training.standing import Run
from refold.wording import counted

FEW = 10  # one in so many units active, or a posterior is said to have collapsed
OFF = 0.25  # share by which the active latents of a row may miss their number unremarked
HALF = 0.5  # share of dead latents that is remarked on
OFTEN = 10  # times each latent would be active in the rows judged, did all fire alike


def doubts(model: Model, run: Run, rows: int) -> list[str]:
    """Say what is wrong with a model after a run that was judged on so many ``rows``."""
    if run.best.get("dead_units", 0) == model.latent.size:
        word = "latent" if isinstance(model.fusion, Dictionary) else "unit of the code"
        return [
            f"no {word} is active in any row it was judged on, so the model says the same of every "
            f"row; train longer, with a smaller lr, or with another latent"
        ]
    found = [collapsed(model, run)]
    if isinstance(model.fusion, Dictionary) and len(run.history) > 1 and "l0" in run.best:
        trained = run.best["step"] > 0
        found += [missed(model, run), wasted(model, run, rows)] if trained else [as_begun(run)]
    return [sentence for sentence in found if sentence]


def collapsed(model: Model, run: Run) -> str | None:
    """Say where a posterior has become the prior in most entries of a code, and what to do."""
    latent, active = model.latent, run.best.get("active_units")
    if not isinstance(latent, Variational) or active is None or active >= latent.size / FEW:
        return None
    ways = ["use a smaller latent or beta"]
    if hasattr(latent, "warmup"):
        ways.append("let it grow in (warmup=0.3)")
    if hasattr(latent, "free_bits"):
        ways.append("give units free bits (free_bits=0.1)")
    return (
        f"the posterior has collapsed: {active:.0f} of {latent.size} units of the code are active; "
        f"{', or '.join(ways)}"
    )


def as_begun(run: Run) -> str:
    """Say that no step did better than the start of a dictionary."""
    steps = counted(run.history[-1]["step"], "step")
    return (
        f"the dictionary is as it began, with random directions: none of {steps} did better on the "
        f"rows it was judged on; train longer (more epochs, or a smaller batch_size)"
    )


def missed(model: Model, run: Run) -> str | None:
    """Say where rows have more or fewer active latents than was asked for."""
    latent, found = model.latent, run.best["l0"]
    aim = latent.aim if isinstance(latent, Selective) else None
    if aim is None or abs(found - aim) <= OFF * aim:
        return None
    more = ""
    if isinstance(latent, JumpReLU):
        more = f", or widen what moves the thresholds (bandwidth={4 * latent.bandwidth:g})"
    return (
        f"{found:.1f} latents are active in a row, where {aim:g} were asked for, after "
        f"{counted(run.best['step'], 'step')}; train longer (more epochs, or a smaller "
        f"batch_size){more}"
    )


def wasted(model: Model, run: Run, rows: int) -> str | None:
    """Say where so many latents are active in no row that the dictionary seems too large."""
    size, often = model.latent.size, rows * run.best["l0"] / model.latent.size
    if run.best["dead_share"] < HALF or often < OFTEN:
        return None
    dead = f"{run.best['dead_share'] * size:,.0f} of {counted(size, 'latent')}"
    anew = ", or have them begin anew (penalties=('resample',))"
    known = any(isinstance(p, Resample) for p in model.penalties)
    return (
        f"{dead} are active in none of the {counted(rows, 'row')} judged, where each would be in "
        f"{often:,.0f} if all were alike; use a smaller latent, or train longer"
        f"{'' if known else anew}"
    )

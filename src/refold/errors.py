"""Every error a user can cause: what was given, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The user's data, option or file cannot be used; the message is one clear sentence."""


class InputWarning(UserWarning):
    """The input had to be handled: values never seen, columns absent."""


class ProcessError(RuntimeError):
    """A run of several processes lost one of them; the message is one clear sentence.

    ``first`` says whether no other process has raised it before.
    """

    def __init__(self, message: str, *, first: bool = True) -> None:
        super().__init__(message)
        self.first = first


class MissingExtraError(ImportError):
    """An optional dependency is not installed; the message holds the install command."""


def unknown(what: str, name: str, known: Iterable[str]) -> InputError:
    """Build the error for a name that does not exist, with the nearest that does.

    >>> str(unknown("recipe", "vea", ["vae", "dense"]))
    "unknown recipe 'vea'; did you mean 'vae'? Known: dense, vae"
    """
    choices = sorted(known)
    if not choices:
        return InputError(f"unknown {what} '{name}': there are none")
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ";"
    return InputError(f"unknown {what} '{name}'{hint} Known: {', '.join(choices)}")


def missing_extra(package: str, extra: str, purpose: str) -> MissingExtraError:
    """Build the error for an optional dependency that is absent.

    >>> str(missing_extra("plotly", "report", "the report"))
    "the report needs plotly: pip install 'refold[report]'"
    """
    return MissingExtraError(f"{purpose} needs {package}: pip install 'refold[{extra}]'")

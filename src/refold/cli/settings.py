"""``--set key=value``: any constructor argument, any part's option, any column's kind."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from refold.errors import InputError, unknown

NESTED = ("latent", "corruption")


def constructor_arguments(
    *,
    recipe: str | None,
    latent: int | None,
    epochs: int | None,
    seed: int,
    ignore: Sequence[str],
    settings: Sequence[str],
) -> dict[str, Any]:
    """Turn the options of ``refold fit`` into arguments of :class:`refold.Autoencoder`.

    >>> constructor_arguments(recipe="sparse", latent=64, epochs=None, seed=0, ignore=["id"],
    ...     settings=["latent.k=8", "field.zip=categorical", "hidden=128,64"])["latent"]
    'topk(size=64, k=8)'
    """
    from refold.estimator import Autoencoder

    known = Autoencoder().get_params(deep=False)
    arguments: dict[str, Any] = {"recipe": recipe, "latent": latent, "epochs": epochs, "seed": seed}
    fields: dict[str, str] = dict.fromkeys(ignore, "ignore")
    nested: dict[str, dict[str, Any]] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise InputError(f"cannot read --set {setting}: expected key=value, as in lr=0.002")
        head, _, rest = key.partition(".")
        if head == "field" and rest:
            fields[rest] = text
        elif head in NESTED and rest:
            nested.setdefault(head, {})[rest] = literal(text)
        elif key in known and key != "fields":
            arguments[key] = literal(text)
        else:
            names = [*known, *(f"{n}.OPTION" for n in NESTED), "field.COLUMN"]
            raise unknown("setting", key, (n for n in names if n != "fields"))
    for part, options in nested.items():
        arguments[part] = with_options(part, arguments.get(part), arguments["recipe"], options)
    if fields:
        arguments["fields"] = fields
    return arguments


def with_options(part: str, given: Any, recipe: str | None, options: dict[str, Any]) -> str:
    """Write a part in the parts' small language: the user's or the recipe's, with more options."""
    from refold.parts import PartSpec
    from refold.recipes import get

    own = getattr(get(recipe or "dense"), part)
    size = {"size": given} if isinstance(given, int) else {}
    text = given if isinstance(given, str) else own
    if text is None:
        raise InputError(
            f"--set {part}.{next(iter(options))} has no {part} to apply to; add --set {part}=NAME"
        )
    spec = PartSpec.parse(text)
    return str(PartSpec(spec.name, {**spec.options, **size, **options}))


def literal(text: str) -> Any:
    """Read a value: a number, a tuple written with commas, True, False, None, or else a word.

    >>> literal("128,64"), literal("0.5"), literal("bfloat16"), literal("")
    ((128, 64), 0.5, 'bfloat16', ())
    """
    if text == "":
        return ()
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text

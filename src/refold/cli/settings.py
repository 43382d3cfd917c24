"""``--set key=value``: any constructor argument, any part's option, any column's kind."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any, get_type_hints

from refold.errors import InputError, unknown
from refold.hints import expectation, fits

NESTED = ("latent", "corruption", "fusion")
OWN = ("fields", "verbose")  # the command line has a way of its own to say these

MONITOR = ("window", "stride", "timestamp", "contamination")  # of refold.Monitor

EACH = {  # said for all recipes at once, in words of their own
    "recipe": "--recipes", "latent": "--latent", "epochs": "--epochs", "seed": "--seed",
}  # fmt: skip


def constructor_arguments(
    *,
    recipe: str | None,
    latent: int | str | None,
    epochs: int | None,
    seed: int,
    target: Sequence[str] = (),
    ignore: Sequence[str],
    settings: Sequence[str],
) -> dict[str, Any]:
    """Turn the options of ``refold fit`` into arguments of :class:`refold.Autoencoder`.

    >>> constructor_arguments(recipe="sparse", latent=64, epochs=None, seed=0, target=[],
    ...     ignore=["id"], settings=["latent.k=8", "field.zip=categorical"])["latent"]
    'topk(size=64, k=8)'
    """
    from refold.estimator import Autoencoder
    from refold.recipe import get

    hints = get_type_hints(Autoencoder.__init__)
    known = [name for name in hints if name not in (*OWN, "return")]
    arguments: dict[str, Any] = {
        "recipe": recipe, "latent": code(latent), "epochs": epochs, "seed": seed,
    }  # fmt: skip
    fields: dict[str, str] = dict.fromkeys(ignore, "ignore")
    for name in dict.fromkeys(target):
        if name in fields:
            raise InputError(f"column '{name}' is both --target and --ignore; choose one")
        fields[name] = "target"
    nested: dict[str, dict[str, Any]] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise InputError(f"cannot read --set {setting}: expected key=value, as in lr=0.002")
        head, _, rest = key.partition(".")
        if head == "field" and rest:
            fields[rest] = predicted(rest, text) if rest in target else text
        elif head in NESTED and rest:
            nested.setdefault(head, {})[rest] = literal(text)
        elif key in known:
            arguments[key] = fitting(setting, literal(text), hints[key])
        else:
            names = [*known, *(f"{n}.OPTION" for n in NESTED), "field.COLUMN"]
            raise unknown("setting", key, names)
    if arguments["recipe"] is not None:
        get(arguments["recipe"])  # an unknown name is said before the data is read
    for part, options in nested.items():
        arguments[part] = with_options(part, arguments.get(part), arguments["recipe"], options)
    if fields:
        arguments["fields"] = fields
    return arguments


def monitor_arguments(settings: Sequence[str], **given: Any) -> dict[str, Any]:
    """Turn the options of ``refold fit --series`` into arguments of :class:`refold.Monitor`.

    >>> monitor_arguments(["window=48", "lr=0.001"], recipe=None, latent=None, epochs=9, seed=0)
    {'epochs': 9, 'seed': 0, 'lr': 0.001, 'window': 48}
    """
    from refold.estimator import Autoencoder

    own = [s for s in settings if s.partition("=")[0] in MONITOR]
    others = [n for n in Autoencoder().get_params() if n not in (*OWN, *MONITOR)]
    known = (*MONITOR, *others)
    for key in (s.partition("=")[0] for s in settings):
        if "." not in key and key not in known:
            raise unknown("setting", key, known)
    rest = constructor_arguments(**given, ignore=(), settings=[s for s in settings if s not in own])
    if rest.pop("fields", None):
        raise InputError("a series has steps, and its channels are found; leave field.COLUMN out")
    found = {k: v for k, v in rest.items() if v is not None}
    return found | {k: literal(text) for k, _, text in (s.partition("=") for s in own)}


def shared_arguments(ignore: Sequence[str], settings: Sequence[str]) -> dict[str, Any]:
    """Turn the options of ``refold compare`` into what every recipe is to be trained with.

    >>> shared_arguments(["id"], ["lr=0.01"])
    {'fields': {'id': 'ignore'}, 'lr': 0.01}
    """
    for setting in settings:
        head = setting.partition("=")[0].partition(".")[0]
        if head in EACH:
            raise InputError(
                f"cannot use --set {setting}: recipes are compared by their own {head}; use "
                f"{EACH[head]}"
            )
    given = constructor_arguments(
        recipe=None, latent=None, epochs=None, seed=0, ignore=ignore, settings=settings
    )
    return {k: given[k] for k in sorted(given) if k not in EACH}


def code(given: int | str | None) -> int | str | None:
    """Read ``--latent``: the size of the code, or a latent in the parts' small language.

    >>> code("16"), code("jumprelu(l0=8.0)")
    (16, 'jumprelu(l0=8.0)')
    """
    from refold.latents import latents
    from refold.parts import PartSpec

    size = literal(given) if isinstance(given, str) else given
    if size is None or type(size) is int:
        return size
    wrong = InputError(
        f"--latent is '{given}'; expected the size of the code, as 16, or a latent, as topk or "
        f"topk(size=64, k=8); known: {', '.join(sorted(latents))}"
    )
    try:
        spec = PartSpec.parse(str(given))
    except InputError as error:
        raise wrong from error
    if spec.name not in latents:
        raise wrong
    latents.resolve(PartSpec(spec.name, {k: v for k, v in spec.options.items() if k != "size"}))
    return str(given)


def predicted(column: str, kind: str) -> str:
    """Write the kind of a target in the parts' small language.

    >>> predicted("price", "numeric(likelihood='l1')")
    "numeric(likelihood='l1', target=True)"
    """
    from refold.parts import PartSpec

    if kind == "ignore":
        raise InputError(f"column '{column}' is a --target and to be ignored too; choose one")
    spec = PartSpec.parse(kind)
    return str(PartSpec(spec.name, {**spec.options, "target": True}))


def known_values(given: Sequence[str]) -> dict[str, str]:
    """Read ``column=value`` pairs.

    >>> known_values(["label=3", "town=Ulm"])
    {'label': '3', 'town': 'Ulm'}
    """
    known: dict[str, str] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InputError(f"cannot read --given {pair}: expected column=value, as in label=3")
        if name in known:
            raise InputError(f"--given names column '{name}' twice; leave one out")
        known[name] = value
    return known


def with_options(part: str, given: Any, recipe: str | None, options: dict[str, Any]) -> str:
    """Write a part in the parts' small language: the user's or the recipe's, with more options."""
    from refold.parts import PartSpec
    from refold.recipe import get

    own = "concat" if part == "fusion" else getattr(get(recipe or "dense"), part)
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


def named(text: str) -> list[str]:
    """Part names with commas between; none where the text is no such list."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        return []
    if not isinstance(node, ast.Tuple):
        return []
    return [ast.unparse(part) for part in node.elts]


def fitting(setting: str, value: Any, hint: Any) -> Any:
    """Return the value if it is of the type ``hint``, alone or as a sequence of one.

    >>> fitting("hidden=64", 64, Sequence[int] | None)
    (64,)
    >>> fitting("evidence=errors, hidden(when=outliers)", "errors, hidden(when=outliers)",
    ...     Sequence[str] | None)
    ('errors', 'hidden(when=outliers)')
    """
    parts = tuple(named(value)) if isinstance(value, str) else ()
    if len(parts) > 1 and fits(parts, hint):
        return parts
    if fits(value, hint):
        return value
    if fits((value,), hint):
        return (value,)
    raise InputError(f"cannot use --set {setting}: got {value!r}, expected {expectation(hint)}")

"""Numbers and nouns that agree."""

from __future__ import annotations


def counted(count: float, noun: str) -> str:
    """Return a number with its noun, which is in the plural but for one.

    >>> counted(1, "epoch"), counted(2000, "row"), counted(0, "entry"), counted(2, "pass")
    ('1 epoch', '2,000 rows', '0 entries', '2 passes')
    """
    return f"{count:,.0f} {noun if round(count) == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """Return the plural of a noun.

    >>> plural("epoch"), plural("batch"), plural("entry"), plural("day")
    ('epochs', 'batches', 'entries', 'days')
    """
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "sh", "tch")) else f"{noun}s"

"""Kinds of data: how values become tensors, and tensors values of the user's own type again."""

from refold.fields.base import Encoded, Field, fields, register
from refold.fields.bounded import Bounded
from refold.fields.category import Binary, Categorical
from refold.fields.count import Count
from refold.fields.distribution import Distribution
from refold.fields.image import Image
from refold.fields.numeric import Numeric
from refold.fields.ordinal import Ordinal
from refold.fields.series import Series
from refold.fields.text import Text
from refold.fields.vector import Vector

__all__ = [
    "Binary",
    "Bounded",
    "Categorical",
    "Count",
    "Distribution",
    "Encoded",
    "Field",
    "Image",
    "Numeric",
    "Ordinal",
    "Series",
    "Text",
    "Vector",
    "fields",
    "register",
]

"""Kinds of data: how values become tensors, and tensors values of the user's own type again."""

from refold.fields.base import Encoded, Field, fields, register
from refold.fields.category import Binary, Categorical
from refold.fields.image import Image
from refold.fields.numeric import Numeric
from refold.fields.vector import Vector

__all__ = [
    "Binary",
    "Categorical",
    "Encoded",
    "Field",
    "Image",
    "Numeric",
    "Vector",
    "fields",
    "register",
]

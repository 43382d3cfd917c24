"""Rows larger than memory: looked at once, decoded once, and read from there in random order.

A pass over the files learns what all rows have to tell. Rows are then decoded into files without a
name, and every epoch draws blocks of these in random order, many of them mixed in memory.
"""

from refold.data.streams.feed import Reading, Streamed
from refold.data.streams.look import Look
from refold.data.streams.mixing import mixing
from refold.data.streams.stream import Stream, opened
from refold.data.streams.telling import Told, unheeded

__all__ = ["Look", "Reading", "Stream", "Streamed", "Told", "mixing", "opened", "unheeded"]

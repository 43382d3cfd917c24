"""Rows larger than memory: looked at once, decoded once, and read from there in random order.

A pass over the files learns what all rows have to tell. Rows are then decoded into files without a
name, and every epoch draws blocks of these in random order, many of them mixed in memory.
"""

from refold.data.streams.feed import Streamed
from refold.data.streams.look import Look
from refold.data.streams.mixing import mixing
from refold.data.streams.stream import Stream, opened

__all__ = ["Look", "Stream", "Streamed", "mixing", "opened"]

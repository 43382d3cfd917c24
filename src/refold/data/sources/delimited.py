"""Delimited text → columns, and how to tell such text from other text."""

from __future__ import annotations

import codecs
import csv
import io
import re
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv as pa_csv

from refold.data.containers import default
from refold.data.sources.memory import arrow_table, refuse_duplicates
from refold.errors import InputError
from refold.table import Arrow, Table, compute

THREADED = 1 << 20  # bytes from which a file is worth threads
MISSING = ("", "?", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "#N/A")
DELIMITERS = ",;\t|"
GUESSES = (
    pa.int64(), pa.float64(), pa.bool_(), pa.date32(), pa.timestamp("s"), pa.timestamp("ns"),
)  # fmt: skip


def parse(data: bytes, delimiter: str | None) -> Table:
    """Parse delimited text, cells and names stripped of white space around them."""
    data = data.removeprefix(codecs.BOM_UTF8)
    text = decoded(data)
    top = heading(text, delimiter)
    wide = len(top.names)
    notes = [f"the first line holds numbers only, so columns were named c0 to c{wide - 1}"]
    if not top.headless:
        notes = [f"column {i + 1} has no name and was named c{i}"
                 for i, c in enumerate(top.cells) if not c]  # fmt: skip
    refuse_duplicates(top.names)
    table = _parsed(data, text, top.delimiter, top.headless, wide)
    return arrow_table(top.names, [_retyped(c) for c in table.columns], default, notes)


class Heading(NamedTuple):
    """What the first line of a text says: its cells, and the names of the columns."""

    delimiter: str
    cells: list[str]
    names: list[str]
    headless: bool
    """Whether that line is data, so that the names are made up."""


def heading(text: str, delimiter: str | None) -> Heading:
    """Read the first line that is not blank; the ``delimiter`` is what it has most of, or given."""
    delimiter = delimiter or _header_delimiter(text.lstrip("\r\n").partition("\n")[0])
    cells = [c.strip() for c in next(row for row in _rows(text, delimiter) if row)]
    # 0, 1, 2, … are what pandas writes as names of an unnamed frame; other numbers are data.
    counted = len(cells) > 2 and cells == [str(i) for i in range(len(cells))]
    headless = not counted and all(_is_number(c) for c in cells)
    names = [f"c{i}" if headless or not c else c for i, c in enumerate(cells)]
    return Heading(delimiter, cells, names, headless)


def decoded(data: bytes) -> str:
    """Decode UTF-8, with or without a mark of it at the start."""
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"this is not UTF-8 text (byte {error.start} cannot be read); save it as UTF-8"
        ) from error
    if "\0" in text:
        raise InputError("this is binary data, not text; give delimited text")
    return text


def _rows(text: str, delimiter: str) -> Any:
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)


def _header_delimiter(line: str) -> str:
    """Return the comma, or where the header has none, what it has most of."""
    return "," if "," in line else max(DELIMITERS, key=line.count)


def consistent_delimiter(data: bytes) -> str | None:
    """Return the delimiter that splits the first lines into equally many cells, if one does."""
    head = data[: 1 << 16]
    if len(data) > len(head):
        head = head[: head.rfind(b"\n") + 1]
    try:
        text = head.decode()
    except UnicodeDecodeError:
        return None
    if "\0" in text or text.lstrip()[:1] in tuple("{[<"):
        return None
    for delimiter in DELIMITERS:
        widths = {len(row) for row in _rows(text, delimiter) if row}
        if len(widths) == 1 and widths != {1} and text.count("\n") > 1:
            return delimiter
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parsed(data: bytes, text: str, delimiter: str, headless: bool, width: int) -> Arrow:
    quoted = b'"' in data
    if quoted:  # Arrow knows a quote only right after the delimiter: mend `a, "b"`
        mark = re.escape(delimiter.encode())
        data = re.sub(rb"(?m)(^|" + mark + rb')[ ]+"(?!")', rb'\1"', data)
    try:
        return pa_csv.read_csv(
            pa.BufferReader(data.lstrip(b"\r\n")),
            # Threads that were only just started abort a process that ends at once with an error.
            pa_csv.ReadOptions(
                use_threads=len(data) > THREADED,
                autogenerate_column_names=headless,
                block_size=1 << 24,
            ),
            # A blank line is a missing cell where there is one column, and nothing elsewhere.
            pa_csv.ParseOptions(
                delimiter=delimiter, newlines_in_values=quoted, ignore_empty_lines=width > 1
            ),
            pa_csv.ConvertOptions(null_values=MISSING, strings_can_be_null=True),
        )
    except pa.ArrowInvalid as error:
        raise _ragged(text, delimiter, width) or InputError(
            f"this is no delimited text ({str(error).partition(chr(10))[0]}); check it"
        ) from error


def _ragged(text: str, delimiter: str, width: int) -> InputError | None:
    rows = _rows(text, delimiter)
    try:
        for row in rows:
            if row and len(row) != width:
                return InputError(
                    f"line {rows.line_num} has {len(row)} cells, but the first line has {width}; "
                    f"give every line as many"
                )
    except csv.Error:
        return None
    return None


def _retyped(column: Arrow) -> Arrow:
    """Trim text, and infer its type again if that changed it: ` 39` becomes 39, ` ?` missing."""
    if not pa.types.is_string(column.type):
        return column
    trimmed = stripped(column)
    if trimmed.equals(column):
        return column
    first = trimmed.drop_null().slice(0, 1)  # a whole column that cannot be cast fails slowly
    for kind in GUESSES:
        try:
            first.cast(kind)
            return trimmed.cast(kind)
        except pa.ArrowInvalid:
            continue
    return trimmed


def stripped(column: Arrow) -> Arrow:
    """Text without white space around it, missing where it is a word for that."""
    trimmed = compute.utf8_trim_whitespace(column)
    return compute.if_else(compute.is_in(trimmed, value_set=pa.array(MISSING)), None, trimmed)

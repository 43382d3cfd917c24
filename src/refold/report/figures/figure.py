"""A figure: panels with captions, as HTML that fits its page, or as one picture in SVG."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from html import escape
from pathlib import Path

from refold.data.sinks import atomic_path
from refold.errors import InputError
from refold.report.figures import draw

ROOM = Path(__file__).parents[1]
GAP, CAPTION, MARGIN = 20.0, 20.0, 16.0  # of the SVG sheet, in its own units
WIDEST = 46  # rem that a panel grows to in a page


@dataclass(frozen=True)
class Panel:
    """One drawing: SVG marks in a box of ``width`` by ``height``, and the words above it.

    ``data`` are attributes for a page's script (``{"term": "loss"}`` becomes ``data-term``);
    ``scene`` is JSON for the script that turns a drawing by hand.
    """

    marks: str
    width: float
    height: float
    caption: str = ""
    note: str = ""
    label: str = ""
    data: Mapping[str, str] = field(default_factory=dict[str, str])
    scene: str = ""

    def html(self) -> str:
        """Return the drawing under its caption."""
        words = escape(self.caption) + (f" <span>{escape(self.note)}</span>" if self.note else "")
        caption = f"<figcaption>{words}</figcaption>" if words else ""
        svg = self.svg()
        if self.scene:
            svg = f'<div class="rf-orbit" data-scene="{escape(self.scene)}">{svg}</div>'
        return f"<figure>{caption}{svg}</figure>"

    def svg(self) -> str:
        """Return the drawing alone, for a page that has the styles."""
        data = "".join(f' data-{k}="{escape(v)}"' for k, v in self.data.items())
        return (
            f'<svg class="rf" viewBox="0 0 {self.width:g} {self.height:g}" role="img" '
            f'aria-label="{escape(self.label or self.caption)}"{data}>{self.marks}</svg>'
        )


@dataclass(frozen=True)
class Figure:
    """What the functions of this package return: shown by notebooks, saved as SVG or HTML.

    ``tile`` is the least width of a panel in a page, in rem, ``columns`` the number side by side
    in the SVG; ``keys`` are the classes of lines and dots, and what they mean.
    """

    title: str
    panels: tuple[Panel, ...]
    note: str = ""
    keys: tuple[tuple[str, str], ...] = ()
    tile: float = 9.5
    most: float = 32
    columns: int = 4

    def html(self) -> str:
        """Return markup for a page that has the styles; panels flow to its width."""
        note = f"<p>{escape(self.note)}</p>" if self.note else ""
        keys = "".join(f"<span>{_key(k)}{escape(words)}</span>" for k, words in self.keys)
        keys = f'<div class="rf-keys">{keys}</div>' if keys else ""
        panels = "".join(p.html() for p in self.panels)
        sizes = f"--tile:{self.tile:g}rem;--most:{self.most:g}rem"
        kind = "rf-grid rf-one" if len(self.panels) == 1 else "rf-grid"
        grid = f'<div class="{kind}" style="{sizes}">{panels}</div>' if panels else ""
        return f'<div class="rf-figure">{note}{keys}{grid}</div>'

    def page(self) -> str:
        """Return a page of its own, which needs no network and no other file."""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{style()}"
            "body{margin:1.25rem auto;max-width:72rem;padding:0 1.25rem;background:"
            f"var(--surface)}}</style></head><body>{self._titled()}{self._script()}</body></html>\n"
        )

    def svg(self) -> str:
        """Return one picture that stands alone: panels in columns, words and colours with it."""
        columns = max(1, min(self.columns, len(self.panels)))
        wide = max((p.width for p in self.panels), default=100.0)
        width = columns * wide + (columns - 1) * GAP
        marks, y = [draw.text(0, 12, draw.fitted(self.title, width), kind="strong title")], 24.0
        x = 0.0
        for kind, words in self.keys:
            long = 30 + len(words) * draw.LETTER
            if x > 0 and x + long > width:
                x, y = 0.0, y + 18
            marks += [f'<g transform="translate({x:g} {y:g})">{_mark(kind)}</g>']
            marks += [draw.text(x + 26, y + 10, words)]
            x += long + 12
        y += 24 if self.keys else 0
        lines = textwrap.wrap(self.note, max(20, int(width / draw.LETTER)))
        marks += [draw.text(0, y + 12 + 15 * i, words) for i, words in enumerate(lines)]
        y += 15 * len(lines) + (10 if lines else 0)
        for start in range(0, len(self.panels), columns):
            line = self.panels[start : start + columns]
            captioned = CAPTION if any(p.caption or p.note for p in line) else 0.0
            for i, panel in enumerate(line):
                marks.append(_placed(panel, i * (wide + GAP), y, captioned))
            y += max(p.height for p in line) + captioned + GAP
        whole = (width + 2 * MARGIN, y - GAP + 2 * MARGIN)
        box = f'viewBox="{-MARGIN:g} {-MARGIN:g} {whole[0]:g} {whole[1]:g}"'
        ground = draw.rect(-MARGIN, -MARGIN, *whole, "surface")
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="rf" {box} width="{whole[0]:g}" '
            f'height="{whole[1]:g}" role="img" aria-label="{escape(self.title)}">'
            f"<style>{drawing_style()}</style>{ground}{''.join(marks)}</svg>\n"
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the figure, ``.svg`` or ``.html`` by the name's ending, whole or not at all."""
        target = Path(path)
        if target.suffix.lower() not in (".svg", ".html", ".htm"):
            raise InputError(
                f"cannot write the figure to {target}: it has the ending '{target.suffix}'; use "
                f".svg or .html"
            )
        content = self.svg() if target.suffix.lower() == ".svg" else self.page()
        with atomic_path(target) as temporary:
            temporary.write_text(content, encoding="utf-8")
        return target

    def _repr_html_(self) -> str:
        return f"<style>{style('.rf-alone')}</style>{self._titled()}{self._script()}"

    def _titled(self) -> str:
        return f'<div class="rf-alone"><h3>{escape(self.title)}</h3>{self.html()}</div>'

    def _script(self) -> str:
        live = any(p.scene for p in self.panels)
        return f"<script>{read('orbit.js')}</script>" if live else ""


def _placed(panel: Panel, x: float, y: float, captioned: float) -> str:
    caption = draw.fitted(panel.caption, panel.width)
    left = panel.width - len(caption) * draw.LETTER * 1.15 - draw.LETTER
    note = draw.fitted(panel.note, left) if panel.note and left > 5 * draw.LETTER else ""
    inner = f'<g transform="translate({x:g} {y + captioned:g})">{panel.marks}</g>'
    return draw.heading(x, y + 12, caption, note) + inner if captioned else inner


def _key(kind: str) -> str:
    return f'<svg class="rf" viewBox="0 0 20 12" aria-hidden="true">{_mark(kind)}</svg>'


def _mark(kind: str) -> str:
    """Draw a sample of what a key's words are about."""
    form, _, rest = kind.partition(" ")
    if form in ("kept", "tick", "limit"):
        return draw.path("M10 0V12", form)
    if form == "peak":
        return draw.path("M5 2h10l-5 8z", "peak")
    if form == "bar":
        return draw.rect(4, 1, 12, 10, rest)
    return draw.path("M10 6h0" if form == "point" else "M0 6H20", kind)


@cache
def read(name: str) -> str:
    """Return a file of the report's folder."""
    return (ROOM / name).read_text(encoding="utf-8")


@cache
def style(root: str = ":root") -> str:
    """Styles of a figure in a page of its own, or below ``root`` in a page of somebody else's."""
    alone = (
        ".rf-alone{background:var(--surface);color:var(--ink);padding:1rem;border-radius:.5rem;"
        "font-family:system-ui,sans-serif}.rf-alone h3{margin:0 0 .5rem;font-size:1rem}"
    )
    light, dark = (read(f).replace(":root", root) for f in ("theme.css", "dark.css"))
    return f"{light}@media (prefers-color-scheme: dark){{{dark}}}{read('figures.css')}{alone}"


@cache
def drawing_style() -> str:
    """Styles of a drawing, with colours in place of variables, which only browsers know."""
    rules = "\n".join(r for r in read("figures.css").splitlines() if r.startswith(".rf "))
    light, dark = (_coloured(rules, read(f)) for f in ("theme.css", "dark.css"))
    other = [b for a, b in zip(light.splitlines(), dark.splitlines(), strict=True) if a != b]
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n" + "\n".join(other) + "\n}"


def _coloured(rules: str, theme: str) -> str:
    colours = dict(re.findall(r"(--[\w-]+): (#\w+)", theme))
    return re.sub(r"var\((--[\w-]+)\)", lambda m: colours.get(m[1], m[0]), rules)

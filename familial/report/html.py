"""The few pieces of HTML that the page is made of; all text is escaped here."""

import base64
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import html
from importlib import resources
import io
import pathlib
import re
import string

from matplotlib import figure as mpl_figure

from familial.core import storage

GREEK = {'alpha': 'α', 'beta': 'β', 'gamma': 'γ'}
_NUMERIC = ' class="n"'
_DPI = 160
_CSS_DPI = 100  # pixels of the page for an inch of a figure
_TIES = (
  ' = ',
  ' %',
  ' nats',
  ' FLOPs',
)  # that no line may end in or begin with

_PAGE = string.Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<header><h1>$title</h1>$subtitle</header>
<nav aria-label="Sections">$links</nav>
<main>
$sections
</main>
</body>
</html>
""")


@dataclasses.dataclass(frozen=True)
class Section:
  """A titled part of the page; `body` is HTML."""

  key: str
  title: str
  body: str


def with_unmeasured(parts: Iterable[Section | str]) -> list[Section]:
  """Returns the sections, and last one of all that was said not to be measured.

  Args:
    parts: sections, or sentences that say what was not measured.
  """
  parts = list(parts)
  found = [part for part in parts if isinstance(part, Section)]
  absent = [part for part in parts if isinstance(part, str)]
  if absent:
    found.append(Section('unmeasured', 'Not measured here', bullets(absent)))
  return found


@dataclasses.dataclass(frozen=True)
class Gallery:
  """Writes figures as PNG files and returns them as parts of the page."""

  folder: pathlib.Path
  shown: set[pathlib.Path] = dataclasses.field(default_factory=set)

  def show(
    self, name: str, figure: mpl_figure.Figure, alt: str, seen: str
  ) -> str:
    """Saves `name`.png and returns the figure with what is seen below it."""
    buffer = io.BytesIO()
    figure.savefig(
      buffer,
      format='png',
      dpi=_DPI,
      metadata={'Software': None},
      pil_kwargs={'optimize': True},
    )
    path = self.folder / f'{name}.png'
    storage.write_bytes(path, buffer.getvalue())
    self.shown.add(path)
    data = base64.b64encode(buffer.getvalue()).decode('ascii')
    width, height = (round(_CSS_DPI * x) for x in figure.get_size_inches())
    return (
      '<figure><div class="card scroll" tabindex="0">'
      f'<img src="data:image/png;base64,{data}" width="{width}"'
      f' height="{height}" alt="{html.escape(alt)}"></div>'
      f'<figcaption>{escape(seen)}</figcaption></figure>'
    )


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
  """Returns a page without scripts that needs nothing else to be read.

  Args:
    title: plain text.
    subtitle: HTML.
    sections: in order.
  """
  style = resources.files('familial.report').joinpath('style.css')
  return _PAGE.substitute(
    title=escape(title),
    style=style.read_text('utf-8'),
    subtitle=subtitle,
    links=''.join(
      f'<a href="#{section.key}">{escape(section.title)}</a>'
      for section in sections
    ),
    sections='\n'.join(
      f'<section id="{section.key}"><h2>{escape(section.title)}</h2>'
      f'{section.body}</section>'
      for section in sections
    ),
  )


def escape(text: str) -> str:
  """Returns plain text as HTML; equations and units are kept on one line."""
  for tie in _TIES:
    text = text.replace(tie, tie.replace(' ', '\u00a0'))
  return re.sub(r'(?<=[NDG)])\^([αβγ]\w*)', r'<sup>\1</sup>', html.escape(text))


def formula(equation: str) -> str:
  """Returns a law's equation with its Greek letters."""
  return re.sub('|'.join(GREEK), lambda match: GREEK[match.group()], equation)


def paragraph(text: str, style: str = '') -> str:
  """Returns a paragraph of plain text."""
  attribute = f' class="{style}"' if style else ''
  return f'<p{attribute}>{escape(text)}</p>'


def bullets(items: Iterable[str]) -> str:
  """Returns a list of plain texts."""
  return f'<ul>{"".join(f"<li>{escape(item)}</li>" for item in items)}</ul>'


def doubts(items: Iterable[str]) -> str:
  """Returns what to know before what was said is believed; '' for nothing."""
  items = list(items)
  if not items:
    return ''
  return f'<aside><h3>Before believing it</h3>{bullets(items)}</aside>'


def terms(items: Mapping[str, str]) -> str:
  """Returns a list of terms and what they mean."""
  return '<dl>{}</dl>'.format(
    ''.join(
      f'<div><dt>{escape(term)}</dt><dd>{escape(meaning)}</dd></div>'
      for term, meaning in items.items()
    )
  )


def tiles(items: Iterable[tuple[str, str, str]]) -> str:
  """Returns key numbers as cards: value, what goes with it, name."""
  return '<ul class="tiles">{}</ul>'.format(
    ''.join(
      f'<li><b>{escape(value)}</b> <i>{escape(aside)}</i>'
      f'<span>{escape(name)}</span></li>'
      for value, aside, name in items
    )
  )


def table(
  head: Sequence[str],
  rows: Iterable[Sequence[str]],
  caption: str,
  align: str,
) -> str:
  """Returns a table that scrolls within its own box.

  Args:
    head: names of the columns.
    rows: cells, plain text.
    caption: what it says.
    align: of each column, `l` for words or `r` for numbers.
  """

  def line(cells: Sequence[str], tag: str) -> str:
    return '<tr>{}</tr>'.format(
      ''.join(
        f'<{tag}{_NUMERIC if side == "r" else ""}>{escape(cell)}</{tag}>'
        for cell, side in zip(cells, align, strict=True)
      )
    )

  body = ''.join(line(row, 'td') for row in rows)
  return (
    f'<p class="caption">{escape(caption)}</p>'
    f'<div class="scroll tall" tabindex="0" role="region"'
    f' aria-label="{html.escape(caption)}"><table>'
    f'<thead>{line(head, "th")}</thead><tbody>{body}</tbody></table></div>'
  )


def folded(summary: str, body: str) -> str:
  """Returns HTML that unfolds when its summary is chosen."""
  return f'<details><summary>{escape(summary)}</summary>{body}</details>'

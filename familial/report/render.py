"""Renders a page: a template of fixed text filled with typed numbers and figures.

A page is one HTML file that needs no network: charts are embedded as Vega-Lite
specifications with their runtime, tables are sorted and filtered by a script of
the page. Each figure is also written as PNG and SVG beside it.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
from importlib import resources
import json
import math
import os
import pathlib
from typing import Any

import jinja2
import markupsafe

from familial.core import storage
from familial.core import text
from familial.core.estimate import Estimate
from familial.plots import theme
from familial.report import terms

Markup = markupsafe.Markup
NONE = '–'


def write(
  folder: str | os.PathLike[str],
  template: str,
  *,
  figures: str = 'figures',
  **context: Any,
) -> pathlib.Path:
  """Writes FOLDER/index.html and its figures; returns the page's path.

  Args:
    folder: of the page.
    template: file name in `templates`, without `.html.j2`.
    figures: folder of the figures, relative to the page's. If it is not the
      page's own, figures of an earlier page that this one lacks are removed.
    **context: values that the template uses.
  """
  folder = pathlib.Path(folder)
  page = _Page(folder, figures)
  made = _environment().get_template(f'{template}.html.j2')
  html = made.render(
    figure=page.figure, section=page.section, page=page, **context
  )
  path = folder / 'index.html'
  storage.write_text(path, html)
  if figures and (folder / figures).is_dir():
    for old in (folder / figures).iterdir():
      if old.suffix in ('.png', '.svg') and old.stem not in page.figures:
        old.unlink()
  return path


@dataclasses.dataclass
class _Page:
  """Sections and figures that a template has shown so far."""

  folder: pathlib.Path
  place: str
  sections: list[tuple[str, str]] = dataclasses.field(default_factory=list)
  figures: list[str] = dataclasses.field(default_factory=list)

  def section(self, key: str, title: str, caller: Callable[[], str]) -> Markup:
    """Returns a titled section; the page's navigation lists it."""
    self.sections.append((key, title))
    return Markup('<section id="{}"><h2>{}</h2>{}</section>').format(
      key, title, Markup(caller())
    )

  def figure(self, name: str, chart: theme.Chart, caption: str = '') -> Markup:
    """Writes a chart's files and returns it as an interactive figure.

    Args:
      name: of the files, without suffix.
      chart: to show.
      caption: plain text below it: what to see, not what was computed.
    """
    file = f'{self.place}/{name}' if self.place else name
    specification = theme.save(chart, self.folder / f'{file}.png')
    self.figures.append(name)
    # `<` would end the script element.
    spec = json.dumps(specification, separators=(',', ':')).replace(
      '<', '\\u003c'
    )
    return Markup(
      '<figure><div class="chart" id="figure-{name}" role="img" '
      'aria-label="{label}"></div>'
      '<script type="application/json" data-chart="figure-{name}">{spec}</script>'
      '<noscript><img src="{file}.svg" alt="{label}"></noscript>'
      '<figcaption>{caption} <span class="files"><a href="{file}.png">PNG'
      '</a> <a href="{file}.svg">SVG</a></span></figcaption></figure>'
    ).format(
      file=file,
      name=name,
      label=caption or name,
      spec=Markup(spec),
      caption=caption,
    )


@functools.cache
def _environment() -> jinja2.Environment:
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('familial.report'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters |= {
    'number': text.number,
    'amount': text.amount,
    'scientific': text.scientific,
    'percent': text.percent,
    'duration': text.duration,
    'over': over,
  }
  environment.globals |= {
    'table': table,
    'term': term,
    'terms': terms.TERMS,
    'policies': terms.POLICIES,
    'style': lambda: Markup(_static('style.css')),
    'script': lambda: Markup(_static('page.js')),
    'runtime': _runtime,
  }
  return environment


def _static(name: str) -> str:
  return resources.files('familial.report').joinpath(name).read_text('utf-8')


_EXPORTS = 'window.vegaEmbed = vegaEmbed;'


@functools.cache
def _runtime() -> Markup:
  """Returns the JavaScript of Vega, Vega-Lite and Vega-Embed."""
  import vl_convert

  return Markup(
    vl_convert.javascript_bundle(_EXPORTS).replace('</script', '<\\/script')
  )


def over(log_ratio: Estimate) -> str:
  """Returns a log ratio as a percentage above 1, with its interval."""
  return f'{log_ratio.map(math.expm1):%}'


def term(name: str, shown: str = '') -> Markup:
  """Returns a term that explains itself where it stands."""
  return Markup('<abbr title="{}">{}</abbr>').format(
    terms.TERMS[name], shown or name
  )


def _share(value: float | Estimate) -> str:
  """Returns a share in per cent; its interval stays within 0 and 1."""
  if isinstance(value, Estimate):
    return f'{value.within(0, 1):%}'
  return f'{text.number(100 * value)}{text.SPACE}%'


# How a column is shown, by name; others go by the type of the value.
_FORMATS: Mapping[str, Callable[[Any], str]] = {
  'amount': text.amount,
  'scientific': text.scientific,
  'duration': text.duration,
  'percent': text.percent,
  'over': over,
  'percentage': lambda estimate: f'{estimate:%}',
  'share': _share,
  'loss': lambda value: text.number(value, 4),
}


def table(
  rows: Sequence[Any],
  columns: Mapping[str, str | tuple[str, str]],
  caption: str = '',
  name: str = '',
  link: str = '',
) -> Markup:
  """Returns a table that the page sorts, filters and saves as CSV.

  Args:
    rows: records.
    columns: by field of a record (`gamma`, or `gamma.sign` for an attribute of
      it) the title, or the title and one of the formats above.
    caption: plain text above it.
    name: of the CSV file; without it the table has no controls.
    link: address of a row's first cell; `{0.cell}` stands for its field `cell`.
  """
  heads, formats = [], []
  for field, title in columns.items():
    shown, form = (title, '') if isinstance(title, str) else title
    explained = terms.TERMS.get(shown) or terms.TERMS.get(field, '')
    heads.append((shown, explained))
    formats.append((field, form))
  body = []
  for row in rows:
    cells = []
    for place, (field, form) in enumerate(formats):
      value = _field(row, field)
      shown = _shown(value, form)
      href = link.format(row) if link and not place else ''
      cells.append((shown, _key(value), href))
    body.append(cells)
  numeric = [
    any(isinstance(cells[i][1], float) for cells in body)
    for i in range(len(heads))
  ]
  return Markup(
    _environment()
    .get_template('table.html.j2')
    .render(heads=heads, body=body, numeric=numeric, caption=caption, name=name)
  )


def _field(row: Any, path: str) -> Any:
  name, *inner = path.split('.')
  # A record has each of its fields; the keys of a mapping in it are data.
  value = row[name] if isinstance(row, Mapping) else getattr(row, name)
  for name in inner:
    if value is None:
      return None
    if isinstance(value, Mapping):
      value = value.get(name)
    else:
      value = getattr(value, name)
  return value


def _shown(value: Any, form: str) -> str:
  if value is None:
    return NONE
  if isinstance(value, tuple):
    return ', '.join(_shown(item, form) for item in value) or NONE
  if form:
    return _FORMATS[form](value)
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if isinstance(value, float):
    return text.number(value)
  return f'{value}'


def _key(value: Any) -> float | str:
  """Returns the key by which a column is sorted: a number if the value has one."""
  value = getattr(value, 'value', value)  # An Estimate, or a like record.
  if isinstance(value, (int, float)):
    return float(value)
  return ''

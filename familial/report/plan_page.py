"""The plan for a pod as a page: what fits, what limits it, how long it takes."""

from collections.abc import Mapping
import math
import pathlib
from typing import Any

from matplotlib import figure as mpl_figure

from familial.core import storage
from familial.core import text
from familial.planning import summary
from familial.plots import style
from familial.report import html

_PARTS = {
  'compute': (style.CYCLE[0], 'o'),
  'memory': (style.CYCLE[4], 's'),
  'links': (style.CYCLE[3], '^'),
}
_TERMS = {
  'fits, GiB': (
    'The compiler’s own count of a device’s memory for the real training step: '
    'all that is there at once. “≤” stands where a larger run of '
    'the same width and batch was compiled in its place.'
  ),
  'expected': ('By the arithmetic that ranks layouts before any is compiled.'),
  'GB sent': (
    'Bytes that a device sends in a step, each collective as a ring, read from '
    'the compiled program.'
  ),
  's a step': (
    'The bound: the longest of three times at the datasheet’s full speed. '
    'Products are counted; traffic with memory and on links is what a good '
    'compiler needs. Steps take longer.'
  ),
  'limit': 'Which of the three it is.',
  'at most': (
    'The model’s FLOPs over what the chips could do within the bound. Above '
    '100 % where attention’s kernel skips the half of the square that the '
    'count of FLOPs, by convention, holds.'
  ),
  'XLA / ours': (
    'FLOPs of a step as XLA counts them, with norms, softmax and optimizer, over '
    'the count that rows and budgets use.'
  ),
  'device-h': 'Of all steps and evaluations at the bound.',
}


def write(folder: pathlib.Path, plan: Mapping[str, Any]) -> pathlib.Path:
  """Writes `index.html` with its figure; returns its path.

  Args:
    folder: of the plan.
    plan: of `pod.make`.
  """
  gallery = html.Gallery(folder)
  path = folder / 'index.html'
  flags = plan['recommended']['flags']
  sections = [
    html.Section(
      'answer',
      'Answer',
      html.paragraph(summary.headline(plan) + '.')
      + html.paragraph(f'Recommended: {flags}')
      + ''.join(map(html.paragraph, summary.growth(plan)))
      + html.paragraph(summary.measured(plan)),
    ),
    html.Section(
      'limits',
      'What limits it',
      gallery.show(
        'limits',
        limits(plan),
        'Seconds a step and memory of each compiled run',
        'Seconds that each part of a step takes at full speed, and memory, of '
        'the runs that were compiled; the slowest part is the bound.',
      ),
    ),
    html.Section(
      'layouts',
      'Layouts',
      html.table(
        summary.LAYOUT_HEAD,
        map(summary.layout_row, plan['layouts']),
        'Each compiled for the run that needs most memory in it, best first by '
        'arithmetic.',
        align='l' + 'r' * (len(summary.LAYOUT_HEAD) - 1),
      ),
    ),
    html.Section(
      'runs',
      'Runs',
      html.table(
        summary.CELL_HEAD,
        map(summary.cell_row, plan['cells']),
        'Every run in the recommended layout.',
        align='l' + 'r' * (len(summary.CELL_HEAD) - 1),
      ),
    ),
    html.Section('terms', 'Terms', html.terms(_TERMS)),
  ]
  title = f'{plan["title"]}: plan for {plan["topology"]}'
  subtitle = html.paragraph(summary.chip(plan))
  storage.write_text(path, html.page(title, subtitle, sections))
  return path


@style.drawn
def limits(plan: Mapping[str, Any]) -> mpl_figure.Figure:
  """Draws the three times of each compiled run, and its memory."""
  rows = [row for row in plan['cells'] if row['compiled'] == row['cell']]
  names = [row['cell'] for row in rows]
  figure, (times, memory) = style.panels(
    2, 'What a step needs', height=0.3 * len(rows) + 0.9
  )
  ys = range(len(rows), 0, -1)
  for key, (colour, marker) in _PARTS.items():
    times.plot(
      [row['times'][key] or math.nan for row in rows],  # Nobody to send to.
      ys,
      marker,
      color=colour,
      label=key,
    )
  style.log_axis(
    times.xaxis,
    [seconds for row in rows for seconds in row['times'].values() if seconds],
    text.number,
  )
  times.set_xlabel('seconds a step, at full speed')
  times.set_yticks(ys, names)
  capacity = plan['chip']['memory'] / 2**30
  memory.barh(
    ys,
    [row['memory'] / 2**30 for row in rows],
    height=0.6,
    color=[style.CYCLE[2 if row['fits'] else 1] for row in rows],
  )
  memory.axvline(capacity, color=style.MUTED, lw=1, ls='--')
  memory.set_xlabel(f'GiB a device, of {capacity:.0f}')
  memory.set_yticks(ys, [''] * len(rows))
  for ax in (times, memory):
    ax.set_ylim(0.4, len(rows) + 0.6)
  style.legend(figure, [times])
  return figure

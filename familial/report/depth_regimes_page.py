"""The page of a study of layers and exits."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from familial.analysis import trajectories
from familial.core import text
from familial.plots import regimes as regimes_lib
from familial.report import html
from familial.report import record_sections
from familial.report import results as results_lib
from familial.studies import depth_regimes_summary as summaries

SUBTITLE = (
  'Do exits change what layers do? Models that differ in their exits alone, read'
  ' on the same held-out text; pairs are of one depth and seed.'
)
Results = results_lib.Results
Row = Mapping[str, Any]


def sections(results: Results, gallery: html.Gallery) -> list[html.Section]:
  """Returns the page's sections in order."""
  return [
    answer(results.summary),
    *findings(results.summary, gallery),
    record_sections.runs(results),
    record_sections.provenance(results),
    terms(results.summary),
  ]


def answer(summary: Row) -> html.Section:
  """Returns whether exits push towards composition, in words."""
  body = html.paragraph(str(summary['summary_line']), 'lede')
  notes = {
    f'{_name(group)}: {note}'
    for group in summary['groups']
    for note in group['notes']
  }
  body += html.paragraph(
    'Towards composition: steps and stops that depend on the input. Yes where the'
    ' spread of steps, the tokens that stop early and the spread of stops all rise'
    ' and their intervals leave out 0; in part where some do. A regime is named'
    ' only where it leads by a half, so a model may move towards one and be in'
    ' none.'
  )
  body += html.doubts(sorted(notes))
  return html.Section('answer', 'Do exits change what layers do?', body)


def findings(summary: Row, gallery: html.Gallery) -> list[html.Section]:
  """Returns the regimes, what exits change, and where."""
  by_depth: dict[int, list[Row]] = {}
  for group in summary['groups']:
    by_depth.setdefault(group['depth'], []).append(group)
  regimes, changes = '', ''
  for depth, groups in by_depth.items():
    regimes += gallery.show(
      f'regimes_{depth}',
      regimes_lib.statistics(groups),
      'Statistics of the layers by number of exits, a panel each',
      f'{depth} layers. Points: seeds. Bars: the mean over seeds and its interval'
      f" of {text.number(100 * summary['level'], 2)} % (Student's).",
    )
    changes += gallery.show(
      f'layers_{depth}',
      regimes_lib.layers(groups),
      'Turn, cosine of updates, loss and the cost of leaving a layer out, by layer',
      f'{depth} layers, means over seeds.',
    )
  regimes += html.table(
    ['model', 'loss, nats', 'regime', 'leads by', 'seeds alone', 'scores'],
    [
      [
        _name(group),
        text.number(sum(group['loss']) / len(group['loss']), 4),
        group['regime'],
        text.number(group['strength'], 2),
        f'{group["regimes"].count(group["regime"])} of {len(group["regimes"])}',
        ', '.join(
          f'{name} {text.number(value, 2)}'
          for name, value in group['scores'].items()
        ),
      ]
      for group in summary['groups']
    ],
    'Regimes of all seeds together, how many seeds alone have the same, and how'
    ' well each regime fits, from 0 to 1.',
    align='lrlrrl',
  )
  regimes += _early_at(summary['groups'])
  for each in summary['differences']:
    changes += _changes(each)
  return [
    html.Section('regimes', 'Which regime, by number of exits', regimes),
    html.Section('layers', 'What exits change, layer by layer', changes),
  ]


def _early_at(groups: Sequence[Row]) -> str:
  """Whether the tokens that stop early hang on where that is cut."""
  cuts = [row['remaining'] for row in groups[0]['early_at']]
  return html.table(
    ['model', *(f'at most {100 * cut:g} %' for cut in cuts)],
    [
      [
        _name(group),
        *(
          text.estimate(row['value'], row['lo'], row['hi'])
          for row in group['early_at']
        ),
      ]
      for group in groups
    ],
    'Share of tokens whose angle to the last state is at most this share of the largest'
    ' that it was, three quarters of the layers in; mean over seeds. "Stop early"'
    f' is {100 * trajectories.SETTLED:g} %, from there on for good. Where the'
    ' columns differ much, states come to rest slowly, and how many have stopped'
    ' is a matter of the cut.',
    align='l' + 'r' * len(cuts),
  )


def _changes(each: Row) -> str:
  rows: Sequence[Row] = each['rows']
  named = [row for row in rows if row['layer'] is None]
  layers = [row for row in rows if row['name'] in ('skip', 'turn')]
  return html.table(
    ['statistic', 'layer', 'dense', f'G = {each["exits"]}', 'difference'],
    [
      [
        row['name'].replace('_', ' '),
        '' if row['layer'] is None else str(row['layer']),
        text.number(row['one']),
        text.number(row['other']),
        text.estimate(row['difference'], row['low'], row['high']),
      ]
      for row in (*named, *layers)
    ],
    f'{each["depth"]} layers, G = {each["exits"]} against dense:'
    f' {text.count(rows[0]["pairs"], "pair")} of seeds; towards composition:'
    f' {summaries.towards_composition(rows)}.',
    align='lrrrr',
  )


def terms(summary: Row) -> html.Section:
  """Returns what the statistics are."""
  return html.Section(
    'terms',
    'Definitions',
    html.terms(
      {
        key.replace('_', ' '): value
        for key, value in summary['definitions'].items()
      }
    ),
  )


def _name(group: Row) -> str:
  exits = f'G = {group["exits"]}' if group['exits'] > 1 else 'dense'
  return f'{exits}, {group["depth"]} layers'

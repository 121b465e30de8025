"""The page's sections on pairs, twins, branches, leverage and the controls."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from familial.core import text as text_lib
from familial.report import answer
from familial.report import controls
from familial.report import html
from familial.report import results as results_lib

Results = results_lib.Results
Rows = Sequence[Mapping[str, Any]]
# A section, or the sentence that says what was not measured.
Part = html.Section | str


def paired(results: Results, gallery: html.Gallery) -> Part:
  """Returns families beside the dense model of their shape, by budget."""
  ratios, blocks = results.paired('ratios'), results.paired('blocks')
  if not ratios:
    return (
      'This study trained no family beside a dense model of the same shape and'
      ' budget.'
    )
  over_all = [row for row in ratios if row['budget'] is None]
  seen = [
    f'{name}: {text_lib.listing(parts)}.'
    for loss, name in (('final', 'Last exit'), ('mean', 'Mean over exits'))
    for parts in [
      [
        f'{answer.over(row)} at G = {row["exits"]}'
        for row in over_all
        if row['loss'] == loss
      ]
    ]
  ]
  body = gallery.show(
    'paired',
    controls.paired(ratios, blocks),
    "Loss over the dense model's of the same shape against budget, a panel for"
    ' each loss, a colour for each G',
    f'Over all budgets: {" ".join(seen)} Intervals are of the scatter between'
    ' shapes.',
  )
  columns = dict.fromkeys(
    (row['loss'], row['equal']) for row in results.paired('gamma')
  )
  titles = {'final': 'last', 'mean': 'mean'}
  equal = {'flops': 'equal C', 'tokens': 'equal N, D'}

  def line(name: str, rows: Rows) -> list[str]:
    found = {(row['loss'], row['equal']): row for row in rows}
    ends = ('value', 'lo', 'hi')
    return [
      name,
      *(
        text_lib.estimate(*(found[key][end] for end in ends))
        if key in found
        else '–'
        for key in columns
      ),
    ]

  gammas = results.paired('gamma')
  budgets = dict.fromkeys(row['budget'] for row in gammas if row['budget'])
  body += html.table(
    [
      'C, FLOPs',
      *(f'{titles[loss]}, {equal[at]}' for loss, at in columns),
    ],
    [
      *(
        line(
          text_lib.scientific(budget),
          [row for row in gammas if row['budget'] == budget],
        )
        for budget in budgets
      ),
      line('all', [row for row in gammas if row['budget'] is None]),
      line('change with 10 C', results.paired('trend')),
    ],
    'γ as the slope of log loss on log G within a shape. Equal FLOPs are fewer'
    ' tokens for more heads; for equal N and D they are made up for by the law'
    "'s β, whose own uncertainty is left out.",
    align='l' + 'r' * len(columns),
  )
  return html.Section('paired', 'Beside dense models of the same shape', body)


def twins(results: Results, gallery: html.Gallery) -> Part:
  """Returns each exit beside a dense model of its exact shape."""
  found = results.summary.get('twins') or {}
  rows = found.get('rows') or []
  if not rows:
    return (
      'This study trained no dense twins of the exits; the comparison with a'
      " dense model of an exit's size is the law's interpolation."
    )
  ratios = np.expm1([row['log_ratio'] for row in rows])
  seen = (
    f'{text_lib.count(len(rows), "exit")} against their twins: the exit is worse'
    f' in {int((ratios > 0).sum())}, by {text_lib.percent(float(ratios.mean()))}'
    f' on average ({text_lib.percent(float(ratios.min()))} to'
    f' {text_lib.percent(float(ratios.max()))}).'
  )
  shapes = [
    f'{text_lib.estimate(row["value"], row["lo"], row["hi"])} at'
    f' {row["width"]} × {row["depth"]}'
    for row in found['shapes']
  ]
  spread = text_lib.estimate(found['value'], found['lo'], found['hi'])
  seen += (
    f' As an exponent of G that is γ = {spread}: {text_lib.listing(shapes)}. One'
    ' exponent hides that the first exits pay most. The intervals are of the'
    ' noise between seeds alone; so few shapes say little of other shapes.'
  )
  body = gallery.show(
    'twins',
    controls.twins(rows, found['depths']),
    'Loss of each exit over the loss of its dense twin, along the depth',
    seen,
  )
  body += html.folded(
    'Table of exits and twins',
    html.table(
      [
        'C, FLOPs',
        'shape',
        'G',
        'exit',
        'layer',
        'exit loss',
        'twin loss',
        'difference',
        'seeds',
      ],
      [
        [
          text_lib.scientific(row['budget']),
          f'{row["width"]} × {row["depth"]}',
          str(row['exits']),
          str(row['exit']),
          str(row['layer']),
          text_lib.number(row['loss_exit'], 4),
          text_lib.number(row['loss_twin'], 4),
          text_lib.percent(float(np.expm1(row['log_ratio']))),
          f'{row["seeds"]} / {row["seeds_twin"]}',
        ]
        for row in rows
      ],
      'Losses in nats per token on the same held-out tokens, at equal FLOPs.',
      align='rlrrrrrrr',
    ),
  )
  return html.Section('twins', 'Dense twins', body)


def branch(results: Results, gallery: html.Gallery) -> Part:
  """Returns the exponents for exits below and above a given one."""
  del gallery  # It is two numbers.
  law = results.fits.get(('exit', 'branch'))
  if law is None:
    return (
      'This study did not fit a branch law: exponents for the number of exits'
      ' below and above a given one.'
    )
  parts = []
  for name, where in (
    ('gamma_up', 'exits below it (upstream)'),
    ('gamma_down', 'exits above it (downstream)'),
  ):
    spread = results_lib.interval(law, name)
    estimate = text_lib.estimate(law.params[name], *spread)
    parts.append(f'{estimate} for the {where}')
  return html.Section(
    'branch',
    'Branch law',
    html.paragraph(
      "Each exit's loss goes with a power of 1 + the number of exits on a side:"
      f' the exponent is {text_lib.listing(parts)}. One summary of the paper gives'
      ' about 0.001 for upstream exits and about 0.04 for the others.'
    ),
  )


def leverage(results: Results, gallery: html.Gallery) -> Part:
  """Returns what separate dense models would cost, over C."""
  rows = results.summary.get('leverage') or []
  if not rows:
    return 'This study did not compute Efficiency Leverage.'
  finite = [row['leverage'] for row in rows if row['leverage'] is not None]
  endless = sum(bool(row['infinite']) for row in rows)
  seen = f'{text_lib.count(len(rows), "cell")}'
  if finite:
    seen += (
      f': leverage from {text_lib.number(min(finite))} to'
      f' {text_lib.number(max(finite))}, median'
      f' {text_lib.number(float(np.median(finite)))};'
      f' {sum(x > 1 for x in finite)} of {len(finite)} finite ones above 1'
    )
  seen += (
    f'. In {endless} at least one exit reaches a loss that the dense law'
    ' gives no model of its size: infinite leverage, drawn as an arrow.'
    if endless
    else '. None is infinite.'
  )
  spans = [
    f'{text_lib.interval(row["lo"], row["hi"])} for the median at G = {g}'
    for g in sorted({row['exits'] for row in rows})
    for row in [_median([row for row in rows if row['exits'] == g])]
    if row['lo'] is not None
  ]
  if spans:
    seen += (
      f' Intervals by bootstrap of the dense law: {text_lib.listing(spans)}.'
    )
  law = results.fits.get(('dense', 'chinchilla'))
  if law is not None and law.record.flags:
    flags = '; '.join(law.record.flags)
    seen += f' The dense law below it is flagged: {flags}.'
  return html.Section(
    'leverage',
    'Efficiency Leverage',
    html.paragraph(
      "The compute that independent dense models of the exits' sizes would need"
      " together, by the dense law, to reach the family's losses, over the"
      " family's own. Above 1, sharing pays. The definition is this project's."
    )
    + gallery.show(
      'leverage',
      controls.leverage(rows),
      'Efficiency Leverage against budget, a colour for each G',
      seen,
    )
    + html.paragraph(_leverage_measured(results)),
  )


def weighting(results: Results, gallery: html.Gallery) -> Part:
  """Returns what the weights of the exits' losses change."""
  rows = results.summary.get('weighting') or []
  if not rows:
    return "This study did not vary the weights of the exits' losses."
  parts = [
    f'{name.replace("_", " ")}: first exit'
    f' {text_lib.number(_mean_loss(rows, name, first=True))}, last'
    f' {text_lib.number(_mean_loss(rows, name, first=False))} nats'
    for name in sorted({row['weighting'] for row in rows})
  ]
  return html.Section(
    'weighting',
    "Weights of the exits' losses",
    gallery.show(
      'weighting',
      controls.weighting(rows),
      'Loss of each exit by layer, a colour for each weighting',
      f'Means over the shapes. {"; ".join(parts)}.{_one_seed(results)}',
    ),
  )


def frozen(results: Results, gallery: html.Gallery) -> Part:
  """Returns exits on a frozen dense trunk beside joint training."""
  rows = results.summary.get('frozen') or []
  if not rows:
    return 'This study trained no exits on a frozen dense trunk.'
  pairs = [
    row['loss'] / row['loss_joint'] - 1
    for row in rows
    if row.get('loss_joint') is not None
  ]
  more = dict.fromkeys(
    answer.percent(row['flops'] / row['budget_joint'] - 1)
    for row in rows
    if row['budget_joint']
  )
  seen = f'{text_lib.count(len(rows), "exit")} on frozen trunks.'
  if pairs:
    seen += (
      ' Against the same exit trained jointly their loss is'
      f' {text_lib.percent(float(np.mean(pairs)))} on average'
      f' ({text_lib.percent(min(pairs))} to {text_lib.percent(max(pairs))}), for'
      f' {text_lib.listing(list(more))} more FLOPs, the trunk included.'
      f'{_one_seed(results)}'
    )
  return html.Section(
    'frozen',
    'Frozen trunk',
    html.paragraph(
      'What a shallow model costs by itself: a trunk trained dense, then exits'
      ' trained on it with no gradient into it.'
    )
    + gallery.show(
      'frozen',
      controls.frozen(rows),
      'Loss of each exit by layer, on a frozen trunk and trained jointly',
      seen,
    ),
  )


def gradients(results: Results, gallery: html.Gallery) -> Part:
  """Returns the cosine between the exits' gradients over training."""
  rows = results.summary.get('gradients') or []
  if not rows:
    return "This study did not measure the angle between the exits' gradients."
  steps = sorted({row['step'] for row in rows})
  first, last = (
    float(np.mean([row['cosine'] for row in rows if row['step'] == step]))
    for step in (steps[0], steps[-1])
  )
  against = np.mean([row['cosine'] < 0 for row in rows])
  return html.Section(
    'gradients',
    "The exits' gradients",
    gallery.show(
      'gradients',
      controls.gradients(rows),
      "Cosine between pairs of exits' gradients against training step",
      f'The mean cosine goes from {text_lib.number(first, 2)} at step {steps[0]} to'
      f' {text_lib.number(last, 2)} at step {steps[-1]};'
      f' {text_lib.number(100 * float(against), 2)} % of all are negative.',
    ),
  )


def _median(rows: Rows) -> Mapping[str, Any]:
  """Returns the row of the middle leverage, infinite ones last."""
  order = sorted(rows, key=lambda row: row['leverage'] or np.inf)
  return order[len(order) // 2]


def _leverage_measured(results: Results) -> str:
  """Returns what dense runs of the exits' shapes say, in a few sentences."""
  rows = results.summary.get('leverage_measured') or []
  last = [r for r in rows if r['exit'] == r['exits'] and not r['bound']]
  parts = []
  for g in sorted({row['exits'] for row in last}):
    shares = [row['share'] for row in last if row['exits'] == g]
    parts.append(
      f'{text_lib.number(float(np.median(shares)), 2)} of C at G = {g} (median of'
      f' {len(shares)}, {text_lib.number(min(shares), 2)} to'
      f' {text_lib.number(max(shares), 2)})'
    )
  families: dict[str, list[Mapping[str, Any]]] = {}
  for row in rows:
    families.setdefault(row['run'], []).append(row)
  bounds: dict[int, list[float]] = {}
  for of in families.values():
    if len(of) == of[0]['exits']:
      bounds.setdefault(len(of), []).append(sum(row['share'] for row in of))
  text = ''
  if parts:
    text += (
      'Measured, by dense runs of the same shape at lower budgets: a dense model'
      f' needs {text_lib.listing(parts)} for the loss of the last exit.'
    )
  if bounds:
    most = [
      f'{text_lib.number(max(sums), 2)} at G = {g}'
      for g, sums in bounds.items()
    ]
    text += (
      ' Where every exit has a dense run of its shape, those bound the leverage:'
      f' at most {text_lib.listing(most)}.'
    )
  return text


def _one_seed(results: Results) -> str:
  """Returns the reminder that a difference may be one of seeds."""
  sd = results.noise('exit')
  if sd is None:
    return ''
  return (
    ' One seed each: the loss of an exit differs by'
    f' {answer.percent(sd)} (sd) between seeds, so differences below about'
    f' {answer.percent(3 * sd)} are not resolved.'
  )


def _mean_loss(rows: Rows, name: str, first: bool) -> float:
  return float(
    np.mean(
      [
        row['loss']
        for row in rows
        if row['weighting'] == name
        and row['exit'] == (1 if first else row['exits'])
      ]
    )
  )

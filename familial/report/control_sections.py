"""The page's sections on twins, branches, leverage and the controls."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from familial.report import controls
from familial.report import html
from familial.report import results as results_lib
from familial.report import words

Results = results_lib.Results
Rows = Sequence[Mapping[str, Any]]
# A section, or the sentence that says what was not measured.
Part = html.Section | str


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
    f'{words.count(len(rows), "exit")} against their twins: the exit is worse'
    f' in {int((ratios > 0).sum())}, by {words.percent(float(ratios.mean()))}'
    f' on average ({words.percent(float(ratios.min()))} to'
    f' {words.percent(float(ratios.max()))}).'
  )
  if found.get('gamma') is not None:
    spread = words.estimate(found['gamma'], found.get('lo'), found.get('hi'))
    seen += f' As an exponent of G that is γ = {spread}.'
  body = gallery.show(
    'twins',
    controls.twins(rows),
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
      ],
      [
        [
          words.scientific(row['budget']),
          f'{row["width"]} × {row["depth"]}',
          str(row['exits']),
          str(row['exit']),
          str(row['layer']),
          words.number(row['loss_exit'], 4),
          words.number(row['loss_twin'], 4),
          words.percent(float(np.expm1(row['log_ratio']))),
        ]
        for row in rows
      ],
      'Losses in nats per token on the same held-out tokens, at equal FLOPs.',
      align='rlrrrrrr',
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
    estimate = words.estimate(law.params[name], *spread)
    parts.append(f'{estimate} for the {where}')
  return html.Section(
    'branch',
    'Branch law',
    html.paragraph(
      "Each exit's loss goes with a power of 1 + the number of exits on a side:"
      f' the exponent is {words.listing(parts)}. One summary of the paper gives'
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
  seen = f'{words.count(len(rows), "cell")}'
  if finite:
    seen += (
      f': leverage from {words.number(min(finite))} to'
      f' {words.number(max(finite))}, median'
      f' {words.number(float(np.median(finite)))};'
      f' {sum(x > 1 for x in finite)} of {len(finite)} finite ones above 1'
    )
  seen += (
    f'. In {endless} at least one exit reaches a loss that the dense law'
    ' gives no model of its size: infinite leverage, drawn as an arrow.'
    if endless
    else '. None is infinite.'
  )
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
    ),
  )


def weighting(results: Results, gallery: html.Gallery) -> Part:
  """Returns what the weights of the exits' losses change."""
  rows = results.summary.get('weighting') or []
  if not rows:
    return "This study did not vary the weights of the exits' losses."
  parts = [
    f'{name.replace("_", " ")}: first exit'
    f' {words.number(_mean_loss(rows, name, first=True))}, last'
    f' {words.number(_mean_loss(rows, name, first=False))} nats'
    for name in sorted({row['weighting'] for row in rows})
  ]
  return html.Section(
    'weighting',
    "Weights of the exits' losses",
    gallery.show(
      'weighting',
      controls.weighting(rows),
      'Loss of each exit by layer, a colour for each weighting',
      f'Means over the shapes. {"; ".join(parts)}.',
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
  seen = f'{words.count(len(rows), "exit")} on frozen trunks.'
  if pairs:
    seen += (
      ' Against the same exit trained jointly their loss is'
      f' {words.percent(float(np.mean(pairs)))} on average'
      f' ({words.percent(min(pairs))} to {words.percent(max(pairs))}).'
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
      f'The mean cosine goes from {words.number(first, 2)} at step {steps[0]} to'
      f' {words.number(last, 2)} at step {steps[-1]};'
      f' {words.number(100 * float(against), 2)} % of all are negative.',
    ),
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

"""The page's record of a study of families: ledger, serving, runs, terms."""

import itertools

from familial.core import text
from familial.expansion import ledger as ledger_lib
from familial.report import families_results
from familial.report import html
from familial.report import record_sections

Families = families_results.Families
Row = families_results.Row
_MB = 1e6
_DEFINITIONS = {
  'Way': (
    'How a family is come by. Separate: each size trained alone. Chain: each'
    ' grown from the one before, and trained on. Exits: one model with an exit'
    ' for each size.'
  ),
  'Member': 'A model of a family that can be deployed: one size of it.',
  'Size': 'Rank of a member by parameters, 1 the smallest.',
  'Parameters': (
    'Without embeddings and unembedding; of a member of a model with exits,'
    " those of the exit's stand-alone model."
  ),
  'C': (
    'Budget in training FLOPs: every matrix product, full attention and every'
    " exit's head, forward and backward; no evaluation, no recomputation. A"
    ' member of a chain is charged with all that it grew from.'
  ),
  'Loss': (
    'Mean token cross-entropy in nats, on held-out text that is the same for'
    ' all runs.'
  ),
  'Log loss over': (
    "Mean of log(loss / the other way's loss) over pairs of one seed, budget and"
    ' size, shown as exp(mean) − 1. Over all sizes and budgets: the mean of'
    ' those.'
  ),
  'Interval': (
    "Student's at 95 %. The scatter between seeds is pooled over all pairs of"
    " the study; seeds are shared by a family's sizes, so only seeds and budgets"
    ' average it. None with one seed.'
  ),
  'Cannot be told apart': 'The interval includes 0.',
  'KL(p ‖ q)': (
    'Mean over held-out tokens of the divergence of q from p, the distributions of'
    ' two members of the next token, in nats; 0 if they are one.'
  ),
  'Jensen-Shannon': (
    'Mean divergence of both from their average; at most log 2 = 0.693 nats.'
  ),
  'Top-1 agreement': 'Share of held-out tokens that both hold the likeliest.',
  'Compute for equal loss': (
    "exp(log loss over / s), s of loss ~ C^-s by the way's own losses at the"
    " study's budgets: the multiple of the other's compute at its loss. C is the"
    " family's where that is what costs the same. The error of s is left out of"
    ' the interval.'
  ),
  'Saving by the ledger': (
    'What a chain trains with less than the way that it is compared with.'
  ),
  'Saving at its losses': (
    "What a chain trains with less than the other way would need for the chain's"
    " losses: each size's compute is moved along that way's own slope, whose"
    ' error is left out of the interval.'
  ),
  'Tokens seen': (
    'Training tokens of a run and of all runs that it grew from.'
  ),
}


def ledger(families: Families) -> html.Section | str:
  """Returns the stages of every family, and what each costs in all."""
  rows = families.ledger
  if not rows:
    return 'The plan has no ledger.'
  body = html.paragraph(
    'Every member has a budget of its own. A chain spends on each stage what'
    ' that leaves after the stages before it, to the nearest step. Seeds cost'
    ' the same.'
  )
  ways = families.part('ways')
  if ways:
    body += html.table(
      ['way', 'kind', 'exits kept', 'growth', 'rates of width', 'split of C'],
      list(map(_way, ways)),
      'How each way is done. Rates of width: the width whose rates all matrices'
      " have, otherwise each its own's. Split of C among separate sizes: by"
      ' parameters with tokens in proportion, or even.',
      align='llllrl',
    )
  body += html.table(
    [
      'way',
      'over',
      'C, FLOPs',
      'FLOPs in all',
      'against it',
      'against its own sizes',
    ],
    [
      [
        row['way'],
        families.against(row['way']) or '–',
        text.scientific(row['budget']),
        text.scientific(row['flops'], 4),
        _against(families, row),
        '–' if row['saving'] is None else text.percent(-row['saving'], 3),
      ]
      for row in rows
    ],
    'What a family costs: against the way that it is compared with, and, of a'
    " chain, against its own sizes trained alone to the same members' FLOPs.",
    align='llrrrr',
  )
  body += html.table(
    [
      'way',
      'C, FLOPs',
      'sizes',
      'width × depth',
      'tokens',
      'steps',
      'FLOPs',
      'FLOPs so far',
      'own budget',
      'off by, steps',
    ],
    [_stage(row, place) for row in rows for place in range(len(row['stages']))],
    'Stages. FLOPs so far are those of a stage and of all that it grew from; off'
    ' by is how far they are from the budget, in steps of the stage.',
    align='lrrrrrrrrr',
  )
  return html.Section('ledger', 'The ledger', body)


def _way(row: Row) -> list[str]:
  growth = ', '.join(
    f'{key} {value}' for key, value in row['growth'].items() if value
  )
  return [
    row['way'],
    row['kind'],
    'yes' if row['keep_exits'] else '–',
    growth if row['kind'] == 'chain' else '–',
    str(row['rate_width'] or 'its own'),
    'even' if row['alike'] else 'by parameters',
  ]


def serving(families: Families) -> html.Section | str:
  """Returns what a family costs to store, and each member to serve."""
  rows = families.part('storage')
  if not rows:
    return 'What a family costs to store and to serve has not been counted.'
  sizes = [f'size {number}' for number in range(1, families.sizes + 1)]
  body = html.table(
    ['way', 'models', 'MB in all', *(f'{size}, MB' for size in sizes)],
    [
      [
        row['way'],
        str(row['models']),
        text.number(row['bytes'] / _MB),
        *(text.number(size / _MB) for size in row['member_bytes']),
      ]
      for row in rows
    ],
    'To store: parameters in float32, with embeddings. Members of one model'
    ' share what they have in common; by itself each takes what its column says.',
    align='lrr' + 'r' * families.sizes,
  )
  body += html.table(
    ['way', *sizes],
    [[row['way'], *map(text.amount, row['forward_flops'])] for row in rows],
    'To serve: forward FLOPs per token of each member by itself.',
    align='l' + 'r' * families.sizes,
  )
  return html.Section('serving', 'To store and to serve', body)


def runs(families: Families) -> html.Section:
  """Returns the table of all runs, finished or not."""
  seen = {row['run']: row['tokens_seen'] for row in families.part('members')}
  planned = {
    stage['cell']: tokens
    for row in families.ledger
    for stage, tokens in zip(row['stages'], _seen(row), strict=True)
  }
  rows = [
    [
      run.cell,
      run.status,
      f'{run.width} × {run.depth}',
      text.amount(run.params_full),
      str(run.exits),
      text.amount(run.tokens),
      text.amount(seen.get(run.cell) or planned.get(run.cell)),
      text.number(run.epochs, 2),
      text.scientific(run.flops if run.rows else None),
      ' · '.join(text.number(loss, 4) for loss in run.losses) or '–',
    ]
    for run in families.results.runs
  ]
  body = html.paragraph(record_sections.tally(families.results.runs))
  body += html.table(
    [
      'run',
      'status',
      'width × depth',
      'parameters',
      'exits',
      'tokens',
      'seen in the chain',
      'epochs',
      'FLOPs so far',
      'loss by exit, nats',
    ],
    rows,
    'Every run with its last evaluation.',
    align='lllrrrrrrl',
  )
  return html.Section('runs', 'Runs', body)


def definitions() -> html.Section:
  """Returns what every quantity means."""
  return html.Section('terms', 'Definitions', html.terms(_DEFINITIONS))


def _against(families: Families, row: Row) -> str:
  cost = families.cost(families.against(row['way']), row['budget'])
  return '–' if not cost else text.percent(row['flops'] / cost - 1, 3)


def _seen(row: Row) -> list[int]:
  """Returns the tokens of each stage and of all that it grew from."""
  tokens = [stage['tokens'] for stage in row['stages']]
  if row['kind'] != 'chain':
    return tokens
  return list(itertools.accumulate(tokens))


def _stage(row: Row, place: int) -> list[str]:
  """Returns a line of the ledger."""
  stage = row['stages'][place]
  exits = len(stage['exits'])
  return [
    row['way'],
    text.scientific(row['budget']),
    str(place + 1) if exits == 1 else f'1 to {exits}',
    f'{stage["width"]} × {stage["depth"]}',
    text.amount(stage['tokens']),
    str(stage['steps']),
    text.scientific(stage['flops']),
    text.scientific(stage['total']),
    text.scientific(stage['budget']),
    f'{ledger_lib.steps_off(stage):+.2f}'.replace('-', text.MINUS),
  ]

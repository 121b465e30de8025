"""The sections of a replay's page: gains, laws, predictions, single draws."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from familial.allocation import comparison
from familial.allocation import curves as curves_lib
from familial.allocation import rounds as rounds_lib
from familial.core import text as text_lib
from familial.plots import allocation
from familial.plots import replay
from familial.report import allocation_words
from familial.report import html

Cell = Mapping[str, Any]
Cells = Sequence[Cell]


def contenders(cells: Cells) -> list[str]:
  """Policies beside what they are compared with and the bound."""
  names = dict.fromkeys(name for cell in cells for name in cell['policies'])
  return [n for n in names if n not in (comparison.BASE, comparison.BOUND)]


def name_of(cells: Cells, cell: Cell) -> str:
  """How a cell is named among all."""
  text = (
    f'{cell["candidates"]} of {cell["curves"]} curves,'
    f' {text_lib.scientific(cell["budget"])} FLOPs'
  )
  several = len({each['table'] for each in cells}) > 1
  return f'{cell["table"]}, {text}' if several else text


def gains(result: Mapping[str, Any], gallery: html.Gallery) -> html.Section:
  """Losses, gains and savings of every policy in every cell."""
  cells = result['cells']
  body = ''
  for number, mine in enumerate(_tables(cells)):
    body += gallery.show(
      f'gains_{number}',
      replay.gains(mine),
      'Gain of every policy over Successive Halving, a panel a budget and number'
      ' of candidates, with intervals and the gain of the oracle',
      f'{mine[0]["table"]}: right of 0 a policy found a better model than'
      ' Successive Halving did.',
    )
  for cell in cells:
    body += html.table(
      [
        'policy',
        'loss',
        'gain over sh',
        'of the oracle',
        'regret',
        'spent, FLOPs',
      ],
      [
        [
          name,
          allocation_words.plain(row['best']),
          allocation_words.gain(row['gain']),
          _share(row['share_of_bound']),
          allocation_words.error(row['regret']),
          text_lib.scientific(row['spent']['value']),
        ]
        for name, row in cell['policies'].items()
      ],
      f'{name_of(cells, cell)}: means over {text_lib.count(cell["draws"], "draw")};'
      f' {_rounds(cell)}.',
      align='lrrrrr',
    )
  return html.Section('gains', 'Best loss, policy against policy', body)


def law(result: Mapping[str, Any], gallery: html.Gallery) -> html.Section | str:
  """How far laws and frontiers are from the whole grid's."""
  cells, asked = result['cells'], result['config']['law']
  far = f'{asked["beyond"]:g} times the largest compute of the grid'
  body = html.paragraph(
    'The lowest loss is not what a law is after. Here laws are fitted to what'
    f' each policy trained, and asked for the best loss at {far}; the truth that'
    ' they are held against is the law of the whole grid, or, of synthetic'
    ' curves, the law that they obey.'
  )
  for number, mine in enumerate(replay.families(cells)):
    body += gallery.show(
      f'law_{number}',
      replay.law_errors(mine, asked['beyond']),
      'Error of the extrapolated loss against what was spent, by policy',
      f'{mine[0]["table"]}: a policy is worth its budget where its error is low at'
      ' the left.',
    )
  for cell in cells:
    saving = cell['policies'][comparison.BASE]['saving']
    body += html.table(
      [
        'policy',
        'law off by',
        'within 1 %',
        'fits',
        'line off by',
        'area (AbC)',
        'slope',
      ],
      [
        [
          name,
          allocation_words.error(row['law_error']),
          _share(row['law_within_1_percent'], signed=False),
          f'{row["law_fits"]} of {cell["draws"]}',
          allocation_words.error(row['line_error']),
          text_lib.number(row['area']['value']),
          text_lib.number(row['slope']['value']),
        ]
        for name, row in cell['policies'].items()
      ],
      f'{name_of(cells, cell)}, saving {_share(saving, signed=False)}:'
      ' medians over draws of the relative error, share of all draws in which the'
      ' law is within 1 %, draws in which it could be fitted.',
      align='lrrrrrr',
    )
  for name, shapes in result['frontiers'].items():
    body += html.table(
      ['loss between points', 'ln L =', 'leaves', 'L =', 'leaves'],
      [
        [
          row['match'],
          f'{row["slope"]:.4f} ln C + {row["level"]:.3f}',
          f'{row["residual"]:.2%}',
          f'{row["E"]:.3f} + {row["A"]:.3g} / C^{row["alpha"]:.3f}',
          f'{row["residual_E"]:.2%}',
        ]
        for row in shapes
      ],
      f'{name}: the frontier of all curves from'
      f' {text_lib.scientific(shapes[0]["low"])} to'
      f' {text_lib.scientific(shapes[0]["high"])} FLOPs, as a straight line and with'
      ' an irreducible term; what either leaves is the root mean square of its'
      ' relative errors.',
      align='lrrrr',
    )
  return html.Section('law', 'What the law is worth', body)


def calibration(
  result: Mapping[str, Any], gallery: html.Gallery
) -> html.Section | str:
  """Whether predictions are as sure as they say, and better than none."""
  cells = [c for c in result['cells'] if any(c['calibration'].values())]
  if not cells:
    return 'No policy of this replay made a prediction.'
  body = html.paragraph(
    'After each round but the last a surrogate predicts the loss at the end of'
    " the survivors' budgets. It helps only where its mean is nearer to the"
    ' truth than the last loss held, or orders candidates better.'
  )
  for number, mine in enumerate(_tables(cells)):
    table = mine[0]['table']
    body += gallery.show(
      f'coverage_{number}',
      replay.coverage(mine),
      'Coverage of predictive intervals by round and policy, with the nominal one',
      f'{table}: below the dashed line a surrogate is surer than it may be.',
    )
    body += gallery.show(
      f'predictions_{number}',
      replay.prediction_errors(mine),
      'Median error of predictions by round and policy, beside that of the last'
      ' loss held',
      f'{table}: solid below dotted, the surrogate knows more than the last loss.',
    )
  for cell in cells:
    body += html.folded(
      f'Table: {name_of(result["cells"], cell)}',
      html.table(
        [
          'policy',
          'round',
          'predictions',
          'coverage',
          'median error',
          'last loss held',
          'bias',
          'width',
        ],
        [
          [
            name,
            str(row['round']),
            str(row['predictions']),
            _covered(row['coverage']),
            f'{text_lib.number(100 * row["error"])} %',
            f'{text_lib.number(100 * row["held_error"])} %',
            text_lib.percent(row['bias'], 3),
            f'{text_lib.number(100 * row["width"], 2)} %',
          ]
          for name, rows in cell['calibration'].items()
          for row in rows
        ],
        'Predictions held against the true loss at the compute they are for;'
        ' medians over candidates and draws. Bias: above 0, too high a loss was'
        ' predicted. Width: of the interval, over the true loss.',
        align='lrrrrrrr',
      ),
    )
  return html.Section(
    'predictions', 'Are the predictions to be believed?', body
  )


def draws(
  result: Mapping[str, Any],
  examples: Sequence[
    tuple[Sequence[curves_lib.Curve], Mapping[str, rounds_lib.Allocation]]
  ],
  gallery: html.Gallery,
) -> html.Section:
  """The first draw of each cell: who was pruned when, and the frontiers."""
  cells, beyond = result['cells'], result['config']['law']['beyond']
  body = ''
  for number, (cell, (grid, allocations)) in enumerate(
    zip(cells, examples, strict=True)
  ):
    names = [comparison.BASE, *_best_surrogate(cell)]
    made = {name: allocations[name] for name in names}
    part = gallery.show(
      f'draw_{number}',
      allocation.courses(
        [
          allocation.Course(name, grid, mine.curves, mine.rounds)
          for name, mine in made.items()
        ]
      ),
      'Curves of the candidates of one draw, coloured by the round after which'
      ' they were pruned',
      '. '.join(
        f'{name}: lowest loss {text_lib.number(mine.best, 4)} for'
        f' {text_lib.scientific(mine.total)} FLOPs'
        for name, mine in made.items()
      )
      + '.',
    )
    far = beyond * max(curve.end for curve in grid)
    part += gallery.show(
      f'frontiers_{number}',
      allocation.frontiers(
        grid, {name: mine.curves for name, mine in allocations.items()}, far
      ),
      'Compute frontiers of the whole grid and of every policy, with straight'
      ' lines extrapolated',
      'Where policies agree, their lines hide one another.',
    )
    where = name_of(cells, cell)
    body += (
      html.folded(f'The first draw of {where}', part)
      if number
      else html.paragraph(f'The first draw of {where}.') + part
    )
  return html.Section('draws', 'One draw', body)


def _best_surrogate(cell: Cell) -> list[str]:
  """The name of the surrogate's policy that gained most, if there is one."""
  gain = {
    name: cell['policies'][name]['gain']['value']
    for name in cell['calibration']
  }
  known = {name: value for name, value in gain.items() if value is not None}
  return [max(known, key=known.__getitem__)] if known else []


def _tables(cells: Cells) -> list[list[Cell]]:
  """Cells by the table of their curves."""
  found: dict[str, list[Cell]] = {}
  for cell in cells:
    found.setdefault(cell['table'], []).append(cell)
  return list(found.values())


def _rounds(cell: Cell) -> str:
  counts = ', '.join(map(str, cell['rounds']))
  return f'Successive Halving trains {counts} of them round by round'


def _covered(interval: Mapping[str, Any]) -> str:
  """A share of predictions and its interval over draws, in per cent."""
  text = f'{interval["value"]:.0%}'
  if interval['lo'] is None:
    return text
  return f'{text} [{interval["lo"]:.0%}, {interval["hi"]:.0%}]'


def _share(row: Mapping[str, Any] | None, signed: bool = True) -> str:
  """A share in whole per cent."""
  value = (row or {}).get('value')
  if value is None:
    return '–'
  text = f'{100 * value:.0f}'.replace('-', text_lib.MINUS)
  return f'{"+" if signed and value > 0 else ""}{text}{text_lib.SPACE}%'

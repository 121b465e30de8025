"""The page's sections on the losses of families, and how members agree."""

from collections.abc import Callable
from collections.abc import Sequence

from familial.core import text
from familial.plots import families as families_lib
from familial.report import families_results
from familial.report import html

Families = families_results.Families
Row = families_results.Row
# A section, or the sentence that says what was not measured.
Part = html.Section | str


def compared(families: Families, gallery: html.Gallery) -> Part:
  """Returns each way's loss over that of the way it is compared with."""
  every = families.part('compared')
  rows = families.counterparts('compared')
  if not rows:
    return 'No size of one way has been compared with that of another.'
  params = {
    (way, size): count
    for way in families.ways
    for size, count in families.params(way).items()
  }
  span = (
    'Bars are 95 % intervals; a bar across 0 cannot be told apart from it.'
    if any(row['lo'] is not None for row in rows)
    else 'One seed: no intervals.'
  )
  body = gallery.show(
    'compared',
    families_lib.compared(rows, params, families.ways),
    "Loss of each way over its counterpart's against the member's parameters, a"
    ' panel for each budget, a colour for each way',
    f'Below 0 the way has the lower loss. {span} Ways stand side by side'
    ' at each size so that none hides another.',
  )
  tables = [
    html.table(
      ['way', 'over', *_sizes(families)],
      [
        line
        for against in dict.fromkeys(row['against'] for row in every)
        for line in _by_size(
          families,
          families.part('compared', budget=budget, against=against),
          families_results.over,
          [against],
        )
      ],
      f'Loss over that of the other way at C = {text.scientific(budget)} FLOPs,'
      ' by size, with 95 % intervals; "–" where both are one run, as a chain'
      ' begins with a single model, or one is missing.',
      align='ll' + 'r' * families.sizes,
    )
    for budget in families.budgets
  ]
  body += html.folded('Table of relative losses', ''.join(tables))
  return html.Section('compared', 'Loss by size, way against way', body)


def losses(families: Families) -> Part:
  """Returns the losses by size and way, and the parameters of each size."""
  if not families.part('losses'):
    return 'No losses have been gathered.'
  shapes: dict[tuple[str, ...], list[str]] = {}
  for way in families.ways:
    members = {row['size']: row for row in families.part('members', way=way)}
    cells = tuple(
      f'{text.amount(row["params"])} ({row["width"]} × {row["layer"]})'
      if (row := members.get(size))
      else '–'
      for size in range(1, families.sizes + 1)
    )
    shapes.setdefault(cells, []).append(way)
  body = html.table(
    ['ways', *_sizes(families)],
    [
      ['all' if len(shapes) == 1 else ', '.join(ways), *cells]
      for cells, ways in shapes.items()
    ],
    'Parameters of each size without embeddings (width × layers).',
    align='l' + 'r' * families.sizes,
  )
  for budget in families.budgets:
    body += html.table(
      ['way', *_sizes(families)],
      _by_size(families, families.part('losses', budget=budget), _estimate),
      f'Loss in nats per token at C = {text.scientific(budget)} FLOPs: the'
      ' geometric mean of the seeds, with 95 % intervals where there are several.',
      align='l' + 'r' * families.sizes,
    )
  return html.Section('losses', 'Losses', body)


def agreement(families: Families, gallery: html.Gallery) -> Part:
  """Returns how far adjacent sizes agree, with two seeds as the scale."""
  budgets = [c for c in families.budgets if families.agreement('adjacent', c)]
  if not budgets:
    return 'How far adjacent sizes agree was not measured.'
  rows = families.agreement('adjacent', budgets[-1])
  scale = families.agreement('seeds', budgets[-1])
  means = [
    f'{way} {text.number(sum(found) / len(found))}'
    for way in families.ways
    if (found := [row['kl'] for row in rows if row['way'] == way])
  ]
  seen = (
    f'At C = {text.scientific(budgets[-1])} FLOPs, mean over seeds.'
    ' KL(smaller ‖ larger), mean of all adjacent sizes in nats:'
    f' {", ".join(means)}.'
  )
  if scale:
    low, high = (
      text.number(end([row['kl'] for row in scale])) for end in (min, max)
    )
    seen += f' The scale, two seeds of one size and way: {low} to {high}.'
  body = html.paragraph(
    'A family is consistent if a member and the next larger one give the next'
    ' token about the same distribution. '
    + (
      'Two models of one size that differ by the seed alone are the scale of'
      ' what training leaves to chance.'
      if scale
      else 'The scale would be two seeds of one size: this study has one seed,'
      ' and so no scale.'
    )
  )
  body += gallery.show(
    'agreement',
    families_lib.agreement(rows, scale, families.ways),
    'Divergence and top-1 agreement of adjacent sizes, a colour for each way',
    seen,
  )
  for budget in budgets:
    at = f'C = {text.scientific(budget)} FLOPs'
    body += _agreement_table(
      families.agreement('adjacent', budget),
      f'Adjacent sizes at {at}',
      'smaller',
      'larger',
      lambda row: f'{row["size"]} and {row["other_size"]}',
    )
    alone = families.agreement('seeds', budget)
    if alone:
      body += _agreement_table(
        alone,
        f'Two seeds of one size at {at}',
        'first',
        'other',
        lambda row: str(row['size']),
      )
  return html.Section('agreement', 'Do the sizes agree?', body)


def compute(families: Families) -> Part:
  """Returns the compute that a way needs for the other's losses."""
  if not families.part('equal_loss'):
    why = (
      'it takes two budgets, and the study has one'
      if len(families.budgets) == 1
      else 'no loss has been compared at two budgets'
    )
    return f'Compute for equal loss was not measured: {why}.'
  body = html.paragraph(
    "The compute that a way needs for the other's loss, as a multiple of what"
    ' that one had: exp(log ratio of losses / s), s the slope of its own log'
    ' loss over log C. Below 1 it needs less. A dash: its loss does not fall'
    ' with compute.'
  )
  for budget in families.budgets:
    body += html.table(
      ['way', 'over', *_sizes(families)],
      [
        line
        for way in families.ways
        for line in _by_size(
          families,
          families.part('equal_loss', budget=budget, way=way),
          lambda row: _estimate(row, 3),
          [families.against(way)],
        )
      ],
      f'Multiples at C = {text.scientific(budget)} FLOPs, by size, with 95 %'
      ' intervals where there are several seeds; what the slope errs by is left'
      ' out.',
      align='ll' + 'r' * families.sizes,
    )
  return html.Section('compute', 'Compute for equal loss', body)


def _agreement_table(
  rows: Sequence[Row], what: str, p: str, q: str, sizes: Callable[[Row], str]
) -> str:
  """Returns a table of how members agree, named `p` and `q`."""
  measures = {
    'kl': f'KL({p} ‖ {q})',
    'kl_back': f'KL({q} ‖ {p})',
    'js': 'Jensen-Shannon',
    'top1': 'same top-1, %',
  }

  def cell(row: Row, key: str) -> str:
    unit = 100 if key == 'top1' else 1
    error = row['errors'][key]
    return text.give_or_take(
      unit * row[key], None if error is None else unit * error
    )

  return html.table(
    ['way', 'sizes', *measures.values(), 'pairs'],
    [
      [
        row['way'],
        sizes(row),
        *(cell(row, key) for key in measures),
        str(row['pairs']),
      ]
      for row in rows
    ],
    f'{what}: nats per token, means over pairs; ± is the standard error over'
    ' held-out windows.',
    align='llrrrrr',
  )


def _sizes(families: Families) -> list[str]:
  return [f'size {number}' for number in range(1, families.sizes + 1)]


def _by_size(
  families: Families,
  rows: Sequence[Row],
  cell: Callable[[Row], str],
  more: Sequence[str] = (),
) -> list[list[str]]:
  """Returns lines of a table: way, `more` of it, a cell for each size."""
  found = {(row['way'], row['size']): cell(row) for row in rows}
  return [
    [
      way,
      *more,
      *(found.get((way, size), '–') for size in range(1, families.sizes + 1)),
    ]
    for way in families.ways
    if any(of == way for of, _ in found)
  ]


def _estimate(row: Row, digits: int = 4) -> str:
  if row['lo'] is None:
    return text.number(row['value'], digits)
  return text.estimate(row['value'], row['lo'], row['hi'])

"""What exits cost, measured run beside run: no law stands between.

A *block* is a shape at a budget: the families of that backbone and its dense
model, each trained with the same FLOPs. A *twin* is a dense model of one exit's
exact shape. Log losses of seeds are averaged first.
"""

from collections import defaultdict
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from familial.core import estimate
from familial.core import storage
from familial.laws import definitions
from familial.laws import frontier

Row = storage.Row
Runs = Mapping[str, list[Row]]  # rows of the last evaluation by run, by exit
Block = tuple[Any, ...]
LOSSES = ('final', 'mean')  # those of a run; the third is of an exit
_BLOCK = ('budget', 'width', 'depth', 'heads')
_DEPTH = ('exits', 'layer', 'depth')
_DRAWS = 1000


def log_loss(exits: Sequence[Row], loss: str) -> float:
  """Returns the log of a run's `final` or `mean` loss."""
  values = [row['loss'] for row in exits]
  return math.log(values[-1] if loss == 'final' else np.mean(values))


def place(row: Row) -> Block:
  """Returns what two runs share that differ by seed or weighting alone."""
  return (*_block(row), tuple(row['exit_layers']))


def noise(last: Runs) -> dict[str, Any] | None:
  """Returns the spread of log loss between runs that differ by seed alone.

  Args:
    last: the last rows of each finished run, one per exit.

  Returns:
    `sd_log_loss` by loss, pooled over the cells that have several seeds (for
    `exit` over their exits too), their number `cells`, the largest number of
    `seeds`, and the `degrees` of freedom; None where no cell has two.
  """
  groups: dict[Block, list[list[Row]]] = defaultdict(list)
  for exits in _of_grid(last):
    groups[place(exits[0])].append(exits)
  repeated = [runs for runs in groups.values() if len(runs) > 1]
  if not repeated:
    return None
  degrees = sum(len(runs) - 1 for runs in repeated)

  def pooled(logs_of: Callable[[list[Row]], list[float]]) -> float:
    squares = count = 0.0
    for runs in repeated:
      logs = np.array([logs_of(exits) for exits in runs])
      squares += float(np.sum((logs - logs.mean(0)) ** 2))
      count += logs.size - logs.shape[1]
    return math.sqrt(squares / count)

  return {
    'sd_log_loss': {
      'final': pooled(lambda exits: [log_loss(exits, 'final')]),
      'mean': pooled(lambda exits: [log_loss(exits, 'mean')]),
      'exit': pooled(lambda exits: [math.log(row['loss']) for row in exits]),
    },
    'cells': len(repeated),
    'seeds': max(map(len, repeated)),
    'degrees': degrees,
  }


def paired(
  last: Runs, laws: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
  """Compares families with the dense model of their block.

  gamma of a block is the least-squares slope of log loss on log G; an interval
  is Student's, over blocks.

  Args:
    last: the last rows of each finished run, one per exit.
    laws: E, A, B, alpha, beta by loss. Equal FLOPs are fewer tokens for more
      heads: with a law the losses are also compared at equal N and D.

  Returns:
    `gamma` by loss, by what is `equal` (flops or tokens) and by budget, over
    all where that is None; `trend`, gamma's change with a tenfold budget;
    `ratios`, the log of the loss over the dense model's at equal FLOPs, by
    loss, G and budget; and the same of each block in `blocks`.
  """
  found: dict[str, Any] = {
    'gamma': [], 'trend': [], 'ratios': [], 'blocks': []
  }  # fmt: skip
  for loss in LOSSES:
    for equal in ('flops', *(('tokens',) if loss in laws else ())):
      blocks = _blocks(last, loss, laws[loss] if equal == 'tokens' else None)
      named = {'loss': loss, 'equal': equal}
      slopes = {key: _slope(logs) for key, logs in blocks.items()}
      for budget, values in _by_budget(slopes):
        found['gamma'].append({**named, 'budget': budget, **_mean(values)})
      if len({key[0] for key in slopes}) > 1 and len(slopes) > 2:
        found['trend'].append({**named, **_trend(slopes)})
      if equal == 'flops':
        for g in sorted({g for logs in blocks.values() for g in logs} - {1}):
          ratios = {k: b[g] - b[1] for k, b in blocks.items() if g in b}
          named = {'loss': loss, 'exits': g}
          for budget, values in _by_budget(ratios):
            found['ratios'].append({**named, 'budget': budget, **_mean(values)})
          found['blocks'] += [
            {**named, **dict(zip(_BLOCK, key, strict=True)), 'value': value}
            for key, value in ratios.items()
          ]
  return found


def twins(last: Runs, spread: Mapping[str, Any] | None) -> dict[str, Any]:
  """Compares each exit with the dense model of its shape at equal FLOPs.

  gamma is the slope through 0 of log(loss / twin's loss) on log G over all
  exits. Its interval, like the others', is of the noise between seeds alone,
  which a run's exits share: with few shapes nothing is known of other shapes.

  Args:
    last: the last rows of each finished run, one per exit.
    spread: the noise, for the intervals.

  Returns:
    `rows`, an exit each; `gamma` over all and for each of `shapes`; `depths`,
    the mean log ratio by G and layer; nothing where no exit but the last has
    a twin.
  """
  dense: dict[Block, list[float]] = defaultdict(list)
  families: dict[Block, list[list[Row]]] = defaultdict(list)
  for exits in last.values():
    if exits[0]['exits'] > 1 and exits[0]['arm'] in definitions.GRID:
      families[place(exits[0])].append(exits)
    elif exits[0]['arm'] in definitions.arms_of('exit'):
      dense[_shape(exits[-1])].append(log_loss(exits, 'final'))
  rows = []
  for runs in families.values():
    own = [
      {
        **{k: exits[0][k] for k in (*_BLOCK, 'exits', 'exit', 'layer')},
        'loss_exit': math.exp(log),
        'loss_twin': math.exp(twin),
        'log_ratio': log - twin,
        'seeds': len(exits),
        'seeds_twin': len(dense[key]),
      }
      for exits in zip(*runs, strict=True)
      if (key := _shape(exits[0])) in dense
      for log in [float(np.mean([math.log(row['loss']) for row in exits]))]
      for twin in [float(np.mean(dense[key]))]
    ]
    # Elsewhere only the last exit has a dense model of its shape.
    if any(row['exit'] < row['exits'] for row in own):
      rows += own
  if not rows:
    return {}
  shapes = sorted({_key(row, _BLOCK) for row in rows})
  depths = sorted({(row['exits'], row['layer'], row['depth']) for row in rows})
  return {
    'rows': rows,
    **_penalty(rows, spread),
    'shapes': [
      {
        **dict(zip(_BLOCK, shape, strict=True)),
        **_penalty([r for r in rows if _key(r, _BLOCK) == shape], spread),
      }
      for shape in shapes
    ],
    'depths': [
      {
        **dict(zip(_DEPTH, depth, strict=True)),
        **_weighted(here, np.full(len(here), 1 / len(here)), spread),
        'shapes': len(here),
      }
      for depth in depths
      for here in [[r for r in rows if _key(r, _DEPTH) == depth]]
    ],
  }


def minima(last: Runs, spread: Mapping[str, Any] | None) -> list[Row]:
  """Compares families at the best size of each G, by budget.

  Returns:
    By loss, budget and G, where this G's and the dense IsoFLOP minimum lie
    inside the sampled sizes: the `value` of their log ratio, and an interval
    from drawing the noise between seeds anew: parabolas through four points
    amplify it. Their own misfit is not in it.
  """
  rng = np.random.default_rng(0)
  found = []
  for loss in LOSSES:
    cells: dict[Block, list[list[Row]]] = defaultdict(list)
    for exits in last.values():
      if exits[0]['arm'] == 'grid':
        cells[exits[0]['budget'], exits[0]['exits']].append(exits)
    lows, drawn = {}, {}
    for cell, runs in sorted(cells.items()):
      sizes = [exits[0]['params_full'] for exits in runs]
      logs = np.array([log_loss(exits, loss) for exits in runs])
      lows[cell] = frontier.minimum(sizes, np.exp(logs).tolist())
      if spread is not None and lows[cell].interior:
        luck = rng.normal(0, spread['sd_log_loss'][loss], (_DRAWS, len(runs)))
        drawn[cell] = np.array(
          [
            frontier.minimum(sizes, row).loss
            for row in np.exp(logs + luck).tolist()
          ]
        )
    for (budget, g), low in lows.items():
      dense = lows.get((budget, 1))
      if g == 1 or dense is None or not (low.interior and dense.interior):
        continue
      lo = hi = None
      if spread is not None:
        ratios = np.log(drawn[budget, g] / drawn[budget, 1])
        lo, hi = map(float, np.percentile(ratios, [2.5, 97.5]))
      found.append(
        {
          'loss': loss,
          'budget': budget,
          'exits': g,
          'value': math.log(low.loss / dense.loss),
          'lo': lo,
          'hi': hi,
        }
      )
  return found


def _key(row: Row, names: Sequence[str]) -> Block:
  return tuple(row[name] for name in names)


def _block(row: Row) -> Block:
  return _key(row, _BLOCK)


def _shape(row: Row) -> Block:
  """Returns what an exit and its twin share, the budget included."""
  return (row['budget'], *definitions.shape(row))


def _of_grid(last: Runs) -> Iterable[list[Row]]:
  return (e for e in last.values() if e[0]['arm'] in definitions.GRID)


def _blocks(
  last: Runs, loss: str, law: Mapping[str, float] | None
) -> dict[Block, dict[int, float]]:
  """Returns log losses by block and G, less the law's where there is one."""
  runs: dict[Block, dict[int, list[float]]] = defaultdict(dict)
  for exits in _of_grid(last):
    row = exits[-1]
    value = log_loss(exits, loss)
    if law is not None:
      size = law['A'] / row['params_full'] ** law['alpha']
      data = law['B'] / row['tokens'] ** law['beta']
      value -= math.log(law['E'] + size + data)
    runs[_block(row)].setdefault(row['exits'], []).append(value)
  return {
    block: {g: float(np.mean(logs)) for g, logs in sorted(by_g.items())}
    for block, by_g in sorted(runs.items())
    if 1 in by_g and len(by_g) > 1
  }


def _slope(by_g: Mapping[int, float]) -> float:
  return float(np.polyfit(np.log(list(by_g)), list(by_g.values()), 1)[0])


def _by_budget(
  values: Mapping[Block, float],
) -> Iterable[tuple[float | None, list[float]]]:
  """Yields all values, and those of each budget where there are several."""
  if values:
    yield None, list(values.values())
  budgets = sorted({key[0] for key in values})
  for budget in budgets if len(budgets) > 1 else ():
    yield budget, [v for key, v in values.items() if key[0] == budget]


def _mean(values: Sequence[float]) -> dict[str, Any]:
  """Returns the mean, and its interval from the scatter of the values."""
  found = estimate.Estimate.of(np.array(values))
  return {**dataclasses.asdict(found), 'blocks': len(values)}


def _trend(slopes: Mapping[Block, float]) -> dict[str, Any]:
  """Returns gamma's slope on log10 of the budget."""
  budgets = np.log10([key[0] for key in slopes])
  found = estimate.Estimate.slope(budgets, np.array(list(slopes.values())))
  return dataclasses.asdict(found)


def _penalty(
  rows: Sequence[Row], spread: Mapping[str, Any] | None
) -> dict[str, Any]:
  """Returns gamma of some exits and their twins."""
  log_g = np.log([row['exits'] for row in rows])
  return _weighted(rows, log_g / (log_g @ log_g), spread)


def _weighted(
  rows: Sequence[Row], weights: np.ndarray, spread: Mapping[str, Any] | None
) -> dict[str, Any]:
  """Returns a weighted sum of log ratios, and its interval from the noise."""
  value, reach = float(weights @ [row['log_ratio'] for row in rows]), None
  if spread is not None:
    reach = estimate.quantile(spread['degrees']) * _error(rows, weights, spread)
  return dataclasses.asdict(estimate.Estimate.around(value, reach))


def _error(
  rows: Sequence[Row], weights: np.ndarray, spread: Mapping[str, Any]
) -> float:
  """Returns the standard error of a weighted sum of log ratios.

  A run's exits share its luck, and so do all exits that have one twin.
  """
  shares: dict[Block, tuple[float, int]] = {}
  for row, weight in zip(rows, weights, strict=True):
    for key, seeds in (
      (('family', *_block(row), row['exits']), row['seeds']),
      (('twin', *_block(row), row['layer']), row['seeds_twin']),
    ):
      shares[key] = (shares.get(key, (0.0, 0))[0] + weight, seeds)
  variance = sum(share**2 / seeds for share, seeds in shares.values())
  return float(spread['sd_log_loss']['exit'] * math.sqrt(variance))

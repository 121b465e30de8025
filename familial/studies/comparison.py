"""Families compared with dense models, run beside run: no law stands between.

A *block* is a shape at a budget: the families of that backbone and its dense
model, each trained with the same FLOPs. A *twin* is a dense model of one exit's
exact shape. Log losses of seeds are averaged first.
"""

from collections import defaultdict
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from familial.core.estimate import Estimate
from familial.core.estimate import quantile
from familial.laws import definitions
from familial.laws import frontier
from familial.studies import study
from familial.studies.study import Run

LOSSES = ('final', 'mean')  # of a run; `exit` is the loss of one exit
_DRAWS = 1000
Shape = tuple[float, int, int, int]


@dataclasses.dataclass(frozen=True)
class Noise:
  """Spread of log loss between runs that differ by seed alone.

  Attributes:
    final: standard deviation of the last exit's log loss, pooled over cells.
    mean: that of the mean loss over exits.
    exit: that of an exit's loss, pooled over exits too.
    cells: number of cells with several seeds.
    seeds: largest number of seeds of a cell.
    degrees: degrees of freedom of `final` and `mean`.
  """

  final: float
  mean: float
  exit: float
  cells: int
  seeds: int
  degrees: int


@dataclasses.dataclass(frozen=True)
class PairedGamma:
  """Exponent of G within blocks: the slope of log loss on log G.

  Attributes:
    loss: `final` or `mean`.
    equal: `flops`, or `tokens` for equal N and D by a law's beta.
    budget: FLOPs of the blocks; None for all budgets.
    gamma: mean over blocks, Student's interval.
    blocks: number of blocks.
  """

  loss: str
  equal: str
  budget: float | None
  gamma: Estimate
  blocks: int


@dataclasses.dataclass(frozen=True)
class Trend:
  """Change of the paired gamma with a tenfold budget."""

  loss: str
  equal: str
  gamma: Estimate


@dataclasses.dataclass(frozen=True)
class Ratio:
  """Log of a family's loss over its dense model's at equal FLOPs, mean of blocks.

  `budget` is None for all budgets.
  """

  loss: str
  exits: int
  budget: float | None
  log_ratio: Estimate
  blocks: int


@dataclasses.dataclass(frozen=True)
class BlockRatio:
  """Log of a family's loss over its dense model's at equal FLOPs, in one block."""

  loss: str
  exits: int
  budget: float
  width: int
  depth: int
  heads: int
  log_ratio: float


@dataclasses.dataclass(frozen=True)
class Twin:
  """An exit beside the dense model of its exact shape, at equal FLOPs."""

  budget: float
  width: int
  depth: int
  heads: int
  exits: int
  exit: int
  layer: int
  loss_exit: float
  loss_twin: float
  log_ratio: float
  seeds: int
  seeds_twin: int


@dataclasses.dataclass(frozen=True)
class TwinGamma:
  """Slope through 0 of the twins' log ratio on log G.

  The interval is of the noise between seeds alone. All fields but `gamma` are
  None for the estimate over all shapes.
  """

  gamma: Estimate
  budget: float | None = None
  width: int | None = None
  depth: int | None = None
  heads: int | None = None


@dataclasses.dataclass(frozen=True)
class TwinDepth:
  """Mean log ratio of exits and twins by G and layer, over `shapes` shapes."""

  exits: int
  layer: int
  depth: int
  log_ratio: Estimate
  shapes: int


@dataclasses.dataclass(frozen=True)
class Minimum:
  """IsoFLOP minimum of one budget and G; see `laws.frontier.Minimum`.

  Attributes:
    loss: `final` or `mean`.
    budget: FLOPs.
    exits: G.
    n_opt: N at the minimum, or the best sampled one if not `interior`.
    minimum: loss there, nats per token.
    curvature: of log loss in log N.
    interior: whether the minimum lies inside the sampled sizes.
    flag: why not, or ''.
    points: number of runs.
    log_ratio: log of the minimum over the dense one, both interior; its interval
      is of the noise between seeds, which a parabola amplifies.
  """

  loss: str
  budget: float
  exits: int
  n_opt: float
  minimum: float
  curvature: float
  interior: bool
  flag: str
  points: int
  log_ratio: Estimate | None

  def curve(self, params: np.ndarray) -> np.ndarray:
    """Returns the parabola's loss at sizes N."""
    return self.minimum * np.exp(
      self.curvature * np.log(params / self.n_opt) ** 2
    )


def noise(runs: Sequence[Run]) -> Noise | None:
  """Returns the noise between seeds; None if no cell has two."""
  groups: dict[Any, list[Run]] = defaultdict(list)
  for run in _of_grid(runs):
    groups[run.shape, run.exit_layers].append(run)
  repeated = [group for group in groups.values() if len(group) > 1]
  if not repeated:
    return None

  def pooled(logs: Callable[[Run], Sequence[float]]) -> float:
    squares = count = 0.0
    for group in repeated:
      values = np.array([logs(run) for run in group])
      squares += float(np.sum((values - values.mean(0)) ** 2))
      count += values.size - values.shape[1]
    return math.sqrt(squares / count)

  return Noise(
    final=pooled(lambda run: [run.log_loss('final')]),
    mean=pooled(lambda run: [run.log_loss('mean')]),
    exit=pooled(lambda run: np.log(np.array(run.losses, np.float64)).tolist()),
    cells=len(repeated),
    seeds=max(map(len, repeated)),
    degrees=sum(len(group) - 1 for group in repeated),
  )


@dataclasses.dataclass(frozen=True)
class Paired:
  """Families beside the dense model of their block."""

  gamma: tuple[PairedGamma, ...]
  trend: tuple[Trend, ...]
  ratios: tuple[Ratio, ...]
  blocks: tuple[BlockRatio, ...]


def paired(
  runs: Sequence[Run], laws: Mapping[str, Mapping[str, float]]
) -> Paired:
  """Compares families with the dense model of their block.

  Args:
    runs: finished runs.
    laws: E, A, B, alpha, beta by loss. At equal FLOPs more heads mean fewer
      tokens: with a law losses are also compared at equal N and D.
  """
  gammas, trends, ratios, blocks = [], [], [], []
  for loss in LOSSES:
    for equal in ('flops', *(('tokens',) if loss in laws else ())):
      logs = _blocks(runs, loss, laws[loss] if equal == 'tokens' else None)
      slopes = {shape: _slope(by_g) for shape, by_g in logs.items()}
      gammas += [
        PairedGamma(loss, equal, budget, Estimate.of(values), len(values))
        for budget, values in _by_budget(slopes)
      ]
      if len({shape[0] for shape in slopes}) > 1 and len(slopes) > 2:
        budgets = np.log10([shape[0] for shape in slopes])
        trend = Estimate.slope(budgets, np.array(list(slopes.values())))
        trends.append(Trend(loss, equal, trend))
      if equal == 'flops':
        for g in sorted({g for by_g in logs.values() for g in by_g} - {1}):
          of_g = {k: by_g[g] - by_g[1] for k, by_g in logs.items() if g in by_g}
          ratios += [
            Ratio(loss, g, budget, Estimate.of(values), len(values))
            for budget, values in _by_budget(of_g)
          ]
          blocks += [
            BlockRatio(loss, g, *shape, value) for shape, value in of_g.items()
          ]
  return Paired(tuple(gammas), tuple(trends), tuple(ratios), tuple(blocks))


@dataclasses.dataclass(frozen=True)
class Twins:
  """Exits beside their dense twins; empty where no exit but the last has one."""

  exits: tuple[Twin, ...] = ()
  gamma: tuple[TwinGamma, ...] = ()
  depths: tuple[TwinDepth, ...] = ()


def twins(runs: Sequence[Run], spread: Noise | None) -> Twins:
  """Compares each exit with the dense model of its shape at equal FLOPs.

  Args:
    runs: finished runs.
    spread: noise between seeds, for the intervals: with few shapes nothing is
      known of other shapes.
  """
  dense: dict[Any, list[float]] = defaultdict(list)
  families: dict[Any, list[Run]] = defaultdict(list)
  for run in runs:
    if run.exits > 1 and run.arm in definitions.GRID:
      families[run.shape, run.exit_layers].append(run)
    elif run.exits == 1 and run.arm in definitions.arms_of('exit'):
      dense[_exit_shape(run.rows[-1])].append(run.log_loss('final'))
  rows: list[Twin] = []
  for group in families.values():
    own = []
    for exits in zip(*(run.rows for run in group), strict=True):
      row, key = exits[0], _exit_shape(exits[0])
      if key not in dense:
        continue
      log = float(np.mean([math.log(other['loss']) for other in exits]))
      twin = float(np.mean(dense[key]))
      own.append(
        study.record_of(
          Twin,
          row,
          loss_exit=math.exp(log),
          loss_twin=math.exp(twin),
          log_ratio=log - twin,
          seeds=len(exits),
          seeds_twin=len(dense[key]),
        )
      )
    # Otherwise only the last exit has a dense model of its shape.
    if any(row.exit < row.exits for row in own):
      rows += own
  if not rows:
    return Twins()
  shapes = sorted({_shape_of(row) for row in rows})
  depths = sorted({(row.exits, row.layer, row.depth) for row in rows})
  gammas = [TwinGamma(_penalty(rows, spread))]
  gammas += [
    TwinGamma(
      _penalty([row for row in rows if _shape_of(row) == shape], spread), *shape
    )
    for shape in shapes
  ]
  by_depth = []
  for depth in depths:
    here = [row for row in rows if (row.exits, row.layer, row.depth) == depth]
    mean = _weighted(here, np.full(len(here), 1 / len(here)), spread)
    by_depth.append(TwinDepth(*depth, mean, len(here)))
  return Twins(tuple(rows), tuple(gammas), tuple(by_depth))


def minima(runs: Sequence[Run], spread: Noise | None) -> Iterator[Minimum]:
  """Yields the IsoFLOP minimum of each loss, budget and G of the grid."""
  rng = np.random.default_rng(0)
  for loss in LOSSES:
    cells: dict[tuple[float, int], list[Run]] = defaultdict(list)
    for run in runs:
      if run.arm == 'grid':
        cells[run.budget, run.exits].append(run)
    lows, drawn = {}, {}
    for cell, group in sorted(cells.items()):
      sizes = [run.params_full for run in group]
      logs = np.array([run.log_loss(loss) for run in group])
      lows[cell] = frontier.minimum(sizes, np.exp(logs).tolist())
      if spread is not None and lows[cell].interior:
        deviation = getattr(spread, loss)
        draws = rng.normal(0, deviation, (_DRAWS, len(group)))
        drawn[cell] = np.array(
          [
            frontier.minimum(sizes, row).loss
            for row in np.exp(logs + draws).tolist()
          ]
        )
    for (budget, g), low in lows.items():
      dense, ratio = lows.get((budget, 1)), None
      if g > 1 and dense is not None and low.interior and dense.interior:
        lo = hi = None
        if spread is not None:
          logs = np.log(drawn[budget, g] / drawn[budget, 1])
          lo, hi = map(float, np.percentile(logs, [2.5, 97.5]))
        ratio = Estimate(math.log(low.loss / dense.loss), lo, hi)
      yield study.record_of(
        Minimum,
        low,
        loss=loss,
        budget=budget,
        exits=g,
        minimum=low.loss,
        log_ratio=ratio,
      )


def _of_grid(runs: Iterable[Run]) -> Iterator[Run]:
  return (run for run in runs if run.arm in definitions.GRID)


def _shape_of(row: Twin) -> Shape:
  return row.budget, row.width, row.depth, row.heads


def _exit_shape(row: Mapping[str, Any]) -> tuple[Any, ...]:
  """Returns the budget and shape by which an exit and its twin are matched."""
  return (row['budget'], *definitions.shape(row))


def _blocks(
  runs: Sequence[Run], loss: str, law: Mapping[str, float] | None
) -> dict[Shape, dict[int, float]]:
  """Returns mean log losses by block and G, relative to a law if one is given."""
  logs: dict[Shape, dict[int, list[float]]] = defaultdict(dict)
  for run in _of_grid(runs):
    value = run.log_loss(loss)
    if law is not None:
      size = law['A'] / run.params_full ** law['alpha']
      data = law['B'] / run.tokens ** law['beta']
      value -= math.log(law['E'] + size + data)
    logs[run.shape].setdefault(run.exits, []).append(value)
  return {
    shape: {g: float(np.mean(values)) for g, values in sorted(by_g.items())}
    for shape, by_g in sorted(logs.items())
    if 1 in by_g and len(by_g) > 1
  }


def _slope(by_g: Mapping[int, float]) -> float:
  return float(np.polyfit(np.log(list(by_g)), list(by_g.values()), 1)[0])


def _by_budget(
  values: Mapping[Shape, float],
) -> Iterator[tuple[float | None, list[float]]]:
  """Yields all values, and those of each budget where there are several."""
  if values:
    yield None, list(values.values())
  budgets = sorted({shape[0] for shape in values})
  for budget in budgets if len(budgets) > 1 else ():
    yield budget, [v for shape, v in values.items() if shape[0] == budget]


def _penalty(rows: Sequence[Twin], spread: Noise | None) -> Estimate:
  log_g = np.log([row.exits for row in rows])
  return _weighted(rows, log_g / (log_g @ log_g), spread)


def _weighted(
  rows: Sequence[Twin], weights: np.ndarray, spread: Noise | None
) -> Estimate:
  """Returns a weighted sum of log ratios with the noise between seeds.

  The exits of a run share its noise, and so do all exits that have one twin.
  """
  value = float(weights @ [row.log_ratio for row in rows])
  if spread is None:
    return Estimate(value)
  shares: dict[Any, tuple[float, int]] = {}
  for row, weight in zip(rows, weights, strict=True):
    for key, seeds in (
      (('family', _shape_of(row), row.exits), row.seeds),
      (('twin', _shape_of(row), row.layer), row.seeds_twin),
    ):
      shares[key] = (shares.get(key, (0.0, 0))[0] + weight, seeds)
  variance = sum(share**2 / seeds for share, seeds in shares.values())
  error = spread.exit * math.sqrt(variance)
  return Estimate.around(value, quantile(spread.degrees) * error)

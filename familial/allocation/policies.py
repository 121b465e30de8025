"""By what survivors are ranked: the policies of `familial allocate`."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from familial.allocation import config as config_lib
from familial.allocation import curves as curves_lib
from familial.allocation import ensemble
from familial.allocation import halving
from familial.allocation import lmc
from familial.allocation import optimal_design
from familial.allocation import surrogate
from familial.core import errors

POINTS = 20  # of a curve that a surrogate sees

# Those that need no future, the ensembles by the family of their curves.
SURROGATES: dict[str, surrogate.Surrogate] = {
  'sh_lmc': lmc.predict,
  **{
    f'sh_ensemble_{family}': ensemble.predictor(family)
    for family in ensemble.FAMILIES
  },
}
ORACLE = 'oracle'
LAW = 'law'
NAMES = ('uniform', 'sh', *SURROGATES, LAW, ORACLE)


def allocate(
  name: str,
  sources: Sequence[halving.Source],
  budget: float,
  eta: int,
  law: config_lib.Law,
  seed: int,
  decided: Sequence[halving.Round] = (),
  on_round: Callable[[list[halving.Round]], Any] = lambda rounds: None,
) -> list[halving.Allocation]:
  """Allocates a budget among each source's candidates by a policy.

  uniform: every candidate gets the same. sh: Successive Halving by the lowest loss
  seen so far. sh_lmc, sh_ensemble_*: by the lowest of that and what a surrogate
  predicts for the end of the last round. oracle: by what the loss will be there,
  which a replay alone knows. law: see `design`.

  Args:
    name: of NAMES.
    sources: as of `halving.run`.
    budget: likewise.
    eta: likewise; of `uniform` and `law` it is not used.
    law: that `law` is to know.
    seed: of the surrogates.
    decided: as of `halving.run`.
    on_round: likewise.

  Raises:
    UserError: if there is no such policy.
  """
  check(name)
  if name == LAW:
    return optimal_design.run(
      sources, [budget] * len(sources), law, decided, on_round
    )
  return halving.run(
    sources,
    budget,
    eta_of(name, len(sources[0].names), eta),
    rank_of(name, seed),
    decided,
    on_round,
  )


def rank_of(name: str, seed: int) -> halving.Rank:
  """Returns how a policy of Successive Halving ranks; `uniform` never does."""
  if name in ('uniform', 'sh'):
    return lambda survey: halving.Ranking(survey.seen_SxM)
  if name == ORACLE:
    return _future
  return functools.partial(_predicted, SURROGATES[name], seed)


def check(name: str) -> None:
  """Refuses a policy that there is not."""
  if name not in NAMES:
    raise errors.UserError(
      f'policy {name!r} is unknown{errors.nearest(name, NAMES)}; there are'
      f' {", ".join(NAMES)}'
    )


def eta_of(name: str, candidates: int, eta: int) -> int:
  """One in how many survives a round: of `uniform`, which has one round, all."""
  return candidates if name == 'uniform' else eta


def _future(survey: halving.Survey) -> halving.Ranking:
  """Ranks by the loss that each will have at the end of the last round."""
  score = [
    [
      float(source.future(int(i), flops))  # type: ignore[attr-defined]
      for i, flops in zip(alive, ends, strict=True)
    ]
    for source, alive, ends in zip(
      survey.sources, survey.alive_SxM, survey.end_SxM, strict=True
    )
  ]
  return halving.Ranking(np.array(score))


def _predicted(
  predict: surrogate.Surrogate, seed: int, survey: halving.Survey
) -> halving.Ranking:
  """Ranks by the lowest of what was seen and what is predicted.

  How far intervals reach is told by how the same surrogate, shown the first part
  of the same curves, would have predicted the rest of what is known.
  """
  now, before, last_SxM = observe(survey)
  key = jax.random.fold_in(jax.random.key(seed), survey.round)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(
    key, np.arange(len(survey.sources))
  )
  both = surrogate.Observed(*map(np.concatenate, zip(now, before, strict=True)))
  found = predict(both, jnp.concatenate([keys, keys]))
  halves = [np.split(x, 2) for x in found]
  told, trial = (
    surrogate.Prediction(*parts) for parts in zip(*halves, strict=True)
  )
  told = surrogate.calibrated(told, trial, last_SxM, now.active_SxM)
  mean, lo, hi = (np.where(now.active_SxM, x, np.nan) for x in told)
  return halving.Ranking(
    np.fmin(survey.seen_SxM, mean), surrogate.Prediction(mean, lo, hi)
  )


class View(NamedTuple):
  """A survey as surrogates see it: curves on one grid of compute.

  Attributes:
    now: all that is known, and the ends that are asked.
    before: its first part, asked for what is known by now: as much further in ln C,
      over the width seen, as `now` is asked in the median, but no more than again
      that width.
    last_SxM: the losses that are known by now.
  """

  now: surrogate.Observed
  before: surrogate.Observed
  last_SxM: np.ndarray


def observe(survey: halving.Survey) -> View:
  """Returns what surrogates are shown of a survey.

  Those of which they see less than a factor of two in compute are not predicted:
  they are ranked by the loss seen, against what others are predicted to reach.
  """
  first, end = (
    np.array([[f(curve) for curve in row] for row in survey.curves])
    for f in (lambda c: c.flops[0] if len(c.flops) else np.inf, lambda c: c.end)
  )
  diverged = np.array([[c.diverged for c in row] for row in survey.curves])
  active = ~diverged & (end > 2 * first) & (survey.end_SxM > end)
  # The curves that begin last and end first bound what all have in common.
  start = np.where(active, first, 0).max(axis=1, initial=0.0)
  stop = np.where(active, end, np.inf).min(axis=1)
  active &= (start < stop)[:, None]
  empty = ~active.any(axis=1)
  start = np.log(np.where(empty, 1.0, start))
  stop = np.log(np.where(empty, np.e, stop))
  asked = np.maximum(np.log(np.maximum(survey.end_SxM, 1.0)), stop[:, None])
  features = np.stack(
    [
      _standardised(source.features)[alive]
      for source, alive in zip(survey.sources, survey.alive_SxM, strict=True)
    ]
  )

  def seen(stop: np.ndarray, asked: np.ndarray) -> surrogate.Observed:
    log_c = np.linspace(start, stop, POINTS, axis=1)
    return surrogate.Observed(
      log_c, _losses(survey.curves, active, log_c), active, features, asked
    )

  now = seen(stop, asked)
  beyond = np.where(active, asked - stop[:, None], np.nan)
  beyond[empty] = 0.0
  width = stop - start
  share = np.minimum(np.nanmedian(beyond, axis=1) / width, 1.0)
  ends = np.repeat(stop[:, None], asked.shape[1], axis=1)
  before = seen(stop - width * share / (1 + share), ends)
  return View(now, before, now.loss_SxMxT[:, :, -1])


def _losses(
  curves: Sequence[Sequence[curves_lib.Curve]],
  active: np.ndarray,
  log_c: np.ndarray,
) -> np.ndarray:
  """Losses of each allocation's curves on its grid, [S, M, T]."""
  return np.array(
    [
      [
        curve.at_log(grid) if known else np.ones(POINTS)
        for curve, known in zip(row, knowns, strict=True)
      ]
      for grid, row, knowns in zip(log_c, curves, active, strict=True)
    ]
  )


def _standardised(features: Sequence[Mapping[str, float]]) -> np.ndarray:
  """Features of all candidates [M, F]: logs where that is possible."""
  names = [n for n in features[0] if all(n in each for each in features)]
  values = np.array([[each[n] for n in names] for each in features])
  values = values.reshape(len(features), len(names))
  positive = (values > 0).all(axis=0)
  values = np.where(positive, np.log(np.where(positive, values, 1.0)), values)
  spread = values.std(axis=0)
  return (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)

"""Predictions of fitted laws: the loss at columns, or the optimum at a budget.

A confidence interval holds the law's mean, a prediction interval the loss of one
run. Several laws are averaged with the weight 1 / rms^2 of their log error on rows
that were not fitted; the draws of their intervals are mixed in these shares.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses

import numpy as np

from familial.core import errors
from familial.core import estimate
from familial.laws import bootstrap
from familial.laws import fit_record
from familial.laws import frontier
from familial.laws import parametric
from familial.laws import prediction

_SERVED = 2  # FLOPs a parameter to process a token, without its gradients


@dataclasses.dataclass(frozen=True)
class Forecast:
  """What a law, or several, say of one point.

  Attributes:
    form: the law; several are joined by a +.
    columns: the point, by the table's long names.
    loss: with the confidence interval of the law's mean.
    run: the same loss with the prediction interval of one run.
    flops: of training and serving where the point is an optimum, else None.
    params: the optimal N there, with its interval.
    tokens: the optimal D there, with its interval.
    weights: of the laws, by form; {} for one law.
  """

  form: str
  columns: dict[str, float]
  loss: estimate.Estimate
  run: estimate.Estimate
  flops: float | None = None
  params: estimate.Estimate | None = None
  tokens: estimate.Estimate | None = None
  weights: dict[str, float] = dataclasses.field(default_factory=dict)


def at_columns(
  laws: Sequence[fit_record.Law], columns: Mapping[str, float]
) -> list[Forecast]:
  """Returns the prediction of each law, and of several their weighted mean.

  Args:
    laws: at least one.
    columns: the point, by short or long names.

  Raises:
    UserError: if a column is missing, a number is out of bounds, or one of
      several laws has no held-out rows.
  """
  _check(columns)
  forecasts = [_forecast([law], columns, [1.0]) for law in laws]
  if len(laws) > 1:
    weights = _weights(laws)
    mean = _forecast(laws, columns, list(weights.values()))
    forecasts.append(dataclasses.replace(mean, weights=weights))
  return forecasts


def at_flops(
  law: fit_record.Law,
  flops: float,
  columns: Mapping[str, float],
  serve_tokens: float = 0.0,
) -> Forecast:
  """Returns the compute-optimal point of a law at a budget, and its loss there.

  Training and serving cost `flops` together, C = 6 N D + 2 N D_served (Sardana et
  al. 2023, arXiv:2401.00448, section 2), with the fit's own count of FLOPs a token
  in place of 6 N where its table has one.

  Args:
    law: of columns N and D, and others.
    flops: the budget.
    columns: values of the law's other columns, by short or long names.
    serve_tokens: tokens that the model will process after training.

  Raises:
    UserError: if the law has no N and D, another column is missing, or there is
      no optimum at the budget.
  """
  form = law.form
  if not {'N', 'D'} <= set(form.columns):
    raise errors.UserError(
      f'form {form.name!r} has no optimum at flops={flops:g}: it predicts from'
      f' {", ".join(form.columns)}, not from N and D'
    )
  _check({**columns, 'flops': flops, 'serve_tokens': serve_tokens or 1.0})
  given = form.columns_of({**columns, 'N': 1.0, 'D': 1.0})
  others = {n: float(v) for n, v in given.items() if n not in ('N', 'D')}
  theta = form.theta(law.params)[None]
  if law.samples is not None and law.record.spans('N', 'D'):
    theta = np.concatenate([theta, form.coordinates_of(law.samples)])
  best = frontier.optimum(
    form, theta, [flops], _cost(law, others), others,
    served=_SERVED * serve_tokens,
  )  # fmt: skip
  if not best.interior[0, 0]:
    raise errors.UserError(
      f'form {form.name!r} has no optimum at flops={flops:g}: its loss has no'
      ' minimum over N there'
    )
  params, tokens = (
    estimate.Estimate(spread.value, spread.lo, spread.hi)
    for values in (best.params[:, 0], best.tokens[:, 0])
    for spread in [
      bootstrap.interval(float(values[0]), values[1:], law.record.level)
    ]
  )
  point = {'N': params.value, 'D': tokens.value, **others}
  return dataclasses.replace(
    _forecast([law], point, [1.0]), flops=flops, params=params, tokens=tokens
  )


def _cost(
  law: fit_record.Law, others: Mapping[str, float]
) -> frontier.TokenCost:
  approaches = law.record.approaches
  label = f'G = {others.get("G", 1.0):g}'
  if approaches is None or label not in approaches.costs:
    return frontier.TokenCost()
  return frontier.TokenCost(*approaches.costs[label])


def _check(columns: Mapping[str, float]) -> None:
  for name, value in columns.items():
    if not 0 < value < np.inf:
      raise errors.UserError(
        f'at {name}={value:g}: a positive number is needed'
      )


def _weights(laws: Sequence[fit_record.Law]) -> dict[str, float]:
  weights = {}
  for law in laws:
    held = law.record.held_out
    if held is None or not held.rms:
      raise errors.UserError(
        f'an average of laws is weighted by held-out rows, and the fit of'
        f' {law.form.name!r} has none (fit --hold_out)'
      )
    if law.form.name in weights:
      raise errors.UserError(
        f'two fits of form {law.form.name!r}: an average is of different laws'
      )
    weights[law.form.name] = 1 / held.rms**2
  total = sum(weights.values())
  return {name: weight / total for name, weight in weights.items()}


def _forecast(
  laws: Sequence[fit_record.Law],
  columns: Mapping[str, float],
  weights: Sequence[float],
) -> Forecast:
  value = float(
    np.exp(
      sum(
        weight * np.log(law.predict(columns))
        for law, weight in zip(laws, weights, strict=True)
      )
    )
  )
  ends = {
    kind: estimate.Estimate(value, *_ends(laws, columns, weights, kind))
    for kind in prediction.KINDS
  }
  names = dict.fromkeys(n for law in laws for n in law.form.columns)
  point = {
    parametric.LONG_NAMES.get(name, name): float(columns[key])
    for name in names
    for key in (name, parametric.LONG_NAMES.get(name, name))
    if key in columns
  }
  form = ' + '.join(law.form.name for law in laws)
  return Forecast(form, point, ends['mean'], ends['run'])


def _ends(
  laws: Sequence[fit_record.Law],
  columns: Mapping[str, float],
  weights: Sequence[float],
  kind: str,
) -> tuple[float | None, float | None]:
  """Both ends of the interval of one law, or of the mixture of several."""
  if any(law.samples is None for law in laws):
    return None, None
  if len(laws) == 1:
    lo, hi = laws[0].predict_interval(columns, kind)
    return (
      (float(lo), float(hi)) if np.isfinite([lo, hi]).all() else (None, None)
    )
  draws = [law.draws(columns, kind) for law in laws]
  if not all(len(values) for values in draws):
    return None, None
  values = np.concatenate(draws)
  shares = np.concatenate(
    [
      np.full(len(v), weight / len(v))
      for v, weight in zip(draws, weights, strict=True)
    ]
  )
  order = np.argsort(values)
  below = np.cumsum(shares[order]) - shares[order] / 2
  tail = max(
    prediction.tail(law.record.degrees, law.record.level) for law in laws
  )
  lo, hi = np.interp([tail, 1 - tail], below, values[order])
  return float(np.exp(lo)), float(np.exp(hi))

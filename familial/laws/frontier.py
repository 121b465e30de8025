"""The best size at a budget: of an IsoFLOP curve, and of a law.

Symbols as in the literature: N parameters, D tokens, C FLOPs.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from familial.laws import forms

_STEP = 0.05  # of log C, for the exponent of the optima

TOO_FEW = 'fewer than three sizes'
NOT_CONVEX = 'the curve does not bend upwards'
AT_EDGE = 'the minimum lies outside the sampled sizes'


@dataclasses.dataclass(frozen=True)
class Minimum:
  """The minimum of log loss as a parabola in log N.

  Attributes:
    n_opt: the vertex; the best sampled size where `interior` is false.
    loss: in nats, at `n_opt`.
    interior: a vertex between the smallest and the largest sampled size was
      found; otherwise the parabola says nothing and must not be drawn.
    points: how many losses it rests on.
    curvature: log loss = log(`loss`) + curvature * log(N / n_opt)^2; 0 where
      not `interior`.
    flag: why it is not interior, or ''.
  """

  n_opt: float
  loss: float
  interior: bool
  points: int
  curvature: float = 0.0
  flag: str = ''

  def curve(self, params: np.ndarray) -> np.ndarray:
    """Returns the parabola's loss, in nats, at sizes N."""
    return self.loss * np.exp(self.curvature * np.log(params / self.n_opt) ** 2)


def minimum(params: Sequence[float], losses: Sequence[float]) -> Minimum:
  """Returns the IsoFLOP minimum of one budget and granularity.

  The second approach of Hoffmann et al. (2022), in log loss, where noise is
  even.

  Args:
    params: N of each run, at least one.
    losses: in nats, positive, of the same length.
  """
  sizes = np.asarray(params, np.float64)
  values = np.asarray(losses, np.float64)
  if len(np.unique(sizes)) < 3:
    return _flagged(sizes, values, TOO_FEW)
  # Centred and scaled, so that the normal equations stay well conditioned.
  log_sizes = np.log(sizes)
  centre, scale = log_sizes.mean(), np.ptp(log_sizes)
  bend, slope, level = np.polyfit(
    (log_sizes - centre) / scale, np.log(values), 2
  )
  # Rounding alone bends a straight line by about 1e-16 of its height.
  if bend <= 1e-12 * max(1.0, abs(slope)):
    return _flagged(sizes, values, NOT_CONVEX)
  vertex = -slope / (2 * bend)
  log_n = centre + scale * vertex
  if not log_sizes.min() < log_n < log_sizes.max():
    return _flagged(sizes, values, AT_EDGE)
  return Minimum(
    n_opt=math.exp(log_n),
    loss=math.exp(level - bend * vertex**2),
    interior=True,
    points=len(sizes),
    curvature=float(bend / scale**2),
  )


def _flagged(sizes: np.ndarray, values: np.ndarray, flag: str) -> Minimum:
  best = int(np.argmin(values))
  return Minimum(
    n_opt=float(sizes[best]),
    loss=float(values[best]),
    interior=False,
    points=len(sizes),
    flag=flag,
  )


@dataclasses.dataclass(frozen=True)
class Optimum:
  """Compute-optimal models of s laws at c budgets; each array is [s, c].

  Attributes:
    params: N that minimises the loss at C = D * FLOPs a token.
    tokens: D.
    loss: in nats.
    exponent: d log N / d log C along the optima.
    interior: False where the loss has no minimum between one parameter and one
      token; the other arrays hold NaN there.
  """

  params: np.ndarray
  tokens: np.ndarray
  loss: np.ndarray
  exponent: np.ndarray
  interior: np.ndarray


def optimum(
  form: forms.Form,
  theta: np.ndarray,
  compute: Sequence[float],
  flops_per_token: Callable[[Any], Any] = lambda N: 6 * N,
  columns: Mapping[str, float] | None = None,
) -> Optimum:
  """Minimises a law along each budget: d log L / d log N = 0 by bisection.

  The third approach of Hoffmann et al. (2022) for any form and any count of
  FLOPs; for E + A/N^alpha + B/D^beta and 6 N it is their closed form.

  Args:
    form: with columns N and D.
    theta: coordinates [s, parameters].
    compute: FLOPs of each budget.
    flops_per_token: as a function of N, in jax.numpy.
    columns: values of the form's other columns.
  """
  others = dict(columns or {})

  def slope(theta: jax.Array, log_n: jax.Array, log_c: jax.Array) -> jax.Array:
    return jax.grad(_log_loss, argnums=1)(theta, log_n, log_c)

  def _log_loss(
    theta: jax.Array, log_n: jax.Array, log_c: jax.Array
  ) -> jax.Array:
    n = jnp.exp(log_n)
    values: dict[str, Any] = {
      'N': n, 'D': jnp.exp(log_c) / flops_per_token(n), **others
    }  # fmt: skip
    p = {name: theta[i] for i, name in enumerate(form.coordinates)}
    return form.log_loss(p, values)

  def bisect(theta: jax.Array, log_c: jax.Array) -> tuple[jax.Array, jax.Array]:
    low, high = jnp.zeros(()), log_c

    def halve(_: int, ends: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
      middle = (ends[0] + ends[1]) / 2
      falls = slope(theta, middle, log_c) < 0
      return jnp.where(falls, middle, ends[0]), jnp.where(
        falls, ends[1], middle
      )

    low, high = jax.lax.fori_loop(0, 60, halve, (low, high))
    turns = (slope(theta, low - 1e-3, log_c) < 0) & (
      slope(theta, high + 1e-3, log_c) > 0
    )
    return (low + high) / 2, turns

  def both(theta: jax.Array, log_c: jax.Array) -> tuple[jax.Array, ...]:
    log_n, turns = bisect(theta, log_c)
    above, _ = bisect(theta, log_c + _STEP)
    below, _ = bisect(theta, log_c - _STEP)
    return (
      log_n,
      (above - below) / (2 * _STEP),
      turns,
      _log_loss(theta, log_n, log_c),
    )

  over = jax.vmap(jax.vmap(both, in_axes=(None, 0)), in_axes=(0, None))
  with jax.enable_x64(True):
    costs = np.asarray(compute, np.float64)
    log_n, exponent, turns, log_loss = map(
      np.asarray, jax.jit(over)(np.asarray(theta, float), np.log(costs))
    )
    params = np.exp(np.where(turns, log_n, np.nan))
    tokens = costs / np.asarray(flops_per_token(params))
  return Optimum(
    params=params,
    tokens=tokens,
    loss=np.exp(np.where(turns, log_loss, np.nan)),
    exponent=np.where(turns, exponent, np.nan),
    interior=turns,
  )


def flops_of(
  params: np.ndarray, flops_per_token: np.ndarray
) -> Callable[[Any], Any]:
  """FLOPs a token as a function of N, through what runs of a study cost.

  Log-log linear between sizes and, by the ends' slopes, beyond them.

  Args:
    params: N of the runs [rows], at least two sizes.
    flops_per_token: of the runs [rows].
  """
  sizes, first = np.unique(params, return_index=True)
  x, y = np.log(sizes), np.log(flops_per_token[first])

  def flops(n: Any) -> Any:
    log_n = jnp.log(n)
    i = jnp.clip(jnp.searchsorted(x, log_n) - 1, 0, len(x) - 2)
    slope = jnp.asarray(np.diff(y) / np.diff(x))[i]
    return jnp.exp(jnp.asarray(y)[i] + slope * (log_n - jnp.asarray(x)[i]))

  return flops

"""Compute-optimal model size at a budget, of an IsoFLOP curve and of a law.

Symbols as in the literature: N parameters, D tokens, C FLOPs.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from familial.laws import parametric
from familial.laws import row_kernel
from familial.laws import table as tables

_FAMILIES = 6  # values of G
_OFF = 0.01  # C / (6 N D) - 1 at which a table has its own count of FLOPs
_MARGIN = 1e3  # of N and D below a table's least
_STEP = 0.05  # of log C, for the exponent of the optima
_MOST_SERVED = 1 - 1e-6  # share of a budget that serving may take

TOO_FEW = 'fewer than three sizes'
NOT_CONVEX = 'the curve does not bend upwards'
AT_EDGE = 'the minimum lies outside the sampled sizes'


@dataclasses.dataclass(frozen=True)
class Minimum:
  """The minimum of log loss as a parabola in log N.

  Attributes:
    n_opt: the vertex; the best sampled size where `interior` is false.
    loss: in nats, at `n_opt`.
    interior: whether the vertex lies between the smallest and the largest
      sampled size; otherwise the parabola must not be drawn.
    points: number of losses.
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
  best = int(np.argmin(values))

  def flagged(why: str) -> Minimum:
    return Minimum(
      float(sizes[best]), float(values[best]), False, len(sizes), flag=why
    )

  if len(np.unique(sizes)) < 3:
    return flagged(TOO_FEW)
  # Centred and scaled, so that the normal equations stay well conditioned.
  log_sizes = np.log(sizes)
  centre, scale = log_sizes.mean(), np.ptp(log_sizes)
  bend, slope, level = np.polyfit(
    (log_sizes - centre) / scale, np.log(values), 2
  )
  # Rounding alone bends a straight line by about 1e-16 of its height.
  if bend <= 1e-12 * max(1.0, abs(slope)):
    return flagged(NOT_CONVEX)
  vertex = -slope / (2 * bend)
  log_n = centre + scale * vertex
  if not log_sizes.min() < log_n < log_sizes.max():
    return flagged(AT_EDGE)
  return Minimum(
    n_opt=math.exp(log_n),
    loss=math.exp(level - bend * vertex**2),
    interior=True,
    points=len(sizes),
    curvature=float(bend / scale**2),
  )


@dataclasses.dataclass(frozen=True)
class Optimum:
  """Compute-optimal models of s laws at c budgets; each array is [s, c].

  Attributes:
    params: N that minimises the loss at C = D * FLOPs a token.
    tokens: D.
    loss: in nats.
    exponent: d log N / d log C along the optima.
    token_exponent: d log D / d log C.
    interior: False where the loss has no minimum between the least N and the
      least D; the other arrays hold NaN there.
  """

  params: np.ndarray
  tokens: np.ndarray
  loss: np.ndarray
  exponent: np.ndarray
  token_exponent: np.ndarray
  interior: np.ndarray


class TokenCost(NamedTuple):
  """Training FLOPs a token of a model of size N: 6 N (linear + root / sqrt N).

  The second part is that of attention and heads: at one depth their cost grows
  as the width, N as its square. Unlike linear interpolation between sizes it is
  smooth, and so are the optima.
  """

  linear: Any = 1.0
  root: Any = 0.0

  def __call__(self, params: Any) -> Any:
    """FLOPs at N."""
    return 6 * params * (self.linear + self.root * params**-0.5)

  def params_at(self, flops: Any) -> Any:
    """N at which a token costs these FLOPs, a quadratic equation in sqrt N."""
    size = flops / 6
    root = self.root + (self.root**2 + 4 * self.linear * size) ** 0.5
    return (2 * size / root) ** 2


def optimum(
  form: parametric.Form,
  theta: np.ndarray,
  compute: Sequence[float],
  cost: TokenCost = TokenCost(),
  columns: Mapping[str, float] | None = None,
  least: tuple[float, float] = (1.0, 1.0),
  served: float = 0.0,
) -> Optimum:
  """Minimises a law along each budget: d log L / d log N = 0 by bisection.

  The third approach of Hoffmann et al. (2022) for any form and any count of
  FLOPs; for E + A/N^alpha + B/D^beta and 6 N it is their closed form.

  Args:
    form: with columns N and D.
    theta: coordinates [s, parameters].
    compute: FLOPs of each budget.
    cost: FLOPs a token.
    columns: values of the form's other columns.
    least: smallest N and D that count; see `least_of`.
    served: FLOPs a parameter after training, which the budget pays too.
  """
  budgets = np.asarray(compute, np.float64)
  with jax.enable_x64(True):
    arrays = _optima(
      form.vector,
      row_kernel.pad_points(theta),
      np.log(budgets),
      TokenCost(*map(float, cost)),
      {name: float(value) for name, value in (columns or {}).items()},
      np.log(least),
      float(served),
    )
  log_n, exponent, token_exponent, turns, log_loss = (
    np.asarray(values)[: len(theta)] for values in arrays
  )
  log_n, exponent, token_exponent, log_loss = np.where(
    turns, [log_n, exponent, token_exponent, log_loss], np.nan
  )
  params, loss = np.exp(log_n), np.exp(log_loss)
  tokens = (budgets - served * params) / cost(params)
  return Optimum(params, tokens, loss, exponent, token_exponent, turns)


@functools.partial(jax.jit, static_argnums=0)
def _optima(
  form: parametric.VectorForm,
  theta: jax.Array,
  log_c: jax.Array,
  cost: TokenCost,
  columns: dict[str, jax.Array],
  log_least: jax.Array,
  served: jax.Array,
) -> tuple[jax.Array, ...]:
  """Log N, both exponents, whether the loss turns there, log L; each [s, c]."""

  def along(theta: jax.Array, log_n: jax.Array, log_c: jax.Array) -> jax.Array:
    n = jnp.exp(log_n)
    values = {'N': n, 'D': (jnp.exp(log_c) - served * n) / cost(n), **columns}
    # A law takes columns of rows: it may index them.
    rows = {name: jnp.reshape(value, 1) for name, value in values.items()}
    return form.on(rows)(theta)[0]

  slope = jax.grad(along, argnums=1)

  def best(theta: jax.Array, log_c: jax.Array) -> tuple[jax.Array, jax.Array]:
    def halve(_: int, ends: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
      low, high = ends
      middle = (low + high) / 2
      falls = slope(theta, middle, log_c) < 0
      return jnp.where(falls, middle, low), jnp.where(falls, high, middle)

    most = cost.params_at(jnp.exp(log_c - log_least[1]))
    most = jnp.minimum(most, _MOST_SERVED * jnp.exp(log_c) / served)
    ends = (log_least[0], jnp.log(most))
    low, high = jax.lax.fori_loop(0, 60, halve, ends)
    falls_before = slope(theta, low - 1e-3, log_c) < 0
    rises_after = slope(theta, high + 1e-3, log_c) > 0
    return (low + high) / 2, falls_before & rises_after

  def one(theta: jax.Array, log_c: jax.Array) -> tuple[jax.Array, ...]:
    costs = log_c + _STEP * jnp.array([-1.0, 0.0, 1.0])
    log_n, turns = jax.vmap(best, in_axes=(None, 0))(theta, costs)
    n = jnp.exp(log_n)
    log_d = jnp.log((jnp.exp(costs) - served * n) / cost(n))
    return (
      log_n[1],
      (log_n[2] - log_n[0]) / (2 * _STEP),
      (log_d[2] - log_d[0]) / (2 * _STEP),
      turns[1],
      along(theta, log_n[1], log_c),
    )

  over_compute = jax.vmap(one, in_axes=(None, 0))
  return jax.vmap(over_compute, in_axes=(0, None))(theta, log_c)


def least_of(table: tables.Table) -> tuple[float, float]:
  """Returns the smallest N and D at which a minimum of the loss counts.

  One parameter and one token, or a thousandth of the table's least where its
  unit makes them smaller than that.
  """
  columns = table.columns
  return (
    min(1.0, float(columns['N'].min()) / _MARGIN),
    min(1.0, float(columns['D'].min()) / _MARGIN),
  )


def granularities(
  form: parametric.Form, table: tables.Table
) -> Iterator[tuple[str, float, dict[str, float], np.ndarray]]:
  """Each G's label, G, the form's other columns, and its rows' indices.

  At most _FAMILIES values of G. The branch law is evaluated at the last exit
  (none downstream, all others upstream). A form without G has one entry, of
  dense models where a table counts FLOPs a token.
  """
  columns, ones = table.columns, np.ones(table.rows)
  of_g = 'G' in form.columns or 'upstream' in form.columns
  exits = np.unique(columns.get('G', ones)) if of_g else np.ones(1)
  if len(exits) > _FAMILIES:
    exits = exits[np.linspace(0, len(exits) - 1, _FAMILIES).astype(int)]
  for g in map(float, exits):
    known = {'G': g, 'upstream': g - 1, 'downstream': 0.0}
    others = {n: known[n] for n in form.columns if n in known}
    if set(form.columns) - {'N', 'D', *others}:
      return
    rows = np.all([columns[n] == v for n, v in others.items()] or [ones], 0)
    if of_g or 'flops_per_token' in columns:
      rows = rows & (columns.get('G', ones) == g)
    if rows.any():
      yield f'G = {g:g}', g, others, np.flatnonzero(rows)


def cost_of(table: tables.Table, rows: np.ndarray) -> TokenCost:
  """Returns FLOPs per token as a function of N: 6 N, or fitted to the rows' FLOPs.

  Args:
    table: its flops_per_token, else C / D, is what a token costs.
    rows: indices of the rows of one granularity.
  """
  columns = {name: values[rows] for name, values in table.columns.items()}
  params, per_token = columns['N'], columns.get('flops_per_token')
  if per_token is None and 'C' in columns:
    per_token = columns['C'] / columns['D']
  if per_token is None:
    return TokenCost()
  factor = per_token / (6 * params)
  if np.median(np.abs(factor - 1)) < _OFF:
    return TokenCost()
  terms = np.stack([np.ones(len(params)), params**-0.5], axis=1)
  share, _ = optimize.nnls(terms / factor[:, None], np.ones(len(params)))
  return TokenCost(*map(float, share))

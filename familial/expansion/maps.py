"""Which old unit each unit of a grown model is taken from.

Shapes: D width, H query heads, K key/value heads, F MLP width, N layers; a
suffix of an old index's array is the new axis.

Where D' does not divide by D, floor(D' / D) copies of the residual stream leave
some entries over, which hold nothing at first. RMSNorm then averages over more,
which eta = sqrt(floor(D' / D) D / D') takes back: gains become eta gain, an
exit's gain / eta, for the model's logit scale base_width / D does the rest, and
`norm_eps` must be eta^2 that of the parent.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

import numpy as np

from familial.core import errors
from familial.expansion import config as growth_config
from familial.model import config as model_config

ModelConfig = model_config.ModelConfig
# What a growth may change of a model.
GROWN = (
  'width',
  'depth',
  'heads',
  'kv_heads',
  'mlp_width',
  'exits',
  'norm_eps',
)
OF_EXITS = ('exit_kind', 'branch_unembedding')


@dataclasses.dataclass(frozen=True, eq=False)
class Axis:
  """A grown axis.

  Attributes:
    source_N: the old index of each new entry; 0 for one that is fresh.
    fresh_N: whether it is no copy of an old one.
  """

  source_N: np.ndarray
  fresh_N: np.ndarray

  @functools.cached_property
  def copy_N(self) -> np.ndarray:
    """Which copy of its source an entry is: 0, 1, .."""
    seen: dict[int, int] = {}
    found = np.zeros_like(self.source_N)
    for new in np.flatnonzero(~self.fresh_N):
      old = int(self.source_N[new])
      found[new] = seen.get(old, 0)
      seen[old] = found[new] + 1
    return found

  @functools.cached_property
  def copies_N(self) -> np.ndarray:
    """How many copies an entry's source has; 1 for a fresh one."""
    counts = np.bincount(self.source_N[~self.fresh_N])
    return np.where(self.fresh_N, 1, counts[self.source_N])

  def shares_N(self, split: str) -> np.ndarray:
    """Returns what an entry is of its source to whoever reads it; they sum to 1
    over the copies."""
    if split != 'uneven':
      return 1 / self.copies_N
    return 2 * (self.copy_N + 1) / (self.copies_N * (self.copies_N + 1))

  def spread(self, size: int) -> 'Axis':
    """Returns the axis of all entries of units of some size each."""
    within = np.arange(size)
    source = self.source_N[:, None] * size + within
    return Axis(source.ravel(), np.repeat(self.fresh_N, size))


@dataclasses.dataclass(frozen=True, eq=False)
class Growth:
  """A growth, as what becomes of every axis.

  Attributes:
    config: what was asked.
    was: the parent.
    now: the grown model.
    width: D.
    heads: H.
    kv_heads: K.
    mlp: F.
    layers: the trunk's layers.
    silent_N: whether a new layer writes nothing at first.
  """

  config: growth_config.GrowthConfig
  was: ModelConfig
  now: ModelConfig
  width: Axis
  heads: Axis
  kv_heads: Axis
  mlp: Axis
  layers: Axis
  silent_N: np.ndarray

  @property
  def eta(self) -> float:
    """The ratio of a state's root mean square after to that before."""
    return _eta(self.was.width, self.now.width)

  def exit_source(self, exit_: int) -> int:
    """Returns the parent's exit that a new exit 1..G' is made from: that of the
    layers it comes after, or the next deeper one."""
    reached = max(self._live(exit_), default=-1) + 1
    return next(
      place
      for place, layer in enumerate(self.was.exits, start=1)
      if layer >= reached
    )

  def exact_exits(self) -> dict[int, int]:
    """Returns {new exit: old exit} where they are the same function."""
    if self.inexact_width():
      return {}
    found = {}
    for exit_ in range(1, self.now.granularity + 1):
      live = self._live(exit_)
      if live == list(range(len(live))) and len(live) in self.was.exits:
        found[exit_] = self.was.exits.index(len(live)) + 1
    return found

  def inexact_width(self) -> str:
    """Returns why the width's growth is not exact, and what would be; or ''."""
    if self.config.width == 'aki':
      return "growth.width: 'aki' is not exact; 'replicate' is"
    was, now = self.was, self.now
    due = norm_eps(was, now.width)
    if not math.isclose(now.norm_eps, due, rel_tol=1e-6):
      lower = now.width // was.width
      return (
        f'model.norm_eps: {now.norm_eps:g} is not {due!r}, which is exact at '
        f'model.width {now.width} (with {was.norm_eps:g} the nearest widths are '
        f'{lower * was.width} with {lower * was.heads} heads and '
        f'{(lower + 1) * was.width} with {(lower + 1) * was.heads})'
      )
    return ''

  def inexact(self) -> str:
    """Returns why the last exit is not the parent's, and what would be; or ''."""
    if why := self.inexact_width():
      return why
    if self.exact_exits().get(self.now.granularity) != self.was.granularity:
      return (
        f'growth.depth: {self.config.depth!r} is not exact from depth '
        f"{self.was.depth} to {self.now.depth}; 'identity' is, or model.depth "
        f'{self.was.depth}'
      )
    return ''

  def _live(self, exit_: int) -> list[int]:
    """Returns the old numbers of the layers below an exit that write."""
    until = self.now.exits[exit_ - 1]
    live = ~self.silent_N[:until]
    return [int(old) for old in self.layers.source_N[:until][live]]


def plan(
  config: growth_config.GrowthConfig, was: ModelConfig, now: ModelConfig
) -> Growth:
  """Returns how one model grows into another.

  Raises:
    UserError: if it cannot, or not exactly where that is asked; with the nearest
      size that it can grow to.
  """
  _check(config, was, now)
  heads, kv_heads = _heads(was, now)
  copies = now.width // was.width
  fresh = np.arange(now.width) >= copies * was.width
  source = np.where(fresh, 0, np.arange(now.width) % was.width)
  layers, silent_N = _layers(config.depth, was.depth, now.depth)
  growth = Growth(
    config=config,
    was=was,
    now=now,
    width=Axis(source, fresh),
    heads=heads,
    kv_heads=kv_heads,
    mlp=_copies(np.arange(now.mlp_width) % was.mlp_width),
    layers=layers,
    silent_N=silent_N,
  )
  if config.exact and (why := growth.inexact()):
    raise errors.UserError(why)
  return growth


def norm_eps(was: ModelConfig, width: int) -> float:
  """Returns the `norm_eps` with which a growth to a width is exact."""
  return _eta(was.width, width) ** 2 * was.norm_eps


def parent_shape(was: ModelConfig) -> dict[str, Any]:
  """Returns what a model grown from this one may have otherwise."""
  keys = list(GROWN)
  if was.granularity == 1:  # A dense one has no exits of a kind.
    keys += OF_EXITS
  return {key: getattr(was, key) for key in keys}


def _eta(was: int, now: int) -> float:
  return math.sqrt(now // was * was / now)


def _check(
  config: growth_config.GrowthConfig, was: ModelConfig, now: ModelConfig
) -> None:
  """Refuses sizes that no growth leads to."""
  for key, by in (
    ('width', config.width),
    ('heads', config.width),
    ('kv_heads', config.width),
    ('mlp_width', config.width),
    ('depth', config.depth),
  ):
    old, new = getattr(was, key), getattr(now, key)
    if new < old:
      raise errors.UserError(
        f"model.{key}: {new} is less than the parent's; the nearest possible "
        f'is {old}'
      )
    if new != old and not by:
      axis = 'depth' if key == 'depth' else 'width'
      raise errors.UserError(
        f"model.{key}: {new} is not the parent's {old}, and growth.{axis} is ''"
      )
  if now.head_dim != was.head_dim:
    lower = now.width // was.head_dim
    nearest = (
      f'{lower} heads'
      if now.width % was.head_dim == 0
      else f'width {lower * was.head_dim} with {lower} heads or '
      f'{(lower + 1) * was.head_dim} with {lower + 1}'
    )
    raise errors.UserError(
      f'model.heads: {now.heads} of width {now.width} makes heads of '
      f"{now.head_dim}, and the parent's have {was.head_dim}, which their "
      f'rotations depend on; the nearest possible is {nearest}'
    )


def _copies(source: Sequence[int] | np.ndarray) -> Axis:
  source = np.asarray(source)
  return Axis(source, np.zeros(len(source), bool))


def _heads(was: ModelConfig, now: ModelConfig) -> tuple[Axis, Axis]:
  """Returns the query heads' axis and that of keys and values.

  Keys and values repeat as a whole, and the copies of one share out the query
  heads of its group in turn: each new query head then attends with the keys of
  its old one, whichever of the two numbers grew.
  """
  old, new = was.heads // was.kv_heads, now.heads // now.kv_heads
  if now.kv_heads // was.kv_heads * new < old:
    possible = [
      kv_heads
      for kv_heads in range(was.kv_heads, now.heads + 1)
      if now.heads % kv_heads == 0
      and kv_heads // was.kv_heads * (now.heads // kv_heads) >= old
    ]
    nearest = min(possible, key=lambda kv_heads: abs(kv_heads - now.kv_heads))
    raise errors.UserError(
      f'model.kv_heads: {now.kv_heads} for {now.heads} heads leave out some of '
      f"the parent's {was.heads} over {was.kv_heads}; the nearest possible is "
      f'{nearest}'
    )
  kv_heads = np.arange(now.kv_heads) % was.kv_heads
  place = (np.arange(now.kv_heads) // was.kv_heads)[:, None] * new
  within = (place + np.arange(new)) % old
  return (
    _copies((kv_heads[:, None] * old + within).ravel()),
    _copies(kv_heads),
  )


def _layers(by: str, was: int, now: int) -> tuple[Axis, np.ndarray]:
  """Returns the old layer of each new one, and whether it writes nothing."""
  new = np.arange(now)
  if by == 'interleave':
    source = new * was // now
  elif by == 'last':
    source = np.minimum(new, was - 1)
  elif by == 'middle':
    middle, extra = (was - 1) // 2, now - was
    source = np.where(new <= middle, new, np.maximum(new - extra, middle))
  else:
    source = new % was
  silent = new >= was if by == 'identity' else np.zeros(now, bool)
  return _copies(source), silent

"""The old unit that each unit of a grown model is copied from.

Shapes: D width, H query heads, K key/value heads, F MLP width, N layers; an array
of old indices has the new axis as its suffix.

If D does not divide D', floor(D' / D) copies of the residual stream leave some
entries over, which are 0 at first. RMSNorm then averages over more entries, which
eta = sqrt(floor(D' / D) D / D') compensates: gains become eta gain, those of exits
gain / eta, because the logit scale base_width / D already changes, and `norm_eps`
must be eta^2 that of the parent.
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
# Keys of a model that a growth may change.
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
    source_N: old index of each new entry; 0 for a fresh entry.
    fresh_N: whether the entry is not a copy of an old one.
  """

  source_N: np.ndarray
  fresh_N: np.ndarray

  @functools.cached_property
  def copy_N(self) -> np.ndarray:
    """The number of each entry among the copies of its source: 0, 1, ..."""
    seen: dict[int, int] = {}
    copy_N = np.zeros_like(self.source_N)
    for new in np.flatnonzero(~self.fresh_N):
      old = int(self.source_N[new])
      copy_N[new] = seen.get(old, 0)
      seen[old] = copy_N[new] + 1
    return copy_N

  @functools.cached_property
  def copies_N(self) -> np.ndarray:
    """The number of copies of each entry's source; 1 for a fresh entry."""
    counts = np.bincount(self.source_N[~self.fresh_N])
    return np.where(self.fresh_N, 1, counts[self.source_N])

  def shares_N(self, split: str) -> np.ndarray:
    """Returns the weight with which each copy is read; 1 in sum over copies."""
    if split != 'uneven':
      return 1 / self.copies_N
    return 2 * (self.copy_N + 1) / (self.copies_N * (self.copies_N + 1))

  def spread(self, size: int) -> 'Axis':
    """Returns the axis of the entries of units with `size` entries each."""
    within = np.arange(size)
    source = self.source_N[:, None] * size + within
    return Axis(source.ravel(), np.repeat(self.fresh_N, size))


@dataclasses.dataclass(frozen=True, eq=False)
class Growth:
  """A growth, as the map of every axis.

  Attributes:
    config: the growth's config.
    was: model of the parent.
    now: the grown model.
    width: axis D.
    heads: axis H.
    kv_heads: axis K.
    mlp: axis F.
    layers: layers of the trunk.
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
    """The ratio of a state's root mean square after the growth to before."""
    return _eta(self.was.width, self.now.width)

  def exit_source(self, exit_: int) -> int:
    """Returns the parent's exit that a new exit 1..G' is copied from.

    It stands after the same layers, or is the next deeper one.
    """
    reached = max(self._live(exit_), default=-1) + 1
    return next(
      number
      for number, layer in enumerate(self.was.exits, start=1)
      if layer >= reached
    )

  def exact_exits(self) -> dict[int, int]:
    """Returns {new exit: old exit} for exits that compute the same function."""
    if self.inexact_width():
      return {}
    exact = {}
    for exit_ in range(1, self.now.granularity + 1):
      live = self._live(exit_)
      if live == list(range(len(live))) and len(live) in self.was.exits:
        exact[exit_] = self.was.exits.index(len(live)) + 1
    return exact

  def inexact_width(self) -> str:
    """Returns why the growth of the width is not exact, and an exact one; or ''."""
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
    """Returns why the last exit is not exact, and an exact alternative; or ''."""
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
    """Returns the old numbers of the layers below an exit that are not silent."""
    until = self.now.exits[exit_ - 1]
    live = ~self.silent_N[:until]
    return [int(old) for old in self.layers.source_N[:until][live]]


def plan(
  config: growth_config.GrowthConfig, was: ModelConfig, now: ModelConfig
) -> Growth:
  """Returns how one model grows into another.

  Raises:
    UserError: if it cannot, or not exactly although `exact` is set; the message
      names the nearest possible size.
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
  """Returns the values of the keys that a growth from this model may change."""
  keys = list(GROWN)
  if was.granularity == 1:  # A dense model has no exits of a kind.
    keys += OF_EXITS
  return {key: getattr(was, key) for key in keys}


def _eta(was: int, now: int) -> float:
  return math.sqrt(now // was * was / now)


def _check(
  config: growth_config.GrowthConfig, was: ModelConfig, now: ModelConfig
) -> None:
  """Raises a UserError for sizes that no growth reaches."""
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
  """Returns the axes of query heads and of key/value heads.

  The key/value heads repeat as a whole, and the copies of one take turns with the
  query heads of its group. Each new query head then attends with the keys of its
  old one, whichever of the two numbers grew.
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
  offset = (np.arange(now.kv_heads) // was.kv_heads)[:, None] * new
  within = (offset + np.arange(new)) % old
  return (
    _copies((kv_heads[:, None] * old + within).ravel()),
    _copies(kv_heads),
  )


def _layers(by: str, was: int, now: int) -> tuple[Axis, np.ndarray]:
  """Returns the old layer of each new one, and whether it is silent."""
  new = np.arange(now)
  if not by:
    return _copies(new), np.zeros(now, bool)
  chosen = growth_config.DEPTH_MAPS[by]
  return _copies(chosen.source(new, was, now)), chosen.silent & (new >= was)

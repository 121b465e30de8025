"""How a run grows its parent's model."""

from collections.abc import Callable
import dataclasses
from typing import Annotated
from typing import NamedTuple

import numpy as np

from familial.core import schema


class DepthMap(NamedTuple):
  """A map of a parent's layers to those of a deeper model.

  Attributes:
    source: returns the old layer that each new layer copies, given the numbers of
      the new layers, the old depth and the new depth.
    silent: whether layers beyond the old depth write nothing at first.
  """

  source: Callable[[np.ndarray, int, int], np.ndarray]
  silent: bool = False


def _middle(new: np.ndarray, was: int, now: int) -> np.ndarray:
  middle, extra = (was - 1) // 2, now - was
  return np.where(new <= middle, new, np.maximum(new - extra, middle))


# The maps of the layers: a new one is a line here.
DEPTH_MAPS = {
  'identity': DepthMap(lambda new, was, now: new % was, silent=True),
  'stack': DepthMap(lambda new, was, now: new % was),
  'interleave': DepthMap(lambda new, was, now: new * was // now),
  'last': DepthMap(lambda new, was, now: np.minimum(new, was - 1)),
  'middle': DepthMap(_middle),
}
_Width = Annotated[str, schema.one_of('', 'replicate', 'aki')]
_Split = Annotated[str, schema.one_of('even', 'uneven', 'noise')]
_Depth = Annotated[str, schema.key_of(DEPTH_MAPS, '')]
_State = Annotated[str, schema.one_of('reset', 'carry', 'asymmetric')]


@dataclasses.dataclass(frozen=True)
class GrowthConfig:
  """Maps from a smaller parent's parameters and optimizer state to a run's.

  Carried moments keep their step count T. Moments of new entries (layers whose
  output is zeroed, units beyond a multiple of the parent's width, and with
  `asymmetric` all copies but the first) start at 0 with that count, so that
  AdamW's bias correction does not apply to them: with
  r(n) = (1 - beta1^n) / sqrt(1 - beta2^n), the k-th update for a constant
  gradient is r(k) / r(T + k) times that of a fresh run. For large T,
  r(T + k) = 1; with the default betas r(k) is 0.45 at first and at most 1.10,
  with beta2 = 0.999 it is 3.2 and at most 6.6. There is no separate warm-up for
  new entries.

  Attributes:
    width: map of the residual stream, heads and MLP: '' (the parent's width);
      `replicate` (each new unit copies an old one and its readers' weights are
      divided among the copies; units beyond a multiple of the parent's width
      write zero; exact); or `aki` (copies compute the next layer's units:
      bert2BERT's advanced knowledge initialisation; not exact).
    split: how readers' weights are divided among the copies of a unit: `even`
      (equal shares, so that copies stay equal in training), `uneven` (shares in
      the ratio 1 : 2 : ...) or `noise` (equal shares plus noise that cancels in
      pairs). All are exact.
    depth: map of the layers: '' (the parent's depth); new layers on top that
      copy the old ones in turn, with zeroed output (`identity`, exact) or
      without (`stack`), or that all copy the last one (`last`); copies next to
      their originals (`interleave`), or copies of the middle layer in the
      middle (`middle`).
    state: map of AdamW's state: `reset` (zero), `carry` (moments are mapped as
      gradients are) or `asymmetric` (carried to the first copy of each entry,
      zero for the others).
    exact: whether to refuse a growth that changes the last exit's function.

  Raises:
    UserError: at construction, if a value is not allowed.
  """

  width: _Width = ''
  split: _Split = 'even'
  depth: _Depth = ''
  state: _State = 'reset'
  exact: bool = False

  def __post_init__(self) -> None:
    schema.check(self, 'growth')


NONE = GrowthConfig()

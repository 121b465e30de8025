"""How a run grows the model that it starts from."""

import dataclasses

from familial.core import errors

_ALLOWED = {
  'width': ('', 'replicate', 'aki'),
  'split': ('even', 'uneven', 'noise'),
  'depth': ('', 'identity', 'stack', 'interleave', 'last', 'middle'),
  'state': ('reset', 'carry', 'asymmetric'),
}


@dataclasses.dataclass(frozen=True)
class GrowthConfig:
  """What becomes of a smaller parent's parameters and optimizer state.

  Carried moments come with their count of steps, T. Those of what is new (layers
  that write nothing yet, what is left over of a width, later copies if
  `asymmetric`) begin at 0 under that count, so AdamW's bias correction passes
  them by: with r(n) = (1 - beta1^n) / sqrt(1 - beta2^n), the k-th update of a
  steady gradient is r(k) / r(T + k) times a fresh run's. After a long parent
  r(T + k) is 1; r(k) is 0.45 at first and 1.10 at most by default, 3.2 and 6.6
  with a beta2 of 0.999. Nothing warms up what is new alone: the run's warm-up is
  everyone's.

  Attributes:
    width: '' where the residual stream, heads and MLP are the parent's;
      `replicate`: each new unit is a copy of an old one, what reads copies is
      divided among them, and what is left over where the widths do not divide
      writes nothing yet (exact); `aki`: the copies compute what the next layer
      does (bert2BERT's advanced knowledge initialisation; not exact).
    split: how copies of a unit are read: `even`, by equal shares, so that they
      stay copies for ever; `uneven`, by 1 : 2 : ..; `noise`, by equal shares and
      noise that cancels in pairs. All are exact.
    depth: '' where the depth is the parent's; new layers above the old ones that
      are copies of them in turn, with what they write zeroed (`identity`, exact)
      or not (`stack`), or all copies of the last (`last`); copies beside their
      originals (`interleave`), or those of the middle layer between the halves
      (`middle`).
    state: of AdamW: `reset`; `carry`: its moments grow as the gradients do;
      `asymmetric`: carried for the first copy of each entry, zero for others.
    exact: refuse a growth after which the last exit computes anything else.
  """

  width: str = ''
  split: str = 'even'
  depth: str = ''
  state: str = 'reset'
  exact: bool = False

  def __post_init__(self) -> None:
    for key, allowed in _ALLOWED.items():
      value = getattr(self, key)
      if value not in allowed:
        raise errors.UserError(
          f'growth.{key}: {value!r} is not one of '
          f'{", ".join(map(repr, allowed))}{errors.nearest(value, allowed)}'
        )


NONE = GrowthConfig()

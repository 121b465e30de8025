"""How a run grows the model that it starts from."""

import dataclasses

from familial import errors

_ALLOWED = {
  'width': ('', 'replicate', 'aki'),
  'split': ('even', 'uneven', 'noise'),
  'depth': ('', 'identity', 'stack', 'interleave', 'last', 'middle'),
  'state': ('reset', 'carry', 'asymmetric'),
}


@dataclasses.dataclass(frozen=True)
class GrowthConfig:
  """What becomes of a smaller parent's parameters and optimizer state.

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

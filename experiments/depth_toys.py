"""How loss falls with depth, in toy residual networks (arXiv 2602.05970).

Students of several depths learn from deeper teachers of random weights: of layers
of their own (`independent`), where more layers can only average, or of one layer
repeated (`tied`), a smooth path that more layers follow in smaller steps.

Studies:
  learned_head  KL divergence by temperature; students have heads of their own
  shared_head   tied teachers, whose head the students have too
  state         mean squared error of the last state
  half          the same in half the steps: its rate falls to its end too
  one_layer     the same, with a single layer of as many hidden units: what is left
                of the exponent without depth
  two_stage     the same, with two evaluations a layer (the midpoint rule)
  short         the control: teachers with no more layers than some students

Variants:
  test  a minute on two cores: does every part work
  cpu   a quarter of an hour on two cores
  gpu   the sizes of the paper, for one GPU: `state` has its 80 thousand steps, and
        `half` its 40, as `two_stage`

The sizes of `cpu`, and why: at the paper's width 32 and rates, students of 5,000
steps are far from trained, and the exponents of both teachers are below 0.5. What
helped most was a rate that falls to 1 % over the last 70 % of the steps, then a
rate ten times the paper's and width 16 (with the same four hidden units a width):
that is what it has, with depths 2 to 8, which a batch of 128 can train. Teachers of
64 layers are far enough from 8: averaging leaves 1/l - 1/64 there, whose exponent is
1.07 over these depths, and 1.16 under teachers of 32. The gain keeps the path of a
tied teacher, 1.25 gain sqrt(64), at the size of the state: twice the path is beyond
what 8 layers learn in these steps. A layer of two stages costs two, so students with
them are half as deep: pair by pair of equal cost.
"""

from typing import Any

import ml_collections

from familial.core import errors
from familial.studies import depth_toys


def get_config(arg: str = 'cpu') -> ml_collections.ConfigDict:
  """Returns a variant's studies."""
  variants = {'test': _test, 'cpu': _cpu, 'gpu': _gpu}
  errors.require_one_of('variant', arg, variants)
  config = depth_toys.TOYS.template()
  config.title = 'Toy residual networks: loss by depth'
  variants[arg](config)
  return config


def _studies(
  config: ml_collections.ConfigDict,
  depths: tuple[int, ...],
  two_stage: tuple[int, ...],
  *,
  cold: tuple[float, ...],
  common: dict[str, Any],
  learned: dict[str, Any],
  shared: dict[str, Any],
  short: dict[str, Any],
  long: dict[str, Any],
) -> None:
  """Sets the studies.

  Args:
    config: to set them in.
    depths: of the students.
    two_stage: of those with two evaluations a layer: half as deep, of equal cost.
    cold: the temperatures.
    common: to all studies; a rate falls as 2 / sqrt(l) with the depth.
    learned: of its own to the learned head.
    shared: of its own to the shared head.
    short: of its own to the control.
    long: of their own to `state` and `one_layer`.
  """
  state = {**common, 'depths': depths, 'rate_depth': 4}
  whole = {**state, **long}
  tied = ('tied',)
  heads = {**state, 'temperatures': cold}
  config.studies = {
    'learned_head': {**heads, 'head': 'learned', 'rate_depth': 0, **learned},
    'shared_head': {**heads, 'head': 'shared', 'teachers': tied, **shared},
    'state': whole,
    'half': {**state, 'steps': whole['steps'] // 2},
    'one_layer': {**whole, 'one_layer': True},
    'two_stage': {
      **state, 'depths': two_stage, 'stages': 2, 'teachers': tied
    },
    'short': {**state, **short},
  }  # fmt: skip


def _test(config: ml_collections.ConfigDict) -> None:
  config.title += ' (test)'
  config.update(width=8, hidden=16, vocab=16, batch=16, test_batch=16)
  config.update(replicates=2, checkpoints=3)
  _studies(
    config,
    (1, 2, 3, 4),
    (1, 2, 3),
    short={'teacher_depth': 2},
    cold=(0.1, 1.0),
    common={'teacher_depth': 6, 'steps': 60, 'rate': 5e-3},
    learned={},
    shared={},
    long={},
  )


def _cpu(config: ml_collections.ConfigDict) -> None:
  config.title += ', on two cores'
  config.update(width=16, hidden=64, vocab=32, gain=0.1)
  config.update(batch=128, test_batch=256)
  _studies(
    config,
    (2, 3, 4, 6, 8),
    (1, 2, 3, 4),
    short={'teacher_depth': 6},
    cold=(0.25, 2.0),
    common={
      'teacher_depth': 64,
      'steps': 10_000,
      'rate': 6e-3,
      'decay': 0.7,
      'decay_to': 0.01,
    },
    learned={},
    shared={},
    long={},
  )


def _gpu(config: ml_collections.ConfigDict) -> None:
  config.title += ', on one GPU'
  _studies(
    config,
    (6, 12, 16, 24, 32, 48),
    (3, 6, 8, 12, 16, 24),
    short={'teacher_depth': 24},
    cold=tuple(round(10 ** (k / 7.5 - 2), 4) for k in range(16)),
    common={'teacher_depth': 128, 'steps': 40_000, 'rate': 6e-4},
    learned={'decay': 0.0},
    shared={'steps': 80_000, 'rate_depth': 16},
    long={'steps': 80_000},
  )

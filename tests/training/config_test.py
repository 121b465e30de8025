import dataclasses

import pytest

from familial.training import config


@pytest.mark.parametrize(
  'weighting, expected',
  [
    ('uniform', (1 / 3, 1 / 3, 1 / 3)),
    ('final_one', (0.3, 0.3, 1.0)),
    ('linear', (1 / 7, 2 / 7, 4 / 7)),
  ],
)
def test_weights_of_the_exits(weighting, expected):
  train = config.TrainConfig(
    steps=10, batch_size=1, base_lr=0.1, weighting=weighting
  )
  assert train.exit_weights((1, 2, 4)) == pytest.approx(expected)
  assert train.exit_weights((1, 2, 4), end=True) == pytest.approx(expected)
  assert sum(train.exit_weights((4,))) == 1
  moving = dataclasses.replace(
    train, weighting='uniform', weighting_end=weighting
  )
  assert moving.exit_weights((1, 2, 4)) == pytest.approx((1 / 3,) * 3)
  assert moving.exit_weights((1, 2, 4), end=True) == pytest.approx(expected)
  half = [(1 / 3 + weight) / 2 for weight in expected]
  assert moving.exit_weights_at(5, (1, 2, 4)) == pytest.approx(half)


def test_on_a_frozen_trunk_the_last_exit_weighs_nothing():
  train = config.TrainConfig(
    steps=10, batch_size=1, base_lr=0.1, trained='exits', init_from='parent'
  )
  assert train.exit_weights((1, 2, 4)) == (1.0, 1.0, 0.0)


def test_evaluations_are_even_in_steps_or_in_their_logarithm(run_config):
  train = dataclasses.replace(run_config().train, steps=100)
  even = dataclasses.replace(train, evaluations=4)
  assert sorted(even.evaluated) == [25, 50, 75, 100]
  spread = dataclasses.replace(train, evaluations=3, first_evaluation=1)
  assert sorted(spread.evaluated) == [1, 10, 100]
  # More than there are steps between them fall together.
  dense = dataclasses.replace(train, evaluations=50, first_evaluation=90)
  assert sorted(dense.evaluated) == list(range(90, 101))

import dataclasses

import pytest

from familial.core import errors
from familial.training import config


@pytest.mark.parametrize(
  'key, change',
  [
    ('steps', {'steps': 0}),
    ('batch_size', {'batch_size': 0}),
    ('evaluations', {'evaluations': 0}),
    ('eval_tokens', {'eval_tokens': 0}),
    ('eval_batch_size', {'eval_batch_size': 0}),
    ('keep', {'keep': 0}),
    ('schedule', {'schedule': 'linear'}),
    ('weighting', {'weighting': 'unifrom'}),
    ('weighting_end', {'weighting_end': 'none'}),
    ('trained', {'trained': 'heads'}),
    ('warmup_steps', {'warmup_steps': 25}),
    ('warmup_steps', {'warmup_steps': -1}),
    ('base_lr', {'base_lr': 0.0}),
    ('base_lr', {'base_lr': float('nan')}),
    ('clip', {'clip': -1.0}),
    ('beta1', {'beta1': 1.0}),
    ('beta1', {'beta1': -0.1}),
    ('beta2', {'beta2': 1.0}),
    ('beta2', {'beta2': 1 - 1e-9}),  # 1 in float32.
    ('eps', {'eps': 0.0}),
    ('eps', {'eps': 1e-60}),  # 0 in float32.
    ('weight_decay', {'weight_decay': -0.1}),
    ('final_lr', {'final_lr': -0.1}),
    ('final_lr', {'final_lr': 1.1}),
    ('decay_fraction', {'decay_fraction': 0.0}),
    ('decay_fraction', {'decay_fraction': 1.5}),
    ('other_weight', {'other_weight': -0.1}),
    ('seed', {'seed': -1}),
    ('checkpoint_seconds', {'checkpoint_seconds': -1.0}),
    ('init_from', {'trained': 'exits'}),
  ],
)
def test_what_cannot_work_is_refused_by_name(run_config, key, change):
  with pytest.raises(errors.UserError) as caught:
    run_config(**change)
  assert str(caught.value).startswith(f'train.{key}: ')
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'change',
  [
    {'clip': 0.0},
    {'beta1': 0.0, 'beta2': 0.0},
    {'weight_decay': 0.0, 'other_weight': 0.0},
    {'final_lr': 1.0, 'decay_fraction': 1.0},
    {'base_lr': 1e35},  # It diverges, which is an answer.
  ],
)
def test_the_ends_of_what_can_work_are_allowed(run_config, change):
  run_config(**change)


def test_a_near_miss_is_named(run_config):
  with pytest.raises(errors.UserError, match="did you mean 'uniform'"):
    run_config(weighting='unifrom')


def test_parts_that_do_not_fit_are_refused(run_config, shape):
  model = run_config().model
  for key, change in (
    ('model.vocab_size', {'vocab_size': 300}),
    ('model.loss_chunk', {'loss_chunk': 5}),
  ):
    with pytest.raises(errors.UserError, match=f'^{key}: '):
      run_config(dataclasses.replace(model, **change))
  dense = shape(vocab_size=256, exits=(3,))
  with pytest.raises(errors.UserError, match=r'^model\.exits: '):
    run_config(dense, trained='exits', init_from='../parent')


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

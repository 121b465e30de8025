import functools

import pytest

from familial.core import errors
from familial.model import config


def test_the_last_exit_is_a_head_and_owns_nothing(shape):
  for kind in config.EXIT_KINDS:
    model = shape(
      depth=4, exits=(1, 2, 4), exit_kind=kind, branch_unembedding='own'
    )
    assert model.granularity == 3
    assert model.segment_depths == (1, 1, 2)
    kinds = [model.kind_of(exit_) for exit_ in (1, 2, 3)]
    assert kinds == [kind, kind, 'head']
    assert not model.owns_unembedding(3)
    assert model.owns_unembedding(1) == (kind != 'head')
  shared = shape(exit_kind='branch', branch_unembedding='shared')
  assert not shared.owns_unembedding(1)


@pytest.mark.parametrize(
  'kind, unembedding, depths, tied',
  [
    ('head', 'shared', (1, 2, 4), (True, True, True)),
    ('separate', 'shared', (1, 2, 4), (False, False, True)),
    ('branch', 'shared', (2, 3, 4), (True, True, True)),
    ('branch', 'own', (2, 3, 4), (False, False, True)),
  ],
)
def test_a_submodel_is_dense(shape, kind, unembedding, depths, tied):
  family = functools.partial(
    shape, depth=4, exits=(1, 2, 4), exit_kind=kind,
    branch_unembedding=unembedding,
  )  # fmt: skip
  model = family()
  subs = [model.submodel(exit_) for exit_ in (1, 2, 3)]
  assert tuple(sub.depth for sub in subs) == depths
  assert tuple(sub.tied for sub in subs) == tied
  for sub in subs:
    assert sub.exits == (sub.depth,)
    assert sub == shape(depth=sub.depth, exits=sub.exits, tied=sub.tied)
    assert sub.submodel(1) == sub
  untied = family(tied=False)
  assert not any(untied.submodel(exit_).tied for exit_ in (1, 2, 3))


@pytest.mark.parametrize('exit_', [0, 3, -1])
def test_a_submodel_of_no_exit_is_refused(shape, exit_):
  with pytest.raises(errors.UserError, match=r'is not one of 1\.\.2'):
    shape().submodel(exit_)


@pytest.mark.parametrize(
  'depth, granularity, expected',
  [
    (8, 4, (2, 4, 6, 8)),
    (6, 4, (2, 3, 4, 6)),
    (7, 3, (2, 5, 7)),
  ],
)
def test_even_exits(depth, granularity, expected):
  assert config.even_exits(depth, granularity) == expected


def test_even_exits_are_distinct_and_end_at_the_depth(shape):
  for depth in range(1, 33):
    for granularity in range(1, depth + 1):
      exits = config.even_exits(depth, granularity)
      assert shape(depth=depth, exits=exits).granularity == granularity


@pytest.mark.parametrize('granularity', [0, 5])
def test_more_exits_than_layers_are_refused(granularity):
  with pytest.raises(errors.UserError, match=r'granularity: .* outnumber'):
    config.even_exits(4, granularity)


def test_models_that_one_program_trains(shape):
  dense, family = shape(exits=(3,), exit_kind='branch'), shape(exits=(2, 3))
  assert config.common(dense) == config.common(family)
  assert config.union([dense, family, shape()]).exits == (1, 2, 3)
  branch = shape(exit_kind='branch')
  assert config.common(branch) != config.common(family)
  assert config.union([branch, branch]) == branch

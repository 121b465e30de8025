"""Random models of any shape, and how they grow."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import numpy as np
import pytest

from familial.expansion import config as growth_config
from familial.expansion import grown
from familial.expansion import maps
from familial.model import config as model_config
from tests.model import oracle


def shapes(model: model_config.ModelConfig, dtype: Any) -> Any:
  """Returns the shapes of a model's parameters, of a given type."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, dtype), oracle.shapes(model)
  )


def reading(params: Any) -> grown.Take:
  """Reads entries of a tree of NumPy arrays."""

  def take(path, index):
    leaf = functools.reduce(lambda tree, name: tree[name], path, params)
    return leaf[np.ix_(*index)]

  return take


@pytest.fixture(scope='session')
def random_params() -> Callable[..., Any]:
  """Makes a model's parameters, all of them random, of order one in effect."""

  def make(model, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)

    def one(path, leaf):
      values = rng.standard_normal(leaf.shape)
      if path[-1].key == 'gain':
        values = 1 + 0.2 * values
      elif path[-1].key == 'kernel':
        values /= np.sqrt(leaf.shape[-2])
      return values.astype(dtype)

    return jax.tree_util.tree_map_with_path(one, shapes(model, dtype))

  return make


@pytest.fixture(scope='session')
def grow() -> Callable[..., Any]:
  """Grows parameters, in their own precision."""

  def make(params, was, now, seed=0, **config):
    config = {'width': 'replicate', 'depth': 'identity', **config}
    growth = maps.plan(growth_config.GrowthConfig(**config), was, now)
    dtype = params['embedding'].dtype
    with jax.enable_x64(dtype == np.float64):
      found = grown.params(growth, shapes(now, dtype), reading(params), seed)
      return jax.tree.map(np.asarray, found), growth

  return make

import collections
import math

import jax
from jax.interpreters import partial_eval
import jax.numpy as jnp
import pytest

from familial.model import config as model_config
from familial.model import flops
from familial.model import loss
from familial.model import transformer
from familial.training import config as train_config
from familial.training import optimizer
from familial.training import step

B, L = 3, 8
SHAPES = {
  'dense': {'exits': (3,)},
  'head': {},
  'untied': {'tied': False},
  'separate': {'exit_kind': 'separate'},
  'branch': {'exit_kind': 'branch', 'exits': (1, 2, 3)},
  'own branch': {'exit_kind': 'branch', 'branch_unembedding': 'own'},
  'no groups': {'kv_heads': 4, 'mlp_width': 40},
}


@pytest.fixture
def small():
  """V 8, D 4, H 2, K 1, E 2, F 6, two layers with an exit after each."""
  return lambda **changes: model_config.ModelConfig(
    vocab_size=8, width=4, depth=2, heads=2, kv_heads=1, mlp_width=6,
    exits=(1, 2), **changes,
  )  # fmt: skip


def test_a_small_model_by_hand(small):
  # q 4x4, k 4x2, v 4x2, o 4x4: 48. gate and up 4x6, down 6x4: 72. Norms: 8.
  assert flops.layer_params(small()) == 128
  # 2 x 120 for the matrices; 4 positions: 2 x 2 heads x 2 x 4 for the scores,
  # as many for the values: 64.
  assert flops.layer_forward(small(), 4) == 304
  # Unembedding: 2 x 4 x 8. Two layers, two exits.
  assert flops.exit_forward(small(), 1, 4) == 64
  assert flops.forward(small(), 4) == 736
  assert flops.train(small(), 4) == 2208
  branch = small(exit_kind='branch')
  assert flops.exit_forward(branch, 1, 4) == 368
  assert flops.exit_forward(branch, 2, 4) == 64
  assert flops.train(branch, 4) == 3120
  # With a final norm of 4 gains.
  assert flops.params(small(), 1) == 132
  assert flops.params(small(), 2) == flops.params_full(small()) == 260
  assert flops.params(branch, 1) == 260
  assert flops.params_embedding(small(), 1) == 32
  assert flops.params_embedding(small(tied=False), 1) == 64
  separate = small(exit_kind='separate')
  assert flops.params_embedding(separate, 1) == 64
  assert flops.params_embedding(separate, 2) == 32
  assert flops.six_nd(small(), 10) == 15600


def test_frozen_trunk_by_hand(small):
  # One layer forward, 304; the unembedding forward and to its states, 128.
  assert flops.train(small(), 4, 'exits') == 432
  # And to itself, 64 more, where it is the exit's own.
  assert flops.train(small(exit_kind='separate'), 4, 'exits') == 496
  # And the branch's layer, three times 304.
  branch = small(exit_kind='branch')
  assert flops.train(branch, 4, 'exits') == 1344


def test_a_dense_model_of_an_exit_gets_more_tokens_for_the_same_flops(small):
  # Exit 1 alone: 3 x (304 + 64) = 1104 a token.
  assert flops.tokens_dense(small(), 1, 4, 11040.0) == 10
  assert flops.tokens_dense(small(), 2, 4, 3 * 672.0) == 1
  alone = small().submodel(2)
  assert flops.tokens_dense(alone, 1, 4, flops.train(alone, 4)) == 1


@pytest.mark.parametrize('name', SHAPES)
def test_params_count_every_leaf_of_the_stand_alone_model(shape, name):
  model = shape(**SHAPES[name])
  for exit_ in range(1, model.granularity + 1):
    sub = model.submodel(exit_)
    leaves = jax.eval_shape(
      lambda s=sub: transformer.init(s, jax.random.key(0))
    )
    embeddings = {
      key: leaves.pop(key) for key in ('embedding', 'unembedding')
      if key in leaves
    }  # fmt: skip
    assert flops.params(model, exit_) == _size(leaves)
    assert flops.params_embedding(model, exit_) == _size(embeddings)
  assert flops.params_full(model) == flops.params(model, model.granularity)


@pytest.mark.parametrize('name', SHAPES)
def test_train_equals_what_xla_counts(shape, name):
  model = shape(**SHAPES[name], attention='plain')
  assert _counted_step(model) == B * L * flops.train(model, L)


@pytest.mark.parametrize('name', [s for s in SHAPES if s != 'dense'])
def test_frozen_trunk_equals_what_xla_counts(shape, name):
  model = shape(**SHAPES[name], attention='plain')
  # What the last exit costs is not training's: its loss is only watched.
  layers = model.depth - model.exits[-2]
  watched = layers * flops.layer_forward(model, L) + flops.exit_forward(
    model, model.granularity, L
  )
  assert _counted_step(model, 'exits') == B * L * (
    flops.train(model, L, 'exits') + watched
  )


def test_the_value_of_the_loss_costs_a_forward_pass(shape):
  model = shape(attention='plain')
  counted = _counted(
    lambda params, batch: loss.exit_losses(params, model, batch, jnp.ones(2)),
    _state(model).params,
    _batch(),
  )
  assert counted == B * L * flops.forward(model, L)


def test_a_whole_step_costs_one_per_cent_more_than_its_products(shape):
  # With many tokens and a wide model, what is done number by number (norms,
  # softmax, AdamW) is small, and a product too many or too few would show.
  batch, length = 64, 64
  model = shape(
    vocab_size=1024, width=256, mlp_width=768, exit_kind='branch',
    attention='plain',
  )  # fmt: skip
  lowered = step.train.lower(
    model,
    'all',
    _state(model),
    _batch(batch, length),
    _hyper(model, 'all'),
  )
  counted = lowered.cost_analysis()['flops']
  ours = batch * length * flops.train(model, length)
  assert 1 < counted / ours < 1.01


def _size(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _batch(batch=B, length=L):
  tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
  return {
    'inputs_BxL': tokens,
    'targets_BxL': tokens,
    'weights_BxL': jax.ShapeDtypeStruct(tokens.shape, jnp.float32),
  }


def _hyper(model, trained):
  return optimizer.hyper(
    train_config.TrainConfig(
      steps=9, batch_size=B, base_lr=0.1, trained=trained, init_from='parent'
    ),
    model.exits,
  )


def _state(model, trained='all'):
  return jax.eval_shape(
    lambda: step.init(model, trained, jax.random.key(0), _hyper(model, trained))
  )


def _counted_step(model, trained='all'):
  return _counted(
    lambda state, batch, h: step.train(model, trained, state, batch, h),
    _state(model, trained),
    _batch(),
    _hyper(model, trained),
  )


def _counted(function, *args):
  """FLOPs that XLA's cost analysis gives the matrix products of a program."""
  jaxpr = jax.make_jaxpr(function)(*args).jaxpr
  # As XLA does, leave out what no result needs.
  jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  total = 0
  for (left, right, dimensions, out), count in _products(jaxpr).items():
    lone = jax.jit(
      lambda a, b, d=dimensions, o=out: jax.lax.dot_general(
        a, b, d, preferred_element_type=o
      )
    )
    analysis = lone.lower(
      *(jax.ShapeDtypeStruct(*operand) for operand in (left, right))
    ).cost_analysis()
    total += count * analysis['flops']
  return total


def _products(jaxpr):
  """Counts the distinct matrix products of a program, calls included."""
  found = collections.Counter()
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      operands = ((v.aval.shape, v.aval.dtype) for v in equation.invars)
      found[
        (
          *operands,
          equation.params['dimension_numbers'],
          equation.outvars[0].aval.dtype,
        )
      ] += 1
    assert equation.primitive.name not in ('scan', 'while', 'cond')
    for inner in jax.tree.leaves(
      list(equation.params.values()),
      is_leaf=lambda x: hasattr(x, 'eqns'),
    ):
      if hasattr(inner, 'eqns'):
        found += _products(getattr(inner, 'jaxpr', inner))
  return found

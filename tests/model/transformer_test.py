import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from familial.core import errors
from familial.model import config as model_config
from familial.model import flops
from familial.model import transformer
from tests.model import oracle

B, L = 2, 32
# Every way to place an unembedding: kind of exit, whose matrix, tied.
HEADS = [
  ('head', 'shared', True),
  ('head', 'shared', False),
  ('separate', 'shared', True),
  ('branch', 'shared', True),
  ('branch', 'own', False),
]
compiled = jax.jit(transformer.logits, static_argnums=1)
init = jax.jit(transformer.init, static_argnums=0)


@pytest.fixture(scope='module')
def inputs():
  rng = np.random.default_rng(1)
  return jnp.asarray(rng.integers(0, 48, (B, L)), jnp.int32)


def _stand_alone(params, model, exit_):
  """Exit 1..G's parameters as those of a model of its own."""
  head = params[f'exit_{exit_}']
  parts = [params[f'segment_{index}'] for index in range(exit_)]
  if 'branch' in head:
    parts.append(jax.tree.map(lambda leaf: leaf[None], head['branch']))
  out = {
    'embedding': params['embedding'],
    'segment_0': jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts),
    'exit_1': {'norm': head['norm']},
  }
  if 'unembedding' in head:
    out['unembedding'] = head['unembedding']
  elif not model.tied:
    out['unembedding'] = params['unembedding']
  return out


@pytest.mark.parametrize('kind, unembedding, tied', HEADS)
def test_every_exit_is_a_plain_decoder(shape, inputs, kind, unembedding, tied):
  model = shape(exit_kind=kind, branch_unembedding=unembedding, tied=tied)
  params = oracle.params(model)
  outs = compiled(params, model, inputs)
  exact = jax.tree.map(np.float64, params)
  for exit_, (out, expected) in enumerate(
    zip(outs, oracle.logits(exact, model, inputs), strict=True), start=1
  ):
    assert out.dtype == jnp.float32
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5)
    alone = _stand_alone(params, model, exit_)
    assert jax.tree.map(np.shape, alone) == jax.tree.map(
      np.shape, oracle.shapes(model.submodel(exit_))
    )


def test_a_new_kind_of_exit_is_a_line_of_the_registry(
  shape, inputs, monkeypatch
):
  tower = model_config.ExitKind(layer=True, unembedding=True)
  monkeypatch.setitem(model_config.EXIT_KINDS, 'tower', tower)
  # Among the kinds there are, this is a branch with an unembedding.
  model = shape(exit_kind='tower')
  like = shape(exit_kind='branch', branch_unembedding='own')
  trees = [init(each, jax.random.key(0)) for each in (model, like)]
  jax.tree.map(np.testing.assert_array_equal, *trees)
  for out, expected in zip(
    compiled(oracle.params(model), model, inputs),
    compiled(oracle.params(like), like, inputs),
    strict=True,
  ):
    np.testing.assert_array_equal(out, expected)
  assert model.submodel(1) == like.submodel(1)
  assert flops.train(model, L) == flops.train(like, L)
  assert flops.train(model, L, 'exits') == flops.train(like, L, 'exits')
  with pytest.raises(errors.UserError, match=r"exit_kind: 'towre' is not"):
    shape(exit_kind='towre')


@pytest.mark.parametrize('kind', ['head', 'branch'])
def test_an_exit_alone_gives_the_same_bits(shape, inputs, kind):
  model = shape(exit_kind=kind)
  params = oracle.params(model)
  outs = compiled(params, model, inputs)
  for exit_, out in enumerate(outs, start=1):
    alone = _stand_alone(params, model, exit_)
    (expected,) = compiled(alone, model.submodel(exit_), inputs)
    np.testing.assert_array_equal(out, expected)


def test_exits_leave_the_trunk_as_it_is_bit_for_bit(shape, inputs):
  states = jax.jit(transformer.exit_states, static_argnums=1)
  dense = shape(exits=(3,))
  (expected,) = states(oracle.params(dense), dense, inputs)
  family = shape(exits=(1, 2, 3))
  trunk = dict(oracle.params(family))
  for index in range(3):
    trunk[f'segment_{index}'] = jax.tree.map(
      lambda leaf, i=index: leaf[i : i + 1], oracle.params(dense)['segment_0']
    )
  np.testing.assert_array_equal(states(trunk, family, inputs)[-1], expected)


@pytest.mark.parametrize(
  'kind, attention',
  [('head', 'plain'), ('branch', 'blocked')],
)
def test_no_gradient_comes_from_the_future(shape, kind, attention):
  # Distinct tokens: row s of the embedding is the input at position s alone.
  model = shape(
    exit_kind=kind, attention=attention, tied=False, depth=2, exits=(1, 2)
  )
  params = oracle.params(model)
  inputs = jnp.arange(L)[None]
  rng = np.random.default_rng(2)
  weights_V = jnp.asarray(rng.normal(size=model.vocab_size), jnp.float32)

  def outputs(embedding):
    outs = transformer.logits({**params, 'embedding': embedding}, model, inputs)
    return jnp.stack(outs)[:, 0] @ weights_V

  jacobian_GxLxVxD = jax.jit(jax.jacrev(outputs))(params['embedding'])
  influence_GxLxL = np.abs(jacobian_GxLxVxD).max(axis=-1)[:, :, :L]
  seen = np.tril(np.ones((L, L), bool))
  assert (influence_GxLxL[:, seen] > 0).all()
  assert (influence_GxLxL[:, ~seen] == 0).all()


@pytest.mark.parametrize(
  'kind, attention',
  [('head', 'plain'), ('branch', 'blocked')],
)
def test_documents_of_a_row_do_not_see_each_other(
  shape, inputs, kind, attention
):
  model = shape(exit_kind=kind, attention=attention, depth=2, exits=(1, 2))
  params = oracle.params(model)
  bounds = (0, 7, 16, 29, 32)
  segments = jnp.asarray(np.repeat(np.arange(4), np.diff(bounds)))[None]
  packed = compiled(params, model, inputs[:1], segments)
  for start, stop in itertools.pairwise(bounds):
    # At the start of a row of the same length, what follows is not seen. RoPE
    # makes attention a function of distance: the place does not matter.
    alone = jnp.roll(inputs[:1], -start, axis=1)
    for out, expected in zip(
      packed, compiled(params, model, alone), strict=True
    ):
      np.testing.assert_allclose(
        out[0, start:stop], expected[0, : stop - start], rtol=0, atol=1e-5
      )
  unmasked = compiled(params, model, inputs[:1])
  assert np.abs(packed[0] - unmasked[0]).max() > 1e-3


def _loss(params, model, inputs):
  outs = transformer.logits(params, model, inputs)
  return sum(jnp.mean(jnp.square(out)) for out in outs), outs


@pytest.fixture(scope='module')
def reference(shape, inputs):
  model = shape(exit_kind='branch')
  grad = jax.jit(jax.grad(_loss, has_aux=True), static_argnums=1)
  return model, grad, grad(oracle.params(model), model, inputs)


def test_scan_and_remat_change_no_value(shape, inputs, reference):
  model, grad, expected = reference
  other = shape(exit_kind='branch', unroll=False, remat=True)
  out = grad(oracle.params(model), other, inputs)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
    out,
    expected,
  )


def test_bfloat16_is_close_and_keeps_float32_parameters(
  shape, inputs, reference
):
  model, _, (_, expected) = reference
  low = shape(exit_kind='branch', dtype='bfloat16')
  assert {leaf.dtype for leaf in jax.tree.leaves(oracle.shapes(low))} == {
    jnp.dtype('float32')
  }
  states = jax.eval_shape(
    lambda: transformer.exit_states(oracle.params(model), low, inputs)
  )
  assert {state.dtype for state in states} == {jnp.dtype('bfloat16')}
  outs = compiled(oracle.params(model), low, inputs)
  for out, full in zip(outs, expected, strict=True):
    assert out.dtype == jnp.float32
    error = np.sqrt(np.mean(np.square(out - full))) / np.std(full)
    assert 1e-4 < error < 0.03


def test_a_seed_has_one_trunk_whatever_its_exits(shape):
  def trunk(model, seed=0):
    params = init(model, jax.random.key(seed))
    segments = [params[f'segment_{i}'] for i in range(model.granularity)]
    return params['embedding'], jax.tree.map(
      lambda *leaves: np.concatenate(leaves), *segments
    )

  expected = trunk(shape(exits=(3,)))
  for exits, kind in (((1, 3), 'separate'), ((1, 2, 3), 'branch')):
    got = trunk(shape(exits=exits, exit_kind=kind))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
  assert (trunk(shape(exits=(3,)), seed=1)[0] != expected[0]).all()


def test_nothing_is_drawn_twice(shape):
  model = shape(exit_kind='branch', branch_unembedding='own', tied=False)
  params = init(model, jax.random.key(0))
  values = np.concatenate(
    [
      np.ravel(leaf)
      for path, leaf in jax.tree_util.tree_leaves_with_path(params)
      if path[-1].key != 'gain'
    ]
  )
  unit = np.abs(values) / np.abs(values).max()
  # Repeats by chance: n^2 / 2 pairs over 2^23 values give a few per cent.
  assert len(np.unique(unit)) > 0.98 * len(unit)


def test_variances_by_fan_in_and_gains_of_one(shape):
  model = shape(
    width=64, mlp_width=160, depth=2, exits=(1, 2), exit_kind='branch',
    branch_unembedding='own', tied=False, vocab_size=512, base_width=16,
  )  # fmt: skip
  params = init(model, jax.random.key(0))
  into, out_of = 64, 160
  expected = {
    'q': 1 / into,
    'k': 1 / into,
    'v': 1 / into,
    'gate': 1 / into,
    'up': 1 / into,
    'o': 1 / into / 4,
    'down': 1 / out_of / 4,
    'embedding': 1 / 16,
    'unembedding': 1 / 16,
  }
  seen = set()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = path[-1].key
    if name == 'gain':
      assert (leaf == 1).all()
      continue
    name = path[-2].key if name == 'kernel' else name
    seen.add(name)
    # The relative error of a variance is sqrt(2 / n): 5 of those.
    margin = 5 * np.sqrt(2 / leaf.size)
    assert np.var(leaf) == pytest.approx(expected[name], rel=margin)
    assert abs(np.mean(leaf)) < 5 * np.sqrt(expected[name] / leaf.size)
  assert seen == set(expected)

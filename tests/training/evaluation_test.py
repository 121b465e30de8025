import jax
import jax.numpy as jnp
import numpy as np
import pytest

from familial.model import transformer
from familial.training import evaluation

B, L = 2, 16
compiled = jax.jit(transformer.logits, static_argnums=1)


@pytest.fixture(scope='module')
def model(shape):
  return shape(depth=2, exits=(1, 2))


@pytest.fixture(scope='module')
def params(model):
  return jax.jit(transformer.init, static_argnums=0)(model, jax.random.key(0))


@pytest.fixture(scope='module')
def batches():
  rng = np.random.default_rng(0)
  # One is nearly empty, and a mean of means would not be the mean; one is padding.
  return [
    {
      'inputs_BxL': rng.integers(0, 48, (B, L), dtype=np.int32),
      'targets_BxL': rng.integers(0, 48, (B, L), dtype=np.int32),
      'weights_BxL': (rng.random((B, L)) < share).astype(np.float32),
    }
    for share in (1.0, 0.7, 0.1, 0.0)
  ]


def test_loss_is_the_mean_over_all_tokens_that_count(model, params, batches):
  sums, count = np.zeros(2), 0.0
  for batch in batches:
    for exit_, logits in enumerate(
      compiled(params, model, batch['inputs_BxL'])
    ):
      log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
      hit = np.take_along_axis(log_p, batch['targets_BxL'][..., None], -1)
      sums[exit_] -= (hit[..., 0] * batch['weights_BxL']).sum()
    count += batch['weights_BxL'].sum()
  losses = evaluation.losses(params, model, batches)
  assert losses.shape == (2,)
  assert losses.dtype == np.float32
  np.testing.assert_allclose(losses, sums / count, rtol=1e-6)


def test_agreement_is_that_of_the_distributions(model, params, batches):
  one, other = (evaluation.Member(params, model, exit_) for exit_ in (1, 2))
  sums, count = np.zeros(4), 0.0
  for batch in batches:
    p, q = (
      np.asarray(jax.nn.softmax(logits), np.float64)
      for logits in compiled(params, model, batch['inputs_BxL'])
    )
    middle = (p + q) / 2

    def kl(a, b):
      return (a * np.log(a / b)).sum(-1)

    weights = batch['weights_BxL']
    for place, each in enumerate(
      (
        kl(p, q),
        kl(q, p),
        (kl(p, middle) + kl(q, middle)) / 2,
        p.argmax(-1) == q.argmax(-1),
      )
    ):
      sums[place] += (each * weights).sum()
    count += weights.sum()
  found = evaluation.agreement(one, other, batches)
  np.testing.assert_allclose(
    [found[name][0] for name in evaluation.AGREEMENT], sums / count, rtol=1e-4
  )
  assert all(error > 0 for _, error in found.values())


def test_a_model_agrees_with_itself(model, params, batches):
  one = evaluation.Member(params, model, 2)
  found = evaluation.agreement(one, one, batches)
  values = {name: value for name, (value, _) in found.items()}
  assert values['js'] < 1e-9
  assert values == {'kl': 0, 'kl_back': 0, 'js': values['js'], 'top1': 1}


@pytest.fixture(scope='module')
def read():
  """Returns the nats, and whether the likeliest token is right, of an exit."""

  def one(params, model, batch, exit_):
    states = transformer.exit_states(params, model, batch['inputs_BxL'])
    return evaluation.read_exit(
      params, model, exit_, states[exit_ - 1], batch,
      lambda logits_V, target: jnp.argmax(logits_V) == target,
    )  # fmt: skip

  # A new function each time, for LOGITS is read when it is compiled.
  return lambda: jax.jit(lambda *args: one(*args), static_argnums=(1, 3))


@pytest.mark.parametrize('at_once', [B * L, 5])
def test_an_exit_is_read_as_all_its_logits(
  model, params, batches, read, monkeypatch, at_once
):
  monkeypatch.setattr(evaluation, 'LOGITS', at_once * model.vocab_size)
  batch = batches[0]
  for exit_, logits in enumerate(
    compiled(params, model, batch['inputs_BxL']), start=1
  ):
    nats, right = read()(params, model, batch, exit_)
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    hit = np.take_along_axis(log_p, batch['targets_BxL'][..., None], -1)
    np.testing.assert_allclose(nats, -hit[..., 0], rtol=1e-5)
    np.testing.assert_array_equal(
      right, log_p.argmax(-1) == batch['targets_BxL']
    )


def test_logits_of_a_large_vocabulary_are_not_in_memory(shape, read):
  large = shape(depth=2, exits=(1, 2), vocab_size=32_000)
  names = {'inputs_BxL': np.int32, 'targets_BxL': np.int32}
  batch = {name: np.zeros((32, 128), kind) for name, kind in names.items()}
  params = jax.eval_shape(lambda: transformer.init(large, jax.random.key(0)))
  program = read().lower(params, large, batch, 1).compile()
  of_all = 4 * 32 * 128 * 32_000
  assert program.memory_analysis().temp_size_in_bytes < of_all

"""What leaving early and packed states cost, as it is measured."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from familial.data import batches
from familial.model import transformer
from familial.relay import packed_states
from familial.relay import wire
from familial.serving import benchmark
from familial.serving import evaluate
from familial.serving import propagation
from familial.serving import sampling
from familial.serving import thresholds
from tests.serving.families import Family


@pytest.fixture(scope='module')
def heldout(model, corpus):
  return batches.heldout(corpus, model.config.data, 500, 8)


def test_propagation_that_nobody_or_everybody_leaves(model, heldout):
  shape = model.config.model
  readings = evaluate.readings(model.params, shape, heldout, (1, 2, 3))
  loss = readings.nats_GxWxL[:, readings.counted_WxL].mean(1)
  for threshold, place in ((2.0, 2), (0.0, 0)):
    found = propagation.at(
      model.params, shape, heldout, readings, 'max_prob', threshold
    )
    assert found.loss == pytest.approx(loss[place], rel=1e-6)
    assert found.shares[place] == 1


def test_propagation_is_the_pass_in_which_those_who_left_stay(model, heldout):
  """Loss and shares, against passes that are told who left."""
  shape = model.config.model
  readings = evaluate.readings(model.params, shape, heldout, (1, 2, 3))
  found = propagation.at(
    model.params, shape, heldout, readings, 'max_prob', 0.4
  )
  made = Family()
  made.params, made.config = model.params, shape
  nats, places = [], []
  for batch in heldout:
    for row in range(8):
      if not batch['weights_BxL'][row].any():
        continue
      left = np.full(32, 2)
      for place in range(2):  # Who left before is known when a place is read.
        logits = made.frozen(batch['inputs_BxL'][row], left)[place]
        sure = np.asarray(sampling.confidence(logits, 'max_prob')) >= 0.4
        left = np.where((left > place) & sure, place, left)
      logits = made.frozen(batch['inputs_BxL'][row], left)
      own = np.take_along_axis(logits, left[None, :, None], 0)[0]
      own = own - np.log(np.exp(own).sum(-1, keepdims=True))
      target = batch['targets_BxL'][row][:, None]
      counted = batch['weights_BxL'][row] > 0
      nats.append(-np.take_along_axis(own, target, 1)[counted, 0])
      places.append(left[counted])
  assert found.loss == pytest.approx(np.concatenate(nats).mean(), rel=1e-5)
  shares = np.bincount(np.concatenate(places), minlength=3) / 500
  np.testing.assert_allclose(found.shares, shares, atol=1e-9)
  assert 0.02 < shares[0] < 0.98
  exact = thresholds.at(readings, 'max_prob', 0.4)
  assert abs(found.loss - exact.loss) > 1e-4


def test_a_threshold_of_propagation_may_be_one_that_none_reaches(monkeypatch):
  """Where whoever is sure to the last bit is wrong."""

  def at(*arguments):
    threshold = arguments[-1]
    believed = np.float32(1) >= np.float32(threshold)
    return types.SimpleNamespace(increase=float(believed), threshold=threshold)

  monkeypatch.setattr(propagation, 'at', at)
  found = propagation.threshold_for(None, None, (), None, 'max_prob', 0.01)
  assert found.increase == 0 and found.threshold == thresholds.NEVER


def test_packed_states_cost_what_they_cost(model, heldout):
  """Errors and losses, against passes that are given rounded states."""
  shape, params = model.config.model, model.params
  readings = evaluate.readings(params, shape, heldout, (1, 2, 3))
  plain = readings.nats_GxWxL[:, readings.counted_WxL].mean(1)
  found = {d: packed_states.costs(model, heldout, d) for d in wire.DTYPES}
  for (error, loss), due in zip(found['float32'], plain, strict=True):
    assert loss == pytest.approx(due, rel=1e-6) and not error
  states, nats, counted, off = [], [], [], []
  for batch in heldout:
    [state, *_] = transformer.exit_states(params, shape, batch['inputs_BxL'])
    rounded = state.astype(jnp.bfloat16).astype(jnp.float32)
    x = transformer.segment(params, shape, 1, rounded)
    h = transformer.head_state(params, shape, 2, x)
    log_p = jax.nn.log_softmax(
      transformer.read_out(h, transformer.unembedding(params, shape, 2))
    )
    target = batch['targets_BxL'][..., None]
    here = batch['weights_BxL'] > 0
    counted.append(here)
    nats.append(-np.take_along_axis(np.asarray(log_p), target, -1)[here, 0])
    states.append(np.asarray(state)[here])
    off.append(np.asarray(rounded - state)[here])
  error, loss = found['bfloat16'][1]
  assert loss == pytest.approx(np.concatenate(nats).mean(), rel=1e-6)
  norms = [np.linalg.norm(np.concatenate(x)) for x in (off, states)]
  assert error == pytest.approx(norms[0] / norms[1], rel=1e-4)
  for tier in (1, 2):
    assert 0 < found['bfloat16'][tier][0] < 2**-8 < 20 * found['int8'][tier][0]
  assert found['int8'][0] == found['float32'][0]  # Tokens, whatever the type.
  assert found['int8'][2][1] != found['float32'][2][1]


def test_a_single_exit_is_timed_alone(familial, run, tmp_path, monkeypatch):
  monkeypatch.setattr(benchmark, '_REPEATS', 1)
  alone = tmp_path / 'alone'
  familial('export', f'--checkpoint={run}', '--exit=1', f'--out={alone}')
  status, out, err = familial(
    'evaluate', f'--checkpoint={alone}', '--decode', '--nodraw', '--tokens=100'
  )
  assert status == 0 and 'exit 1' in out
  # It says what it is about, for it takes a while.
  assert err.splitlines() and all('familial: ' in x for x in err.splitlines())
  folder = alone / 'evaluation' / '0'
  names = sorted(path.name for path in folder.iterdir())
  assert names == ['decoding.json', 'evaluation.json']
  values = json.loads((folder / 'decoding.json').read_text())
  assert [s['detail'] for s in values['speeds']] == ['exit 1'] * 2
  assert values['speeds'][0]['layers'] == 1 and values['hops'] == []


@pytest.mark.slow
def test_measured_speeds_and_bytes(model, corpus, tmp_path, monkeypatch):
  monkeypatch.setattr(benchmark, '_REPEATS', 1)
  found = benchmark.measure(model, rows=(2,), corpus=corpus)
  assert [s.mode for s in found.speeds] == (
    ['exit'] * 3 + ['confidence'] * 2 + ['speculative'] * 2
  )
  assert {speed.tokens for speed in found.speeds} == {2 * 16}
  for speed in found.speeds[3:5]:
    assert speed.loss_increase <= evaluate.LOSS_INCREASE
    assert sum(speed.shares) == pytest.approx(1)
    assert speed.layers <= 1
  for to in (1, 2, 3):  # States go out of the first, and into the others.
    full, half, byte = (hop.bytes for hop in found.hops if hop.to == to)
    assert full > max(half, byte)  # Of 16 numbers, bytes are mostly headers.
  for hop in found.hops:
    assert (hop.state_error is None) == (hop.to == 1)
    assert (hop.loss_increase == 0) == (hop.dtype == 'float32' or hop.to == 1)
  assert all(hop.agree == 1 for hop in found.hops if hop.dtype == 'float32')
  benchmark.write(found, tmp_path)
  table = benchmark.text(found)
  assert 'speculative' in table and 'bytes a token both ways' in table
  assert 'states off by' in table
  saved = json.loads((tmp_path / 'decoding.json').read_text())
  assert len(saved['speeds']) == 7 and len(saved['hops']) == 9
  assert (tmp_path / 'decoding.png').stat().st_size > 10_000

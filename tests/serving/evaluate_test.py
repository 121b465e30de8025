import dataclasses
import json

import jax
import numpy as np
import pytest

from familial.convert import load
from familial.convert import segments
from familial.core import errors
from familial.core import storage
from familial.data import batches as batches_lib
from familial.data import tokenizers
from familial.model import flops
from familial.model import transformer
from familial.serving import benchmark
from familial.serving import decoding
from familial.serving import engine
from familial.serving import evaluate
from familial.serving import propagation
from familial.serving import sampling
from familial.serving import thresholds
from familial.training import evaluation as evaluation_lib
from familial.training import rows as rows_lib
from tests.serving.families import Family


@pytest.fixture(scope='module')
def model(run_config, shape, corpus, tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  config = run_config(
    shape(vocab_size=256, exits=(1, 2, 3), exit_kind='branch', tied=False)
  )
  params = jax.jit(transformer.init, static_argnums=0)(
    config.model, jax.random.key(0)
  )
  # More confident than fresh ones, and of different tokens.
  params['unembedding'] *= 4
  storage.write_json(folder / 'lineage.json', {'corpus': corpus.fingerprint})
  return load.Model(folder, 24, config, params, tokenizers.load(''), '')


@pytest.fixture(scope='module')
def heldout(model, corpus):
  return evaluate.heldout(model, None, corpus)


@pytest.fixture(scope='module')
def readings(model, heldout):
  return evaluate.readings(model.params, model.config.model, heldout, (1, 2, 3))


@pytest.fixture(scope='module')
def evaluation(model):
  return evaluate.evaluate(model)


def test_losses_are_those_of_training(
  model, corpus, heldout, evaluation, readings
):
  losses = evaluation_lib.losses(model.params, model.config.model, heldout)
  rows = rows_lib.of_evaluation(
    model.config, 'run', corpus.fingerprint, 24, 0.0, 1.0, losses,
    batches_lib.heldout_bytes_per_token(corpus, heldout), 'finished',
  )  # fmt: skip
  for score, row in zip(evaluation.exits, rows, strict=True):
    for name in ('exit', 'layer', 'params'):
      assert getattr(score, name) == row[name]
    for name in ('loss', 'loss_per_byte'):
      assert getattr(score, name) == pytest.approx(row[name], rel=1e-6)
    correct = readings.correct_GxWxL[score.exit - 1][readings.counted_WxL]
    assert score.accuracy == pytest.approx(correct.mean())
    assert sum(b.tokens for b in score.bins) == 500
  assert (evaluation.tokens, evaluation.windows) == (500, 16)
  assert (evaluation.corpus, evaluation.step) == (corpus.fingerprint, 24)


def test_readings_are_those_of_all_logits(model, heldout, readings):
  inputs, targets, weights = (
    np.concatenate([batch[key] for batch in heldout])
    for key in ('inputs_BxL', 'targets_BxL', 'weights_BxL')
  )
  counted, inside = weights > 0, readings.counted_WxL
  assert inside.sum() == counted.sum() == 500
  compiled = jax.jit(transformer.logits, static_argnums=1)
  for index, logits in enumerate(
    compiled(model.params, model.config.model, inputs)
  ):
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)[counted]
    nats = -np.take_along_axis(log_p, targets[counted][:, None], axis=1)[:, 0]
    np.testing.assert_allclose(
      readings.nats_GxWxL[index][inside], nats, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(
      readings.correct_GxWxL[index][inside],
      log_p.argmax(axis=1) == targets[counted],
    )
    for kind in sampling.CONFIDENCES:
      np.testing.assert_allclose(
        readings.confidences[kind][index][inside],
        sampling.confidence(log_p, kind),
        atol=1e-5,
      )


def test_some_exits_have_the_scores_that_they_have_among_all(model, evaluation):
  found = evaluate.evaluate(model, (1, 3))
  assert [score.exit for score in found.exits] == [1, 3]
  for score, same in zip(found.exits, evaluation.exits[::2], strict=True):
    np.testing.assert_allclose(score.loss, same.loss, rtol=1e-6)
    assert score.params == flops.params(model.config.model, score.exit)
  assert {len(o.shares) for o in found.curves['gap']} == {2}
  one = evaluate.evaluate(model, (2,))
  assert (one.curves, one.chosen, one.oracle) == ({}, {}, None)


def test_documents_are_kept_apart_as_in_training(model, corpus):
  data = dataclasses.replace(model.config.data, document_mask=True)
  config = dataclasses.replace(model.config, data=data)
  masked = dataclasses.replace(model, config=config)
  found = evaluate.evaluate(masked, (1, 3), tokens=4000)
  batches = evaluate.heldout(masked, 4000, corpus)
  losses = evaluation_lib.losses(model.params, config.model, batches)
  bytes_per_token = batches_lib.heldout_bytes_per_token(corpus, batches)
  assert found.tokens < 4000  # Starts of documents do not count.
  assert found.bytes_per_token == bytes_per_token < 1  # Their ends have none.
  for score, loss in zip(found.exits, losses[[0, 2]], strict=True):
    np.testing.assert_allclose(score.loss, loss, rtol=1e-6)
    np.testing.assert_allclose(
      score.loss_per_byte, loss / bytes_per_token, rtol=1e-6
    )
  readings = evaluate.readings(model.params, config.model, batches, (1, 3))
  rows = readings.documents_WxL
  expected = np.concatenate([batch['segments_BxL'] for batch in batches])
  np.testing.assert_array_equal(rows, expected[: len(rows)])
  assert rows.max() > 0


@pytest.mark.parametrize('exits', [(0,), (1, 4), (2, 1), (1, 1), ()])
def test_exits_that_do_not_exist_are_refused(model, exits):
  with pytest.raises(errors.UserError, match=r'exits?: .*'):
    evaluate.evaluate(model, exits)


def test_the_corpus_must_be_the_runs(model, corpus, tmp_path):
  moved = dataclasses.replace(model, folder=tmp_path)
  storage.write_json(tmp_path / 'lineage.json', {'corpus': 'other'})
  with pytest.raises(
    errors.UserError, match=f'other, not {corpus.fingerprint}'
  ):
    evaluate.evaluate(moved)
  storage.write_json(tmp_path / 'lineage.json', {'import': {}})  # Has none.
  assert evaluate.evaluate(moved).corpus == corpus.fingerprint


def test_a_diverged_model_is_refused(model):
  params = jax.tree.map(lambda leaf: leaf * np.nan, model.params)
  with pytest.raises(errors.UserError, match='diverged'):
    evaluate.evaluate(dataclasses.replace(model, params=params))


def test_a_single_window_has_no_errors(model):
  found = evaluate.evaluate(model, (1, 3), tokens=5)
  assert (found.tokens, found.windows) == (5, 1)
  assert found.exits[0].loss_error is None
  assert found.chosen['gap'].increase_low is None
  json.dumps(dataclasses.asdict(found), allow_nan=False)


def test_outcomes_are_those_of_decoding(model):
  """Exits and layers of text that a family generated."""
  done = []

  class Counted(engine.Engine):
    """Notes the layers and positions of each row that ends."""

    def forget(self, slot):
      depth = self.segment.model.segment_depths[self.segment.index]
      done.append(depth * int(self.seen[slot]))
      super().forget(slot)

  stages = [
    Counted(segment, slots=4, context=12)
    for segment in segments.split(model.params, model.config.model, 12)
  ]
  texts = decoding.generate(
    stages, [[65], [66], [67], [68]], decoding.Limits(12, 11),
    sampling.Policy(sampling.Sampling(temperature=1.0), threshold=0.6),
  )  # fmt: skip
  tokens = np.array([text.tokens for text in texts], np.int32)
  batch = {
    'inputs_BxL': tokens[:, :-1],
    'targets_BxL': tokens[:, 1:],
    'weights_BxL': np.ones(tokens[:, 1:].shape, np.float32),
  }
  outcome = thresholds.at(
    evaluate.readings(model.params, model.config.model, [batch], (1, 2, 3)),
    'max_prob',
    0.6,
  )
  exits = np.array([text.exits for text in texts])
  shares = [(exits == place).mean() for place in range(3)]
  assert 0 < min(shares)
  np.testing.assert_allclose(outcome.shares, shares)
  np.testing.assert_allclose(outcome.layers_deferred, sum(done) / exits.size)
  for fill, layers in (
    ('defer', outcome.layers_deferred),
    ('propagate', outcome.layers),
  ):
    places = benchmark.computed(texts, fill)
    np.testing.assert_allclose(np.array([1, 2, 3])[places].mean(), layers)


def propagated(model, heldout, readings, threshold):
  return propagation.at(
    model.params, model.config.model, heldout, readings, 'max_prob', threshold
  )


@pytest.mark.parametrize(('threshold', 'place'), [(2.0, 2), (0.0, 0)])
def test_without_a_choice_propagation_is_an_exit(
  model, heldout, readings, threshold, place
):
  found = propagated(model, heldout, readings, threshold)
  nats = readings.nats_GxWxL[place][readings.counted_WxL]
  assert found.loss == pytest.approx(nats.mean(), rel=1e-6)
  assert found.shares[place] == 1


def test_propagation_equals_passes_that_are_told_who_left(
  model, heldout, readings
):
  found = propagated(model, heldout, readings, 0.6)
  made = Family()
  made.params, made.config = model.params, model.config.model
  nats, places = [], []
  for batch in heldout:
    for inputs, targets, weights in zip(
      batch['inputs_BxL'], batch['targets_BxL'], batch['weights_BxL'],
      strict=True,
    ):  # fmt: skip
      left = np.full(32, 2)
      for place in range(2):  # Who left before is known when an exit is read.
        logits = made.frozen(inputs, left)[place]
        sure = np.asarray(sampling.confidence(logits, 'max_prob')) >= 0.6
        left = np.where((left > place) & sure, place, left)
      logits = made.frozen(inputs, left)
      own = np.take_along_axis(logits, left[None, :, None], 0)[0]
      own = own - np.log(np.exp(own).sum(-1, keepdims=True))
      hit = np.take_along_axis(own, targets[:, None], 1)[:, 0]
      nats.append(-hit[weights > 0])
      places.append(left[weights > 0])
  assert found.loss == pytest.approx(np.concatenate(nats).mean(), rel=1e-5)
  shares = np.bincount(np.concatenate(places), minlength=3) / 500
  np.testing.assert_allclose(found.shares, shares, atol=1e-9)
  assert 0.02 < shares[0] < 0.98
  exact = thresholds.at(readings, 'max_prob', 0.6)
  assert abs(found.loss - exact.loss) > 1e-4


def test_accuracy_and_calibration_are_of_counted_tokens(readings, evaluation):
  for index, score in enumerate(evaluation.exits):
    correct = readings.correct_GxWxL[index][readings.counted_WxL]
    sure = readings.confidences['max_prob'][index][readings.counted_WxL]
    assert score.accuracy == pytest.approx(correct.mean())
    assert sum(b.tokens for b in score.bins) == 500
    assert score.bins == thresholds.reliability(sure, correct)
    assert score.calibration_error == thresholds.calibration_error(score.bins)


def test_the_error_of_a_loss_is_that_of_windows(readings, evaluation):
  rng = np.random.default_rng(0)
  tokens = readings.counted_WxL.sum(axis=1)
  for index, score in enumerate(evaluation.exits):
    nats = evaluation_lib.by_window(
      readings.nats_GxWxL[index], readings.counted_WxL
    )
    drawn = rng.integers(0, len(nats), (4000, len(nats)))
    means = nats[drawn].sum(axis=1) / tokens[drawn].sum(axis=1)
    np.testing.assert_allclose(score.loss_error, means.std(), rtol=0.1)

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
from familial.serving import sampling
from familial.serving import thresholds
from familial.training import evaluation as evaluation_lib
from familial.training import rows as rows_lib


@pytest.fixture(scope='module')
def model(run_config, shape, corpus, tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  config = run_config(
    shape(vocab_size=256, exits=(1, 2, 3), exit_kind='branch', tied=False)
  )
  params = jax.jit(transformer.init, static_argnums=0)(
    config.model, jax.random.key(0)
  )
  # Surer than fresh ones, and of different tokens.
  params['unembedding'] *= 4
  storage.write_json(folder / 'lineage.json', {'corpus': corpus.fingerprint})
  return load.Model(folder, 24, config, params, tokenizers.load(''), '')


@pytest.fixture(scope='module')
def heldout(model, corpus):
  train = model.config.train
  return batches_lib.heldout(
    corpus, model.config.data, train.eval_tokens, train.eval_batch_size
  )


@pytest.fixture(scope='module')
def evaluation(model):
  return evaluate.evaluate(model)


def read(model, batches, exits=(1, 2, 3)):
  return evaluate.readings(model.params, model.config.model, batches, exits)


def test_losses_are_those_of_training(model, corpus, heldout, evaluation):
  losses = evaluation_lib.losses(model.params, model.config.model, heldout)
  found = [score.loss for score in evaluation.exits]
  np.testing.assert_allclose(found, losses, rtol=1e-6)
  rows = rows_lib.of_evaluation(
    model.config, 'run', corpus.fingerprint, 24, 0.0, 1.0, losses,
    batches_lib.heldout_bytes_per_token(corpus, heldout), 'finished',
  )  # fmt: skip
  for score, row in zip(evaluation.exits, rows, strict=True):
    assert score.exit == row['exit']
    assert score.layer == row['layer']
    assert score.params == row['params']
    np.testing.assert_allclose(
      score.loss_per_byte, row['loss_per_byte'], rtol=1e-6
    )
  assert evaluation.tokens == 500
  assert evaluation.windows == 16
  assert (evaluation.corpus, evaluation.step) == (corpus.fingerprint, 24)


def test_readings_are_those_of_all_logits(model, heldout):
  found = read(model, heldout)
  inputs, targets, weights = (
    np.concatenate([batch[key] for batch in heldout])
    for key in ('inputs_BxL', 'targets_BxL', 'weights_BxL')
  )
  counted = weights > 0
  assert found.counted_WxL.sum() == counted.sum() == 500
  compiled = jax.jit(transformer.logits, static_argnums=1)
  for index, logits in enumerate(
    compiled(model.params, model.config.model, inputs)
  ):
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)[counted]
    nats = -np.take_along_axis(log_p, targets[counted][:, None], axis=1)[:, 0]
    ranked = np.sort(np.exp(log_p), axis=1)
    expected = {
      'max_prob': ranked[:, -1],
      'gap': ranked[:, -1] - ranked[:, -2],
      'entropy': 1 + np.sum(np.exp(log_p) * log_p, axis=1) / np.log(256),
    }
    inside = found.counted_WxL
    np.testing.assert_allclose(
      found.nats_GxWxL[index][inside], nats, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(
      found.correct_GxWxL[index][inside],
      log_p.argmax(axis=1) == targets[counted],
    )
    assert found.confidences.keys() == expected.keys()
    for kind, values in expected.items():
      np.testing.assert_allclose(
        found.confidences[kind][index][inside], values, atol=1e-5
      )


def test_chunks_change_nothing(model, heldout, monkeypatch):
  whole = read(model, heldout)
  # 8 x 32 positions, 100 at a time and what is over.
  monkeypatch.setattr(evaluate, '_LOGITS', 100 * 256)
  chunked = read(model, heldout)
  np.testing.assert_array_equal(chunked.correct_GxWxL, whole.correct_GxWxL)
  np.testing.assert_allclose(
    chunked.nats_GxWxL, whole.nats_GxWxL, rtol=1e-5, atol=1e-5
  )
  for kind in sampling.CONFIDENCES:
    np.testing.assert_allclose(
      chunked.confidences[kind], whole.confidences[kind], atol=1e-5
    )


def test_logits_of_a_large_vocabulary_are_never_there_at_once(model):
  large = dataclasses.replace(model.config.model, vocab_size=32_000)
  batch = {
    'inputs_BxL': np.zeros((32, 128), np.int32),
    'targets_BxL': np.zeros((32, 128), np.int32),
    'weights_BxL': np.ones((32, 128), np.float32),
  }
  params = jax.eval_shape(lambda: transformer.init(large, jax.random.key(0)))
  at_once = evaluate._LOGITS // large.vocab_size
  compiled = evaluate._read.lower(
    large, (1, 3), at_once, params, batch
  ).compile()
  one_exit = 4 * 32 * 128 * 32_000
  assert compiled.memory_analysis().temp_size_in_bytes < one_exit


def test_accuracy_and_calibration_are_of_tokens_that_count(
  model, heldout, evaluation
):
  found = read(model, heldout)
  for index, score in enumerate(evaluation.exits):
    correct = found.correct_GxWxL[index][found.counted_WxL]
    sure = found.confidences['max_prob'][index][found.counted_WxL]
    np.testing.assert_allclose(score.accuracy, correct.mean())
    assert sum(b.tokens for b in score.bins) == 500
    bins = thresholds.reliability(sure, correct)
    assert score.bins == bins
    assert score.calibration_error == thresholds.calibration_error(bins)


def test_the_error_of_a_loss_is_that_of_windows(model, heldout, evaluation):
  found = read(model, heldout)
  rng = np.random.default_rng(0)
  for index, score in enumerate(evaluation.exits):
    nats = evaluation_lib.by_window(found.nats_GxWxL[index], found.counted_WxL)
    tokens = found.counted_WxL.sum(axis=1)
    drawn = rng.integers(0, len(nats), (4000, len(nats)))
    means = nats[drawn].sum(axis=1) / tokens[drawn].sum(axis=1)
    np.testing.assert_allclose(score.loss_error, means.std(), rtol=0.1)


def test_a_part_of_the_exits_is_what_they_are_among_all(model, evaluation):
  found = evaluate.evaluate(model, (1, 3))
  assert [score.exit for score in found.exits] == [1, 3]
  for score, same in zip(found.exits, evaluation.exits[::2], strict=True):
    np.testing.assert_allclose(score.loss, same.loss, rtol=1e-6)
    assert score.params == flops.params(model.config.model, score.exit)
  assert {len(o.shares) for o in found.curves['gap']} == {2}
  one = evaluate.evaluate(model, (2,))
  assert (one.curves, one.chosen, one.oracle) == ({}, {}, None)


def test_documents_are_kept_apart_where_they_were_in_training(model, corpus):
  data = dataclasses.replace(model.config.data, document_mask=True)
  config = dataclasses.replace(model.config, data=data)
  apart = dataclasses.replace(model, config=config)
  found = evaluate.evaluate(apart, (1, 3), tokens=4000)
  batches = batches_lib.heldout(corpus, data, 4000, 8)
  losses = evaluation_lib.losses(model.params, config.model, batches)
  bytes_per_token = batches_lib.heldout_bytes_per_token(corpus, batches)
  assert found.tokens < 4000  # Starts of documents do not count.
  assert found.bytes_per_token == bytes_per_token < 1  # Their ends have none.
  np.testing.assert_allclose(
    [score.loss for score in found.exits], losses[[0, 2]], rtol=1e-6
  )
  np.testing.assert_allclose(
    [score.loss_per_byte for score in found.exits],
    losses[[0, 2]] / bytes_per_token,
    rtol=1e-6,
  )
  rows = read(apart, batches, (1, 3)).documents_WxL
  expected = np.concatenate([batch['segments_BxL'] for batch in batches])
  np.testing.assert_array_equal(rows, expected[: len(rows)])
  assert rows.max() > 0


@pytest.mark.parametrize('exits', [(0,), (1, 4), (2, 1), (1, 1), ()])
def test_what_is_no_exit_is_refused(model, exits):
  with pytest.raises(errors.UserError, match=r'exits?: .*'):
    evaluate.evaluate(model, exits)


def test_another_corpus_is_refused(model, corpus, tmp_path):
  storage.write_json(tmp_path / 'lineage.json', {'corpus': 'other'})
  moved = dataclasses.replace(model, folder=tmp_path)
  with pytest.raises(
    errors.UserError, match=f'other, not {corpus.fingerprint}'
  ):
    evaluate.evaluate(moved)


def test_an_import_has_no_corpus_of_its_own(model, corpus, tmp_path):
  storage.write_json(tmp_path / 'lineage.json', {'import': {}})
  moved = dataclasses.replace(model, folder=tmp_path)
  assert evaluate.evaluate(moved).corpus == corpus.fingerprint


def test_a_diverged_model_is_refused(model):
  params = jax.tree.map(lambda leaf: leaf * np.nan, model.params)
  with pytest.raises(errors.UserError, match='diverged'):
    evaluate.evaluate(dataclasses.replace(model, params=params))


def test_what_is_written_is_what_was_measured(evaluation, tmp_path):
  out = tmp_path / 'new' / 'folder'
  text = evaluate.write(evaluation, out, draw=False)
  assert [path.name for path in out.iterdir()] == ['evaluation.json']
  values = json.loads((out / 'evaluation.json').read_text())
  assert values.pop('schema') == storage.SCHEMA
  assert values == json.loads(json.dumps(dataclasses.asdict(evaluation)))
  lines = text.splitlines()
  assert str(out / 'evaluation.json') in lines[-1]
  assert len({len(line) for line in lines[:4]}) == 1
  for line, score in zip(lines[1:4], evaluation.exits, strict=True):
    assert line.split()[0] == str(score.exit)
    assert f'{score.loss:.4f}' in line
  for kind, outcome in evaluation.chosen.items():
    line = next(line for line in lines if line.split()[:1] == [kind])
    assert f'{outcome.threshold:.6g}' in line
    assert f'{outcome.layers_deferred:.2f}' in line


def test_a_single_window_is_written_without_errors(model, tmp_path):
  found = evaluate.evaluate(model, (1, 3), tokens=5)
  assert (found.tokens, found.windows) == (5, 1)
  evaluate.write(found, tmp_path, draw=False)
  values = json.loads((tmp_path / 'evaluation.json').read_text())
  assert values['exits'][0]['loss_error'] is None
  assert values['chosen']['gap']['increase_low'] is None


def test_decoding_does_what_the_outcome_says(model):
  """Exits and layers of text that a family wrote, as it wrote it."""
  done = []

  class Counted(engine.Tier):
    """A tier that notes how many positions of a row it had taken in."""

    def forget(self, slot):
      done.append(self.segment.depth * int(self.seen[slot]))
      super().forget(slot)

  stages = [
    Counted(segment, slots=4, context=12)
    for segment in segments.split(model.params, model.config.model, 12)
  ]
  written = decoding.generate(
    stages, [[65], [66], [67], [68]], context=12, max_tokens=11, stop=-1,
    policy=sampling.Policy(sampling.Sampling(temperature=1.0), threshold=0.6),
  )  # fmt: skip
  tokens = np.array([completion.tokens for completion in written], np.int32)
  found = read(
    model,
    [
      {
        'inputs_BxL': tokens[:, :-1],
        'targets_BxL': tokens[:, 1:],
        'weights_BxL': np.ones(tokens[:, 1:].shape, np.float32),
      }
    ],
  )
  outcome = thresholds.at(found, 'max_prob', 0.6)
  chosen = np.array([completion.exits for completion in written])
  shares = [(chosen == place).mean() for place in range(3)]
  assert 0 < min(shares)
  np.testing.assert_allclose(outcome.shares, shares)
  taken = sum(done) / chosen.size
  np.testing.assert_allclose(outcome.layers_deferred, taken)
  layers = np.array([1, 2, 3])[benchmark._taken(written, 'defer')]
  np.testing.assert_allclose(layers.mean(), taken)
  once = np.array([1, 2, 3])[benchmark._taken(written, 'propagate')]
  np.testing.assert_allclose(once.mean(), outcome.layers)

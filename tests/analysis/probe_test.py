import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from familial.analysis import layers
from familial.analysis import probe
from familial.analysis import trajectories
from familial.convert import export
from familial.core import errors
from familial.core import storage
from familial.data import batches as batches_lib
from familial.model import transformer
from familial.training import evaluation
from tests.analysis import paths
from tests.analysis import probes

DEPTH = 4
SCHEMA_1 = pathlib.Path(__file__).parents[1] / 'data' / 'schema_1'


@pytest.fixture(scope='module')
def model(shape, text_data, corpus, untrained, tmp_path_factory):
  """A model that is written as a folder, and read again by the command."""
  config = shape(
    vocab_size=256, depth=DEPTH, exits=(2, DEPTH), exit_kind='branch'
  )
  folder = tmp_path_factory.mktemp('probe') / 'run'
  made = untrained(folder, config, text_data)
  train = dataclasses.replace(
    made.config.train, eval_tokens=500, eval_batch_size=8
  )
  made = dataclasses.replace(
    made, config=dataclasses.replace(made.config, train=train)
  )
  export.write(
    folder, made.config, {'corpus': corpus.fingerprint}, made.params, ''
  )
  return made


@pytest.fixture(scope='module')
def batches(model, corpus):
  return batches_lib.heldout(corpus, model.config.data, 500, 8)


@pytest.fixture(scope='module')
def found(model, batches, corpus):
  return layers.measure(
    model.params, model.config.model, batches, corpus.separator
  )


@pytest.fixture(scope='module')
def together(batches):
  """All batches as one, and which of its positions count."""
  whole = {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}
  return whole, whole['weights_BxL'] > 0


@pytest.fixture(scope='module')
def losses(together):
  """Computes a model's loss at every position by its plain logits."""
  whole, counted = together

  def compute(params, config, last=True):
    logits = jax.jit(transformer.logits, static_argnums=1)(
      params, config, whole['inputs_BxL']
    )
    nats = []
    for each in logits:
      log_p = np.asarray(jax.nn.log_softmax(each))
      targets = whole['targets_BxL'][..., None]
      nats.append(-np.take_along_axis(log_p, targets, -1)[..., 0][counted])
    return nats

  return compute


def mean(found, name):
  return trajectories.pool(found.network.moments[name]).mean


def every_layer(model, order):
  """A dense model with an exit, the last one's, after each layer of an order."""
  params, config = model.params, model.config.model
  exits = tuple(range(1, len(order) + 1))
  trunk = transformer.trunk(params, 2)
  chosen = jax.tree.map(lambda leaf: leaf[np.array(order)], trunk)
  params = {
    'embedding': params['embedding'],
    **transformer.cut(chosen, exits),
    **{f'exit_{exit_}': params['exit_2'] for exit_ in exits},
  }
  return params, dataclasses.replace(
    config, depth=len(order), exits=exits, exit_kind='head'
  )


def test_states_are_those_of_the_model(model, found, together):
  whole, counted = together
  params, config = every_layer(model, range(DEPTH))
  states = jax.jit(transformer.exit_states, static_argnums=1)(
    params, config, whole['inputs_BxL']
  )
  states = [params['embedding'][whole['inputs_BxL']], *states]
  values, settled = jax.jit(trajectories.measure)(np.stack(states))
  for name, value in values.items():
    value = np.asarray(value, np.float64)[:, counted]
    moments = trajectories.pool(found.network.moments[name])
    np.testing.assert_allclose(moments.count, 500)
    np.testing.assert_allclose(
      moments.mean, value.mean(1), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
      trajectories.sd(moments), value.std(1, ddof=1), rtol=1e-4, atol=1e-5
    )
  np.testing.assert_array_equal(
    found.network.settled.sum(0),
    np.bincount(np.asarray(settled)[counted], minlength=DEPTH + 1),
  )
  assert (found.tokens, found.windows) == (500, 16)
  assert found.network.settled.shape == (16, DEPTH + 1)


def test_losses_are_those_of_the_heads(model, found, batches, losses):
  lens = [x.mean() for x in losses(*every_layer(model, range(DEPTH)))]
  np.testing.assert_allclose(mean(found, 'loss')[1:], lens, atol=1e-5)
  exits = evaluation.losses(model.params, model.config.model, batches)
  np.testing.assert_allclose(mean(found, 'exit_loss'), exits, atol=1e-5)


def test_what_a_layer_costs_is_a_model_without_it(model, found, losses):
  whole = mean(found, 'loss')[-1]
  skipped, swapped = [], []
  for layer in range(DEPTH):
    order = list(range(DEPTH))
    del order[layer]
    skipped.append(losses(*every_layer(model, order))[-1].mean() - whole)
  for layer in range(DEPTH - 1):
    order = list(range(DEPTH))
    order[layer : layer + 2] = layer + 1, layer
    swapped.append(losses(*every_layer(model, order))[-1].mean() - whole)
  np.testing.assert_allclose(mean(found, 'skip'), skipped, atol=1e-5)
  np.testing.assert_allclose(mean(found, 'swap'), swapped, atol=1e-5)
  assert np.abs(skipped).min() > 1e-3


def test_batches_change_nothing(model, found, batches, corpus):
  """The same windows in another order of rows: other batches, other groups."""
  order = np.random.default_rng(0).permutation(16)
  whole = {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}
  mixed = [
    {key: value[order[rows]] for key, value in whole.items()}
    for rows in (slice(0, 8), slice(8, 16))
  ]
  again = layers.measure(
    model.params, model.config.model, mixed, corpus.separator
  )
  for name in found.network.moments:
    np.testing.assert_allclose(mean(again, name), mean(found, name), atol=1e-6)
  for name, counts in found.network.bins.items():
    # A value on an edge may change its bin.
    assert np.abs(counts - again.network.bins[name]).sum() <= 2
  for name, counts in found.early.items():
    np.testing.assert_array_equal(counts, again.early[name])


def test_early_stops_by_position(found, together, corpus):
  whole, counted = together
  inputs = whole['inputs_BxL']
  tokens = {'by_position': np.zeros(16, int), 'by_place': np.zeros(16, int)}
  for row, column in zip(*np.nonzero(counted), strict=True):
    tokens['by_position'][int(np.log2(column + 1))] += 1
    ends = np.flatnonzero(inputs[row, :column] == corpus.separator)
    if len(ends):
      tokens['by_place'][int(np.log2(column - ends[-1]))] += 1
  assert tokens['by_place'].sum() > 10
  for name, expected in tokens.items():
    np.testing.assert_array_equal(found.early[name][:, 1], expected)
  early = found.network.settled.sum(0)[: int(0.75 * DEPTH) + 1].sum()
  assert found.early['by_position'][:, 0].sum() == early


@pytest.fixture
def measured(model, found, corpus):
  """The probe of the model."""
  return probe.of_measurement(
    found,
    dataclasses.replace(
      probes.of_network(found.network).model,
      exits=model.config.model.exits,
      fingerprint=corpus.fingerprint,
    ),
  )


@pytest.mark.slow
def test_the_command(model, measured, familial, tmp_path):
  status, out, err = familial(
    'probe', f'--checkpoint={model.folder}', f'--out={tmp_path}'
  )
  assert (status, err) == (0, '')
  assert out.count('\n') == 1 and measured.regime.regime in out
  read = probe.read(tmp_path / 'probe.json')
  assert read.model.exits == (2, DEPTH)
  assert read.model.fingerprint == measured.model.fingerprint
  assert read.quantities.keys() == measured.quantities.keys()
  for name, rows in measured.quantities.items():
    for one, other in zip(rows, read.quantities[name], strict=True):
      assert one.layer == other.layer and one.tokens == other.tokens
      assert other.mean == pytest.approx(one.mean, abs=1e-6)
  assert read.regime.regime == measured.regime.regime
  for name in ('trajectory', 'layers'):
    assert (tmp_path / f'{name}.png').stat().st_size > 10_000
  assert (tmp_path / 'index.html').exists()


def test_a_probe_is_read_back(measured, tmp_path):
  path = tmp_path / 'probe.json'
  probe.write(measured, path)
  read = probe.read(path)
  kept = dataclasses.replace(read, network=measured.network)
  assert kept == measured
  assert read.regime == measured.regime
  probe.write(read, tmp_path / 'again.json')
  assert (tmp_path / 'again.json').read_bytes() == path.read_bytes()


def test_numbers_of_a_probe_agree(measured):
  for name, rows in measured.quantities.items():
    first = rows[0].layer
    assert first == {
      'norm': 0, 'loss': 0, 'to_last': 0, 'remaining': 0, 'exit_loss': 2,
    }.get(name, 1)  # fmt: skip
    assert all(row.error >= 0 for row in rows)
    if name in trajectories.SCALES:
      assert all(list(r.quantiles) == sorted(r.quantiles) for r in rows)
  assert measured.settled[-1] == 1
  assert measured.early == measured.settled[DEPTH * 3 // 4]
  # Nearly what has settled by there: some tokens may leave again.
  at = {row.remaining: row.share for row in measured.early_at}
  assert measured.early <= at[trajectories.SETTLED]
  assert list(at.values()) == sorted(at.values())


@pytest.mark.parametrize(
  'name', ['probe', 'depth_regimes/probes/w8_d4_g2_seed0']
)
def test_a_probe_of_schema_1_is_read(name, tmp_path):
  path = SCHEMA_1 / (f'{name}.json' if '/' in name else f'{name}/{name}.json')
  values = json.loads(path.read_text())
  read = probe.read(path)
  probe.write(read, tmp_path / 'probe.json')
  again = json.loads((tmp_path / 'probe.json').read_text())
  assert values.keys() <= again.keys()
  for key in values.keys() - {'definitions', 'regime'}:
    assert again[key] == values[key]


@pytest.mark.slow
def test_several_depths(familial, tmp_path, monkeypatch):
  depths = {'a': 4, 'b': 8, 'c': 16}

  def of_checkpoint(folder, *_):
    states = paths.walk(depths[folder], 8, tokens=160)
    made = probes.of_network(trajectories.of_states(states, 8))
    model = dataclasses.replace(made.model, run='cell')
    return dataclasses.replace(made, model=model)

  monkeypatch.setattr(probe, 'of_checkpoint', of_checkpoint)
  status, out, err = familial(
    'probe', *(f'--checkpoint={name}' for name in depths), f'--out={tmp_path}'
  )
  assert (status, err) == (0, '')
  assert '3 models' in out
  read = storage.read_own(tmp_path / 'depth.json')
  assert read['depths'] == [4, 8, 16]
  assert -1.5 < read['angle_exponent']['value'] < -0.7
  assert read['regime']['regime'] == 'ensemble'
  assert (tmp_path / 'depth.png').exists()
  page = (tmp_path / 'index.html').read_text()
  for name in ('cell', 'cell_2', 'cell_3'):  # None replaces another.
    assert (tmp_path / name / 'probe.json').exists()
    assert f'href="{name}/index.html"' in page


def test_hugging_face_files_are_read_directly(
  shape, untrained, text_data, tmp_path, monkeypatch
):
  data = dataclasses.replace(text_data, seq_len=16)
  config = shape(vocab_size=256, exits=(3,))
  llama = untrained(tmp_path, config, data)
  export.to_hugging_face(llama, 1, tmp_path / 'llama')
  seen = {}

  def measured(params, model, batches, separator):
    seen.update(params=params, model=model, batches=batches)
    raise errors.UserError('enough')

  monkeypatch.setattr(layers, 'measure', measured)
  # It reads the default corpus: here the small one.
  load = probe.packing.load
  monkeypatch.setattr(
    probe.packing,
    'load',
    lambda found: load(
      dataclasses.replace(
        text_data, tokenizer=found.tokenizer, seq_len=found.seq_len
      )
    ),
  )
  with pytest.raises(errors.UserError, match=r'llama.*enough'):
    probe.of_checkpoint(tmp_path / 'llama', tokens=64, batch=4)
  assert seen['batches'][0]['inputs_BxL'].shape == (4, 16)
  assert seen['model'].exits == (3,)
  for key in ('embedding', 'segment_0'):
    jax.tree.map(
      np.testing.assert_array_equal, seen['params'][key], llama.params[key]
    )


@pytest.mark.parametrize(
  ('asked', 'said'),
  [
    ({'step': '7'}, ['7: no such']),
    ({'tokens': 100}, ['tokens: 100', '8 windows of 32', '256']),
    ({'context': 64}, ['context: 64', '32 positions']),
    ({'context': 1}, ['context: 1', 'at least 2 positions']),
  ],
)
def test_what_cannot_be_probed_is_one_line(model, asked, said):
  with pytest.raises(errors.UserError) as raised:
    probe.of_checkpoint(model.folder, **asked)
  assert '\n' not in str(raised.value)
  for each in said:
    assert each in str(raised.value)


def test_a_model_of_one_layer_is_refused(shape):
  single = shape(vocab_size=256, depth=1, exits=(1,))
  with pytest.raises(errors.UserError, match=r'1 layer.*at least 2'):
    layers.measure({}, single, [], 0)


def test_a_diverged_model_is_refused(model, batches, corpus):
  params = jax.tree.map(lambda leaf: leaf, model.params)
  params['embedding'] = params['embedding'] * np.nan
  with pytest.raises(errors.UserError, match=r'norm is not finite.*diverged'):
    layers.measure(params, model.config.model, batches, corpus.separator)

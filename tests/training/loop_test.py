import collections
import dataclasses
import gzip
import json
import os
import pathlib
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.model import flops
from familial.training import loop
from familial.training import optimizer
from familial.training import step as step_lib
from familial.training import timing
from tests.training import runs

# A run in a process of its own, which prints its devices and then each step.
_CHILD = """
import pickle, sys, time, jax
from familial.training import loop
def on_step(step):
  print(step, flush=True)
  time.sleep(0.05)
with open(sys.argv[1], 'rb') as file:
  config = pickle.load(file)
print(len(jax.devices()), flush=True)
loop.run(config, sys.argv[2], quiet=True, on_step=on_step)
"""


def _with(config, part, **changes):
  """Returns a run's config with changes to its model or data."""
  changed = dataclasses.replace(getattr(config, part), **changes)
  return dataclasses.replace(config, **{part: changed})


def test_rows_of_a_run(undisturbed, corpus):
  config, folder = undisturbed
  rows = storage.read_rows(folder / run_folder.ROWS)
  assert [(row['step'], row['exit'], row['status']) for row in rows] == [
    (8, 1, 'running'),
    (8, 2, 'running'),
    (16, 1, 'running'),
    (16, 2, 'running'),
    (24, 1, 'finished'),
    (24, 2, 'finished'),
  ]
  for row in rows:
    assert row['run'] == 'run'
    assert row['corpus'] == corpus.fingerprint
    assert row['tokens'] == row['step'] * 8 * 32
    windows = (len(corpus.train.tokens) - 1) // 32
    assert row['epochs'] == pytest.approx(row['tokens'] / (32 * windows))
    # Separators have no bytes.
    assert row['loss'] <= row['loss_per_byte'] < 1.02 * row['loss']
  assert rows[-1]['loss'] < rows[1]['loss'] < np.log(256)
  assert rows[-1]['loss'] < 4
  state = runs.state(config, folder)
  assert state.step == 24


def test_killed_and_resumed_it_is_the_same_to_the_bit(
  undisturbed, corpus, tmp_path
):
  config, expected = undisturbed
  folder = tmp_path / 'killed' / 'run'
  with runs.start(_CHILD, config, tmp_path / 'config', folder) as child:
    for line in child.stdout:
      if line == '13\n':
        child.send_signal(signal.SIGKILL)
        break
  assert child.returncode == -signal.SIGKILL
  assert run_folder.status(folder) == 'running'
  assert {
    row['step'] for row in storage.read_rows(folder / run_folder.ROWS)
  } == {8}
  steps = []
  loop.run(config, folder, corpus, quiet=True, on_step=steps.append)
  assert 8 < steps[0] < 16
  assert steps == list(range(steps[0], 25))
  runs.same(config, folder, expected)


def test_a_signal_saves_stops_and_resumes_to_the_bit(
  undisturbed, corpus, tmp_path, run_config
):
  _, expected = undisturbed
  config = run_config()  # Saves at evaluations and signals alone.
  folder = tmp_path / 'run'
  handler = signal.getsignal(signal.SIGTERM)

  def stop(step):
    if step == 10:
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(errors.Interrupted, match='stopped after step 11'):
    loop.run(config, folder, corpus, quiet=True, on_step=stop)
  assert signal.getsignal(signal.SIGTERM) == handler
  assert runs.state(config, folder).step == 11
  # Rows whose checkpoint did not come to be are written again, not twice.
  later = runs.rows(expected).splitlines(keepends=True)[2:4]
  (folder / run_folder.ROWS).write_bytes(runs.rows(folder) + b''.join(later))
  steps = []
  loop.run(config, folder, corpus, quiet=True, on_step=steps.append)
  assert steps[0] == 12
  runs.same(config, folder, expected)


def test_a_signal_is_answered_at_once_and_once(
  run_config, corpus, tmp_path, capfd
):
  said = []

  def stop(step):
    if step == 10:
      for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
        said.append(capfd.readouterr().err)

  with pytest.raises(errors.Interrupted):
    loop.run(run_config(), tmp_path / 'run', corpus, on_step=stop)
  first, second = said
  assert re.search(r'\nfamilial: stopping;.* within about [\d.]+ s\n', first)
  assert 'stopping' not in second


def test_a_run_goes_on_with_its_own_corpus_only(run_config, corpus, tmp_path):
  def stop(step):
    if step == 3:
      os.kill(os.getpid(), signal.SIGTERM)

  config = run_config(evaluations=1)
  with pytest.raises(errors.Interrupted):
    loop.run(config, tmp_path / 'run', corpus, quiet=True, on_step=stop)
  assert not (tmp_path / 'run' / run_folder.ROWS).exists()
  other = dataclasses.replace(corpus, fingerprint='another')
  with pytest.raises(errors.UserError) as raised:
    loop.run(config, tmp_path / 'run', other, quiet=True)
  for part in (corpus.fingerprint, 'another', 'workdir'):
    assert part in str(raised.value)
  assert loop.run(config, tmp_path / 'run', corpus, quiet=True) == 'finished'


def test_a_loss_that_is_not_finite_ends_a_run(
  undisturbed, corpus, run_config, tmp_path, capsys
):
  config = run_config(base_lr=1e35, warmup_steps=0, checkpoint_seconds=0.0)
  folder = tmp_path / 'run'
  assert loop.run(config, folder, corpus, quiet=True) == 'diverged'

  def refuse(constant):
    raise AssertionError(constant)

  before = runs.rows(folder)
  rows = [
    json.loads(line, parse_constant=refuse) for line in before.splitlines()
  ]
  step = rows[0]['step']
  assert [(row['exit'], row['step']) for row in rows] == [(1, step), (2, step)]
  said = f'cell: the loss is not finite at step {step}'
  assert said in capsys.readouterr().err
  for row in rows:
    assert (row['status'], row['loss'], row['loss_per_byte']) == (
      'diverged',
      None,
      None,
    )
  assert loop.run(config, folder, corpus, quiet=True) == 'diverged'
  # Killed just before it was said, it says the same: no state that gave such a
  # loss was saved.
  assert runs.state(config, folder).step == step - 1
  (folder / run_folder.ROWS).unlink()
  assert loop.run(config, folder, corpus, quiet=True) == 'diverged'
  assert runs.rows(folder) == before


def test_runs_of_a_shape_share_their_programs(
  undisturbed, corpus, run_config, tmp_path
):
  functions = (step_lib.init, step_lib.train)
  before = [function._cache_size() for function in functions]
  config = run_config(
    steps=3, base_lr=0.1, schedule='wsd', warmup_steps=1, weight_decay=0.3,
    weighting='linear', weighting_end='uniform', clip=0.0, seed=5, beta2=0.9,
    evaluations=1,
  )  # fmt: skip
  assert loop.run(config, tmp_path / 'run', corpus, quiet=True) == 'finished'
  speed, _ = timing.measure(config, steps=2)
  assert 0 < speed < 1e15
  assert [function._cache_size() for function in functions] == before


def _traced(folder):
  """Returns the names of what a run's only trace holds, by how often."""
  [path] = folder.glob('profile/plugins/profile/*/*.trace.json.gz')
  [whole] = folder.glob('profile/plugins/profile/*/*.xplane.pb')
  assert whole.stat().st_size > 1000
  events = json.loads(gzip.decompress(path.read_bytes()))['traceEvents']
  return collections.Counter(event.get('name') for event in events)


def test_a_trace_of_steady_steps_changes_no_row(
  undisturbed, corpus, run_config, tmp_path, capsys
):
  _, expected = undisturbed
  config = run_config()  # Saves at evaluations alone.
  folder = tmp_path / 'run'
  assert (
    loop.run(config, folder, corpus, quiet=True, profile=True) == 'finished'
  )
  assert runs.rows(folder) == runs.rows(expected)
  # Steps 4 to 8: no compiling, and no evaluation.
  names = _traced(folder)
  assert names['PjitFunction(advance)'] in (5, 10)  # Some say it twice.
  assert not any('losses' in str(name) for name in names)
  assert not (expected / 'profile').exists()
  short = run_config(steps=3, evaluations=1, warmup_steps=1)
  loop.run(short, tmp_path / 'short', corpus, quiet=True, profile=True)
  assert 'short/profile: no trace' in capsys.readouterr().err
  assert not (tmp_path / 'short' / 'profile').exists()


def test_gradients_are_compared_where_asked(corpus, run_config, tmp_path):
  config = run_config(steps=4, evaluations=2, gradients=True)
  folder = tmp_path / 'run'
  assert loop.run(config, folder, corpus, quiet=True) == 'finished'
  rows = storage.read_rows(folder / run_folder.GRADIENTS)
  assert [(r['step'], r['exit_a'], r['exit_b']) for r in rows] == [
    (2, 1, 2),
    (4, 1, 2),
  ]
  assert all(-1 <= row['cosine'] <= 1 for row in rows)


def test_documents_stay_apart_where_asked(run_config, text_data, tmp_path):
  # The same batches, but for what may be seen: the losses differ.
  last = {}
  for mask in (False, True):
    data = dataclasses.replace(text_data, document_mask=mask)
    config = dataclasses.replace(run_config(steps=4, evaluations=1), data=data)
    folder = tmp_path / str(mask)
    assert loop.run(config, folder, quiet=True) == 'finished'
    last[mask] = [
      row['loss'] for row in storage.read_rows(folder / run_folder.ROWS)
    ]
  assert np.isfinite(last[True]).all() and last[True] != last[False]


def test_a_stop_during_the_last_step_is_heard(corpus, run_config, tmp_path):
  config = run_config(steps=3, evaluations=1, warmup_steps=1)
  folder = tmp_path / 'run'

  def stop(step):
    if step == 3:
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(errors.Interrupted):
    loop.run(config, folder, corpus, quiet=True, on_step=stop)
  assert run_folder.status(folder) == 'finished'
  assert loop.run(config, folder, corpus, quiet=True) == 'finished'


def test_progress_has_a_row_at_every_step_of_a_short_run(
  undisturbed, corpus, run_config, tmp_path
):
  config = run_config(steps=130, evaluations=2, schedule='wsd')
  loop.run(config, tmp_path / 'run', corpus, quiet=True)
  rows = storage.read_rows(tmp_path / 'run' / run_folder.PROGRESS)
  assert [row['step'] for row in rows] == list(range(2, 131, 2))
  for row in rows:
    assert set(row) == {
      'step', 'tokens', 'loss', 'gradient_norm', 'rate', 'tokens_per_second',
      'flops_per_second', 'seconds_per_step',
    }  # fmt: skip
    assert row['tokens'] == row['step'] * 8 * 32
    assert row['tokens_per_second'] > 0
    assert row['flops_per_second'] == pytest.approx(
      row['tokens_per_second'] * flops.train(config.model, 32)
    )
  hyper = optimizer.hyper(config.train, config.model.exits)
  np.testing.assert_allclose(
    [row['rate'] for row in rows],
    [
      0.02 * float(optimizer.schedule(jnp.int32(row['step'] - 1), hyper))
      for row in rows
    ],
    rtol=1e-5,
  )


def test_exits_on_a_frozen_trunk(
  corpus, run_config, shape, tmp_path, monkeypatch
):
  dense = run_config(
    shape(vocab_size=256, depth=2, exits=(2,)), steps=4, evaluations=1
  )
  assert loop.run(dense, tmp_path / 'dense', corpus, quiet=True) == 'finished'
  model = shape(vocab_size=256, depth=2, exits=(1, 2), exit_kind='separate')
  config = run_config(
    model, steps=6, evaluations=2, trained='exits', init_from='../dense'
  )
  folder = tmp_path / 'exits'
  assert loop.run(config, folder, corpus, quiet=True) == 'finished'

  parent, child = (
    runs.state(dense, tmp_path / 'dense'),
    runs.state(config, folder),
  )
  parent, child = parent.params, child.params
  trunk = jax.tree.map(
    lambda *leaves: np.concatenate(leaves),
    child['segment_0'],
    child['segment_1'],
  )
  jax.tree.map(np.testing.assert_array_equal, trunk, parent['segment_0'])
  jax.tree.map(np.testing.assert_array_equal, child['exit_2'], parent['exit_1'])
  np.testing.assert_array_equal(child['embedding'], parent['embedding'])
  assert (np.asarray(child['exit_1']['norm']['gain']) != 1).all()

  before = storage.read_rows(tmp_path / 'dense' / run_folder.ROWS)[-1]
  rows = storage.read_rows(folder / run_folder.ROWS)
  for row in rows[1::2]:
    assert row['loss'] == pytest.approx(before['loss'], abs=1e-5)
  assert rows[2]['loss'] < rows[0]['loss']
  assert rows[-1]['flops'] == before['flops'] + 6 * 8 * 32 * flops.train(
    model, 32, 'exits'
  )
  lineage = storage.read_json(folder / 'lineage.json')
  assert lineage['parent'] == 'dense'
  assert lineage['inherited_flops'] == before['flops']

  # What is not such a parent is refused.
  with pytest.raises(errors.UserError, match=r'train\.init_from: .*\bexits2'):
    missing = run_config(model, trained='exits', init_from='../exits2')
    loop.run(missing, tmp_path / 'a', corpus, quiet=True)
  for other, key in (
    (
      run_config(dense.model, init_from='../exits'),
      'model.exits',
    ),
    (_with(config, 'model', heads=2), 'model.heads'),
    (_with(config, 'model', base_width=64), 'model.base_width'),
    (_with(config, 'model', rope_theta=1e5), 'model.rope_theta'),
  ):
    match = rf'^train\.init_from: .* {key} = .*needs'
    with pytest.raises(errors.UserError, match=match):
      loop.run(other, tmp_path / 'b', corpus, quiet=True)
    assert not (tmp_path / 'b').exists()

  # How the same is computed is no part of it: this one begins to train.
  class Begun(Exception):
    pass

  def train(model, trained, state, *unused):
    jax.tree.map(
      np.testing.assert_array_equal, state.params['exit_2'], child['exit_2']
    )
    raise Begun

  monkeypatch.setattr(step_lib, 'train', train)
  other = _with(config, 'model', attention='plain', unroll=False, loss_chunk=8)
  with pytest.raises(Begun):
    loop.run(other, tmp_path / 'c', corpus, quiet=True)


@pytest.mark.slow
def test_eight_devices_train_as_one_does(undisturbed, tmp_path):
  config, expected = undisturbed
  folder = tmp_path / 'eight' / 'run'
  path = tmp_path / 'config'
  with runs.start(_CHILD, config, path, folder, eight=True) as child:
    printed = child.stdout.read().split()
  assert child.returncode == 0
  assert printed == ['8', *map(str, range(1, 25))]
  losses, one = (
    [
      row['loss']
      for row in storage.read_rows(pathlib.Path(f) / run_folder.ROWS)
    ]
    for f in (folder, expected)
  )
  np.testing.assert_allclose(losses, one, rtol=0, atol=1e-5)


def test_it_pauses_where_it_is_told_and_goes_on_to_the_bit(
  undisturbed, corpus, tmp_path
):
  config, expected = undisturbed
  folder, ends = tmp_path / 'run', {5, 15}
  assert not ends & config.train.evaluated
  for until in (5, 5, 15):  # Once there, it takes no step.
    status = loop.run(config, folder, corpus, until=until, quiet=True)
    assert status == 'running'
    rows = storage.read_rows(folder / run_folder.ROWS)
    assert rows[-1]['step'] == until
  assert loop.run(config, folder, corpus, quiet=True) == 'finished'
  rows = storage.read_rows(folder / run_folder.ROWS)
  kept = [row for row in rows if row['step'] not in ends]
  assert kept == storage.read_rows(expected / run_folder.ROWS)
  resumed, whole = (
    [
      (row['step'], row['loss'], row['gradient_norm'])
      for row in storage.read_rows(folder / run_folder.PROGRESS)
    ]
    for folder in (folder, expected)
  )
  assert [row[0] for row in whole] == list(range(1, 25))
  assert resumed == whole


def test_a_folder_of_another_run_is_refused(undisturbed, corpus, run_config):
  _, folder = undisturbed
  before = runs.rows(folder)
  with pytest.raises(errors.UserError, match=r'train\.seed = 0, not 1'):
    loop.run(
      run_config(checkpoint_seconds=0.0, seed=1), folder, corpus, quiet=True
    )
  assert runs.rows(folder) == before

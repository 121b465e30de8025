import dataclasses
import json
import math
import os
import pathlib
import random
import stat
import subprocess
import sys
import threading
import time

import pytest

from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.model import flops
from familial.training import rows as rows_lib


def _rows(config, losses=(2.5, 2.0), step=12, inherited=0.0, status='running'):
  return rows_lib.of_evaluation(
    config, 'folder', 'f00d', step, inherited, 0.5, losses, 0.8, status
  )


def test_a_row_is_the_contract_and_no_more(run_config):
  config = run_config()
  first, last = _rows(config)
  assert first.keys() == last.keys()
  tokens = 12 * 8 * 32
  trained = flops.train(config.model, 32)
  assert first == {
    'schema': storage.SCHEMA, 'run': 'folder', 'cell': 'cell', 'arm': 'grid',
    'budget': 1e9, 'step': 12, 'tokens': tokens, 'epochs': 0.5,
    'flops': tokens * trained,
    'flops_6nd': 6 * tokens * flops.params(config.model, 2),
    'exit': 1, 'exits': 2, 'exit_layers': [1, 2], 'layer': 1,
    'exit_kind': 'head', 'params': flops.params(config.model, 1),
    'params_embedding': 256 * 16,
    'params_full': flops.params(config.model, 2), 'width': 16, 'depth': 2,
    'heads': 4, 'kv_heads': 2, 'vocab': 256, 'batch_tokens': 8 * 32,
    'tokens_dense':
      tokens * trained / flops.train(config.model.submodel(1), 32),
    'loss': 2.5, 'loss_per_byte': 2.5 / 0.8, 'weighting': 'uniform',
    'weight': 0.5, 'base_lr': 0.02, 'seed': 0, 'corpus': 'f00d',
    'status': 'running',
  }  # fmt: skip
  assert (last['exit'], last['layer'], last['loss']) == (2, 2, 2.0)
  # The last exit costs more here than its dense model, for there are two.
  assert first['tokens_dense'] > last['tokens_dense'] > tokens


def test_rows_of_a_continued_run_hold_what_it_inherited(run_config):
  for row, fresh in zip(
    _rows(run_config(), inherited=1e6), _rows(run_config()), strict=True
  ):
    assert row['flops'] == fresh['flops'] + 1e6
    assert row['tokens_dense'] > fresh['tokens_dense']
    assert row['tokens'] == fresh['tokens']


def test_weights_of_a_row_are_those_of_its_step(run_config):
  config = run_config(weighting='uniform', weighting_end='final_one')
  weights = [[row['weight'] for row in _rows(config, step=s)] for s in (0, 12)]
  assert weights == [
    [0.5, 0.5],
    [pytest.approx(0.4), pytest.approx(0.75)],
  ]


def test_a_diverged_row_has_no_loss(run_config, tmp_path):
  storage.append(
    tmp_path / run_folder.ROWS, _rows(run_config(), None, status='diverged')
  )
  rows = storage.read_rows(tmp_path / run_folder.ROWS)
  assert [(row['loss'], row['loss_per_byte']) for row in rows] == 2 * [
    (None, None)
  ]
  assert run_folder.status(tmp_path) == 'diverged'


def test_rows_come_back_as_they_were(tmp_path):
  path = tmp_path / 'rows.jsonl'
  assert storage.read_rows(path) == []
  rows = [{'step': 1, 'loss': 0.1 + 0.2}, {'step': 2, 'loss': math.pi}]
  storage.append(path, rows[:1])
  storage.append(path, rows[1:])
  assert storage.read_rows(path) == rows


def test_a_half_written_last_line_is_left_out_and_dropped(tmp_path):
  path = tmp_path / 'rows.jsonl'
  storage.append(path, [{'step': 1, 'text': 'ü'}, {'step': 2, 'text': 'ü'}])
  whole = path.read_bytes()
  for cut in (2, 4, 9):  # Characters that are missing, newline included.
    path.write_bytes(whole + whole[: len(whole) // 2][:-cut])
    assert [row['step'] for row in storage.read_rows(path)] == [1, 2]
  run_folder.truncate(path, 2)
  assert path.read_bytes() == whole


def test_a_damaged_line_in_the_middle_is_refused(tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_text('{"step": 1}\n{"step": 2, \n{"step": 3}\n')
  with pytest.raises(errors.UserError, match=r'rows\.jsonl:2: not valid JSON'):
    storage.read_rows(path)


def test_truncate_keeps_a_steps_rows_to_the_byte(run_config, tmp_path):
  path = tmp_path / run_folder.ROWS
  rows = [_rows(run_config(), (1 / 3, 2 / 7), step=s) for s in (4, 8, 12)]
  storage.append(path, rows[0] + rows[1])
  before = path.read_bytes()
  storage.append(path, rows[2])
  run_folder.truncate(path, 11)
  assert path.read_bytes() == before
  run_folder.truncate(path, 3)
  assert storage.read_rows(path) == []


@pytest.mark.parametrize('status', ['running', 'finished', 'diverged'])
def test_status_is_that_of_the_last_whole_evaluation(
  run_config, tmp_path, status
):
  assert run_folder.status(tmp_path) == 'new'
  path = tmp_path / run_folder.ROWS
  rows = _rows(run_config(), status=status)
  storage.append(path, rows[:1])
  assert run_folder.status(tmp_path) == 'running'
  storage.append(path, rows[1:])
  assert run_folder.status(tmp_path) == status


def test_no_nan_is_ever_written(tmp_path):
  path = tmp_path / 'value.json'
  storage.write_json(path, {'loss': 1.5})
  for broken in (float('nan'), float('inf')):
    with pytest.raises(ValueError):
      storage.write_json(path, {'loss': broken})
    with pytest.raises(ValueError):
      storage.append(tmp_path / 'rows.jsonl', [{'loss': broken}])
  assert storage.read_json(path) == {'loss': 1.5}
  assert os.listdir(tmp_path) == ['value.json']


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path):
  path = tmp_path / 'value.json'
  storage.write_json(path, ['old'] * 9)
  with open(path) as reading:
    storage.write_json(path, 'new')
    assert json.load(reading) == ['old'] * 9
  assert storage.read_json(path) == 'new'


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'value.json'
  storage.write_json(path, 1)

  def no_space(descriptor):
    raise OSError('no space left')

  monkeypatch.setattr(os, 'fsync', no_space)
  with pytest.raises(errors.UserError, match='cannot be written: no space'):
    storage.write_json(path, 2)
  assert storage.read_json(path) == 1
  assert os.listdir(tmp_path) == ['value.json']


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
  (tmp_path / 'far').mkdir()
  target, link, chain = tmp_path / 'far' / 't', tmp_path / 'l', tmp_path / 'c'
  link.symlink_to('far/t')
  chain.symlink_to(link)
  for text in ('first', 'second'):  # The target is made, then replaced.
    storage.write_text(chain, text)
    assert target.read_text() == text
  old = os.stat(target).st_ino
  os.link(target, tmp_path / 'old')
  storage.write_text(link, 'third')
  assert link.is_symlink() and chain.is_symlink()
  assert os.stat(target).st_ino != old and target.read_text() == 'third'
  assert (tmp_path / 'old').read_text() == 'second'
  link.unlink()
  link.symlink_to('l')  # Leads nowhere.
  with pytest.raises(errors.UserError):
    storage.write_text(link, 'x')
  left = {path.name for path in tmp_path.rglob('*')}
  assert left == {'far', 't', 'l', 'c', 'old'}


def test_pipes_and_devices_are_written_to_and_stay(tmp_path):
  fifo = tmp_path / 'fifo'
  os.mkfifo(fifo)
  with subprocess.Popen(['cat', fifo], stdout=subprocess.PIPE) as reader:
    storage.write_json(fifo, [1])
    assert reader.communicate()[0] == b'[\n 1\n]\n'
  assert fifo.is_fifo() and list(tmp_path.iterdir()) == [fifo]
  storage.write_text('/dev/null', 'x')
  assert stat.S_ISCHR(os.stat('/dev/null').st_mode)
  with pytest.raises(errors.UserError, match='No space left'):
    storage.write_text('/dev/full', 'x')


@pytest.mark.parametrize('name', ['/dev/stdout', '/dev/fd/1', 'link'])
@pytest.mark.parametrize('to', ['pipe', 'file'])
def test_the_standard_output_is_written_to(tmp_path, name, to):
  (tmp_path / 'link').symlink_to('/dev/stdout')
  code = (
    'from familial.core import storage\n'
    'print("before")\n'
    f'storage.write_text({name!r}, "between\\n")\n'
    'print("after")\n'
  )
  command = [sys.executable, '-c', code]
  env = {**os.environ, 'PYTHONPATH': os.getcwd()}
  if to == 'pipe':
    out = subprocess.run(
      command, cwd=tmp_path, env=env, capture_output=True, text=True
    ).stdout
  else:
    with open(tmp_path / 'out', 'w') as file:
      subprocess.run(command, cwd=tmp_path, env=env, stdout=file)
    out = (tmp_path / 'out').read_text()
  assert out.split() == ['before', 'between', 'after']
  assert (tmp_path / 'link').is_symlink()
  assert pathlib.Path('/dev/stdout').is_symlink()


def test_hosts_that_share_a_folder_write_no_file_of_each_other(
  tmp_path, monkeypatch
):
  # Two processes can have one number, on two hosts.
  monkeypatch.setattr(os, 'getpid', lambda: 7)
  written = []
  replace = os.replace
  monkeypatch.setattr(
    os, 'replace', lambda old, new: (written.append(old), replace(old, new))
  )
  for text in ('one', 'two'):
    storage.write_text(tmp_path / 'file', text)
  assert len(set(written)) == 2
  assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_damaged_json_is_refused_by_name(tmp_path):
  path = tmp_path / 'value.json'
  path.write_text('{"a": ')
  with pytest.raises(errors.UserError, match=r'value\.json: not valid JSON'):
    storage.read_json(path)


def test_a_run_folder_is_opened_by_its_own_config_alone(run_config, tmp_path):
  folder = tmp_path / 'deep' / 'run'
  assert run_folder.open_folder(folder, run_config()) == folder
  config = (folder / 'config.json').read_bytes()
  assert json.loads(config)['model']['exits'] == [1, 2]
  run_folder.open_folder(folder, run_config())
  other = run_config(base_lr=0.5)
  with pytest.raises(
    errors.UserError, match=r'with train\.base_lr = 0\.02, not 0\.5'
  ):
    run_folder.open_folder(folder, other)
  model = dataclasses.replace(run_config().model, exits=(2,))
  with pytest.raises(errors.UserError, match=r'model\.exits = \[1, 2\], not'):
    run_folder.open_folder(folder, run_config(model))
  assert (folder / 'config.json').read_bytes() == config


def test_a_run_folder_keeps_its_lineage(run_config, tmp_path):
  lineage = {'parent': 'p', 'expansion': None, 'inherited_flops': 5.0}
  run_folder.open_folder(tmp_path / 'run', run_config(), lineage)
  assert storage.read_json(tmp_path / 'run' / 'lineage.json') == lineage


def test_a_folder_of_another_schema_is_refused(run_config, tmp_path):
  run_folder.open_folder(tmp_path / 'run', run_config())
  path = tmp_path / 'run' / 'config.json'
  path.write_text(path.read_text().replace('"schema": 1', '"schema": 99'))
  with pytest.raises(errors.UserError, match='schema 99 is not 1'):
    run_folder.open_folder(tmp_path / 'run', run_config())


@pytest.mark.parametrize('schema', [0, 99, None])
def test_rows_of_another_version_are_refused(run_config, tmp_path, schema):
  path = tmp_path / run_folder.ROWS
  storage.append(path, _rows(run_config()))
  storage.append(path, [{**_rows(run_config())[0], 'schema': schema}])
  for read in (storage.read_rows, lambda path: run_folder.truncate(path, 9)):
    with pytest.raises(
      errors.UserError, match=rf'metrics\.jsonl:3: schema {schema} is not 1'
    ):
      read(path)


def test_a_line_that_is_no_row_is_refused(tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_text('{"step": 1}\n3\n')
  with pytest.raises(errors.UserError, match=r'jsonl:2: not a JSON object'):
    storage.read_rows(path)


def test_a_file_of_another_version_is_refused(tmp_path):
  path = tmp_path / 'plan.json'
  storage.write_json(path, {'cells': []})  # As the first version wrote it.
  assert storage.read_own(path) == {'cells': []}
  storage.write_json(path, {'schema': 99})
  with pytest.raises(errors.UserError, match=r'plan\.json: schema 99 is not 1'):
    storage.read_own(path)
  storage.write_json(path, [1])
  with pytest.raises(errors.UserError, match='not a JSON object'):
    storage.read_own(path)


# Writes rows and a file again and again.
_WRITER = """
import itertools, sys
from familial.core import run_folder
from familial.core import storage
from familial.training import rows as rows_lib
folder = sys.argv[1]
run_folder.truncate(folder + '/rows.jsonl', 10**9)
print('begun', flush=True)
for step in itertools.count():
  rows = [{'step': step, 'exit': i, 'text': 'x' * 3000} for i in range(9)]
  storage.append(folder + '/rows.jsonl', rows)
  storage.write_json(folder + '/value.json', rows)
"""


def test_what_was_written_before_a_kill_is_whole(tmp_path):
  rng = random.Random(0)
  for _ in range(6):
    command = [sys.executable, '-c', _WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
      writer.stdout.readline()
      time.sleep(rng.uniform(0.0, 0.05))
      writer.kill()
    rows = storage.read_rows(tmp_path / 'rows.jsonl')
    assert all(len(row['text']) == 3000 for row in rows)
    if (tmp_path / 'value.json').exists():
      assert len(storage.read_json(tmp_path / 'value.json')) == 9
  assert len(rows) > 9


def test_rows_of_many_runs_come_by_path(run_config, tmp_path):
  for name in ('b', 'a/x'):
    (tmp_path / name).mkdir(parents=True)
    storage.append(tmp_path / name / run_folder.ROWS, [{'run': name}])
  assert [row['run'] for row in run_folder.rows_of(tmp_path)] == ['a/x', 'b']


def test_records_need_no_model_library():
  subprocess.run(
    [
      sys.executable,
      '-c',
      "import sys; sys.modules['flax'] = None; import familial.core.run_folder; "
      "assert 'jax' not in sys.modules",
    ],
    check=True,
  )


def test_a_folder_is_held_by_one(tmp_path):
  with storage.lock(tmp_path / 'run') as mine:
    assert mine
    with storage.lock(tmp_path / 'run') as too:
      assert not too
  with storage.lock(tmp_path / 'run') as mine, storage.lock(tmp_path) as other:
    assert mine and other


def test_a_folder_made_for_a_lock_alone_is_removed(tmp_path):
  (tmp_path / 'mine').mkdir()
  folder = tmp_path / 'new' / 'deep'
  with storage.lock(folder) as first, storage.lock(folder) as second:
    assert (first, second) == (True, False)
  assert [path.name for path in tmp_path.iterdir()] == ['mine']
  with storage.lock(folder):
    (folder / 'result').write_text('')
  assert {path.name for path in folder.iterdir()} == {'lock', 'result'}
  with storage.lock(tmp_path / 'mine'):
    pass
  assert (tmp_path / 'mine').is_dir()


def test_a_removed_lock_is_taken_anew(tmp_path):
  """Who waited for a lock whose file is gone holds that of the new file."""
  folder = tmp_path / 'new'
  held = []
  inside = threading.Lock()

  def take():
    with storage.lock(folder, wait=True) as locked:
      assert inside.acquire(blocking=False)
      held.append(locked)
      assert (folder / 'lock').exists()
      inside.release()

  threads = [threading.Thread(target=take) for _ in range(8)]
  with storage.lock(folder):
    for thread in threads:
      thread.start()
    time.sleep(0.1)
  for thread in threads:
    thread.join()
  assert held == [True] * 8


def test_what_cannot_be_written_is_known_before(tmp_path):
  storage.check_writable(tmp_path / 'a' / 'b')
  assert not (tmp_path / 'a').exists()
  (tmp_path / 'file').write_text('')
  for path in (tmp_path / 'file', tmp_path / 'file' / 'b'):
    with pytest.raises(errors.UserError, match='cannot be written'):
      storage.check_writable(path)

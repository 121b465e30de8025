"""What a kill, a disk or another version left of a run's files."""

import json
import os
import re
import shutil

import pytest

from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.training import loop
from tests.training import runs


@pytest.mark.parametrize('left', [0, 1, 1.5])
def test_killed_while_the_last_rows_are_written(
  undisturbed, corpus, tmp_path, left, capsys
):
  config, expected = undisturbed
  folder = tmp_path / 'run'
  shutil.copytree(expected, folder)
  lines = runs.rows(expected).splitlines(keepends=True)
  half = lines[5][: 60 * (left > 1)]
  (folder / run_folder.ROWS).write_bytes(
    b''.join(lines[: 4 + int(left)]) + half
  )
  assert run_folder.status(folder) == 'running'
  steps = []
  status = loop.run(config, folder, corpus, quiet=True, on_step=steps.append)
  assert (status, steps) == ('finished', [])
  assert runs.rows(folder) == runs.rows(expected)
  said = f'familial: {folder}/metrics.jsonl: its last line was cut off'
  assert (said in capsys.readouterr().err) == bool(half)


@pytest.mark.parametrize('part', ['state/d/*', 'metrics/metrics', 'state'])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(
  undisturbed, corpus, tmp_path, capfd, part
):
  config, expected = undisturbed
  folder = tmp_path / 'run'
  shutil.copytree(expected, folder)
  lines = runs.rows(expected).splitlines(keepends=True)
  (folder / run_folder.ROWS).write_bytes(b''.join(lines[:4]))
  checkpoints = folder / 'checkpoints'
  assert {path.name for path in checkpoints.iterdir()} == {'23', '24'}
  for path in checkpoints.glob(f'24/{part}'):
    if path.is_dir():
      shutil.rmtree(path)
    else:
      os.truncate(path, path.stat().st_size // 2)
  steps = []
  status = loop.run(config, folder, corpus, quiet=True, on_step=steps.append)
  assert (status, steps) == ('finished', [24])
  runs.same(config, folder, expected)
  assert {path.name for path in checkpoints.iterdir()} == {
    '23', '24', '24.damaged'
  }  # fmt: skip
  line = (
    f'familial: {checkpoints}/24: a damaged checkpoint: .* cannot be read; it '
    'is 24.damaged now, and the run goes on from step 23\n'
  )
  assert re.fullmatch(line, capfd.readouterr().err)


def test_a_damaged_checkpoint_without_another_is_refused(
  undisturbed, corpus, tmp_path
):
  config, expected = undisturbed
  folder = tmp_path / 'run'
  shutil.copytree(expected, folder)
  (folder / run_folder.ROWS).unlink()
  shutil.rmtree(folder / 'checkpoints' / '23')
  for path in folder.glob('checkpoints/24/state/manifest.ocdbt'):
    os.truncate(path, path.stat().st_size // 2)
  before = sorted(folder.rglob('*'))
  with pytest.raises(errors.UserError) as raised:
    loop.run(config, folder, corpus, quiet=True)
  line = (
    '24: a damaged checkpoint: .*, and there is no other; once it is removed'
  )
  assert re.search(line, str(raised.value))
  assert sorted(folder.rglob('*')) == before


def test_a_checkpoint_of_another_version_is_refused(
  undisturbed, corpus, tmp_path
):
  config, expected = undisturbed
  folder = tmp_path / 'run'
  shutil.copytree(expected, folder)
  lines = runs.rows(expected).splitlines(keepends=True)
  (folder / run_folder.ROWS).write_bytes(b''.join(lines[:4]))
  path = folder / 'checkpoints' / '24' / '_CHECKPOINT_METADATA'
  meta = json.loads(path.read_text())
  assert meta['custom_metadata'] == {'schema': storage.SCHEMA}
  path.write_text(json.dumps({**meta, 'custom_metadata': {'schema': 99}}))
  with pytest.raises(
    errors.UserError, match='/24: schema 99 is not 1, the one'
  ):
    loop.run(config, folder, corpus, quiet=True)
  # Those that were saved before there was one are read.
  path.write_text(json.dumps({**meta, 'custom_metadata': {}}))
  assert loop.run(config, folder, corpus, quiet=True) == 'finished'
  assert runs.rows(folder) == runs.rows(expected)


def test_a_checkpoint_of_another_depth_is_refused(
  undisturbed, shape, run_config
):
  _, folder = undisturbed
  for depth, exits in ((3, (1, 3)), (2, (2,))):
    other = run_config(shape(vocab_size=256, depth=depth, exits=exits))
    with pytest.raises(errors.UserError, match='not a checkpoint of this'):
      runs.state(other, folder)

"""Folders that were written in schema 1 are read, and stay as they are.

`tests/data/schema_1` holds them; its README says how they came to be. Each test
reads a copy with a command and compares the bytes of all that was there before.
"""

import hashlib
import json
import pathlib
import shutil

import numpy as np
import pytest

from familial.convert import segments
from familial.core import storage
from familial.plots import theme
from tests.golden import keys
from tests.golden import numbers_test
from tests.golden import record

STUDIES = (
  'isoflop',
  'families',
  'depth_law',
  'depth_regimes',
  'allocation_live',
)
RUN = (
  '--config.data.corpus=text_files', '--config.data.path=text',
  '--config.data.heldout_percent=20', '--config.data.seq_len=32',
  '--config.model.width=8', '--config.model.depth=3', '--config.model.heads=2',
  '--config.model.kv_heads=1', '--config.model.mlp_width=16',
  '--config.model.exits=(1,2,3)', '--config.model.base_width=8',
  '--config.train.base_lr=0.02', '--config.train.steps=400',
  '--config.train.batch_size=8', '--config.train.warmup_steps=4',
  '--config.train.evaluations=3', '--config.train.eval_tokens=512',
  '--config.train.eval_batch_size=4', '--config.train.keep=1',
  '--config.train.gradients',
)  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A copy of all folders, the current directory; it must stay as it is."""
  copy = tmp_path / 'schema_1'
  shutil.copytree(record.SCHEMA_1, copy)
  monkeypatch.chdir(copy)  # Paths in the folders are relative.
  before = digests(copy)
  yield copy
  after = digests(copy)
  changed = [path for path, known in before.items() if after.get(path) != known]
  assert not changed


def digests(folder: pathlib.Path) -> dict[str, str]:
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in folder.rglob('*')
    if path.is_file()
  }


@pytest.fixture
def succeed(familial):
  """Runs a command that must not fail; returns what it printed."""

  def run(*arguments):
    status, out, err = familial(*arguments)
    assert status == 0, err
    assert 'Traceback' not in err
    return out

  return run


@pytest.fixture
def specified(monkeypatch):
  """Figures are specified and not drawn."""
  monkeypatch.setattr(
    theme, 'save', lambda chart, path: theme.specification(chart)
  )


def test_no_path_of_a_machine_is_kept():
  for path in record.SCHEMA_1.rglob('*'):
    if path.is_file():
      content = path.read_bytes()
      for root in (b'/work/', b'/tmp/', b'/home/', b'/root/'):
        assert root not in content, path


@pytest.mark.parametrize(
  'study',
  [
    study if study == 'isoflop' else pytest.param(study, marks=pytest.mark.slow)
    for study in STUDIES
  ],
)
def test_a_study_gets_its_page(folder, succeed, specified, study):
  known = digests(folder / study)
  out = succeed('report', f'--workdir={study}')
  assert 'report/index.html' in out
  page = (folder / study / 'report' / 'index.html').read_text('utf-8')
  title = storage.read_json(folder / study / 'plan.json')['title']
  assert title in page
  added = digests(folder / study).keys() - known.keys()
  assert all(path.startswith('report/') or path == 'lock' for path in added)


@pytest.mark.slow
def test_the_studies_of_depth_get_their_page(folder, succeed, specified):
  succeed(
    'depth', '--law=depth_law', '--regimes=depth_regimes', '--toys=depth_toys',
    '--out=depth',
  )  # fmt: skip
  assert (folder / 'depth' / 'index.html').exists()


@pytest.mark.slow
def test_a_study_is_a_table_of_runs(folder, succeed):
  succeed(
    'fit', '--table=isoflop', '--loss=mean', '--form=dense_null',
    '--starts=16', '--resamples=20', '--hold_out=flops>1.5e8', '--nodraw',
    '--out=again',
  )  # fmt: skip
  found = storage.read_json(folder / 'again' / 'fit.json')
  known = storage.read_json(folder / 'fit' / 'dense_null' / 'fit.json')
  assert found['rows'] == known['rows']
  assert found['objective'] == pytest.approx(known['objective'], rel=1e-6)
  assert known.keys() <= found.keys()


def test_a_run_is_evaluated(folder, succeed):
  succeed('evaluate', '--checkpoint=run', '--nodraw', '--out=again')
  keys.check('evaluation.json', folder / 'again' / 'evaluation.json')
  found = storage.read_json(folder / 'again' / 'evaluation.json')
  known = storage.read_json(folder / 'evaluation' / 'evaluation.json')
  for one, other in zip(found['exits'], known['exits'], strict=True):
    for key, value in other.items():
      if isinstance(value, float):
        assert one[key] == pytest.approx(value, rel=1e-5), key


@pytest.mark.parametrize('checkpoint', ['run/checkpoints/400', 'export'])
def test_a_model_generates(folder, succeed, checkpoint):
  out = succeed(
    'generate', f'--checkpoint={checkpoint}', '--mode=exit', '--exit=1',
    '--prompt=the exit', '--max_tokens=4',
  )  # fmt: skip
  assert out.startswith('the exit')


def test_hugging_face_files_are_imported_and_compute_the_same(folder, succeed):
  succeed('import', '--from=hugging_face', '--exits=1', '--out=import')
  imported, run = (
    numbers_test.logits(folder / name)[-1] for name in ('import', 'run')
  )
  np.testing.assert_allclose(imported, run, rtol=1e-5, atol=1e-5)


def test_segments_are_loaded(folder):
  for index in range(3):
    segment = segments.load(folder / 'segments' / f'segment_{index}')
    assert tuple(segment.exits) == (1, 2, 3)
    assert (segment.index, segment.context) == (index, 32)


def test_a_finished_run_adds_nothing(folder, succeed):
  before = digests(folder / 'run')
  config = record.EXPERIMENTS / 'single.py'
  out = succeed('train', f'--config={config}', '--workdir=run', *RUN)
  assert 'finished after 400 steps' in out
  after = digests(folder / 'run')
  after.pop('lock', None)
  assert after == before


@pytest.mark.parametrize(
  ('file', 'arguments'),
  [
    ('isoflop/plan.json', ('report', '--workdir=isoflop')),
    (
      'isoflop/cells/c5e7_w8_d2_g1/metrics.jsonl',
      ('fit', '--table=isoflop', '--out=again'),
    ),
    (
      'run/config.json',
      ('generate', '--checkpoint=run', '--prompt=a'),
    ),
    (
      'segments/segment_0/segment.json',
      # Were it read, this would be refused: a relay would serve for ever.
      ('relay', '--segment=segments/segment_0', '--port=0', '--context=999'),
    ),
  ],
)
def test_a_file_of_another_schema_is_refused_in_one_line(
  familial, tmp_path, monkeypatch, file, arguments
):
  copy = tmp_path / 'schema_2'
  shutil.copytree(record.SCHEMA_1, copy)
  monkeypatch.chdir(copy)
  path = copy / file
  lines = path.read_text('utf-8').splitlines()
  if path.suffix == '.jsonl':
    lines[0] = json.dumps({**json.loads(lines[0]), 'schema': 2})
  else:
    lines = [json.dumps({**json.loads('\n'.join(lines)), 'schema': 2})]
  path.write_text('\n'.join(lines) + '\n', 'utf-8')
  status, out, err = familial(*arguments)
  assert (status, out) == (2, '')
  assert err.startswith('familial: ') and err.count('\n') == 1
  assert path.parent.name in err and 'schema 2' in err

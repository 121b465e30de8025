import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from familial import records

ROOT = pathlib.Path(__file__).parents[2]


def without_clocks(value):
  """A fit without what it took and where it was."""
  if isinstance(value, dict):
    return {
      key: without_clocks(item)
      for key, item in value.items()
      if 'seconds' not in key
    }
  return value


def results(workdir):
  return {
    path.relative_to(workdir): without_clocks(json.loads(path.read_text()))
    for path in [workdir / 'summary.json', *workdir.glob('fits/**/*.json')]
  }


@pytest.mark.slow
def test_a_study_from_the_command_line(tmp_path, text_data):
  def run():
    done = subprocess.run(
      [
        sys.executable, '-m', 'familial', 'run', '--workers=2',
        f'--config={ROOT}/experiments/familial_law.py:test',
        f'--workdir={tmp_path}', '--config.data.corpus=text_files',
        f'--config.data.path={text_data.path}',
        '--config.data.heldout_percent=20',
      ],
      capture_output=True, text=True, cwd=ROOT, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'Traceback' not in done.stderr
    return done.stdout

  out = run()
  plan = json.loads((tmp_path / 'plan.json').read_text())
  assert [row['cell'] for row in plan['cells']] and plan['power']
  for row in plan['cells']:
    folder = tmp_path / 'cells' / row['cell']
    assert records.status(folder) == 'finished'
    assert row['cell'] in out
  pattern = r'final loss -?\d+\.\d{4} \[-?\d+\.\d{4}, -?\d+\.\d{4}\]'
  assert re.search(pattern, out.rstrip().split('\n')[-2])
  assert 'report/index.html' in out.rstrip().split('\n')[-1]
  page = (tmp_path / 'report' / 'index.html').read_text()
  assert 'gamma' in page and 'http://' not in page.replace('http://www.w3', '')
  assert {path.parent.name for path in tmp_path.glob('fits/final/*/fit.json')}
  first = results(tmp_path)
  assert first[pathlib.Path('summary.json')]['twins']['rows']
  files = {
    path: (path.read_bytes(), path.stat().st_mtime_ns)
    for path in tmp_path.glob('cells/*/*.json*')
  }
  run()
  for path, (content, modified) in files.items():
    assert path.read_bytes() == content
    assert path.stat().st_mtime_ns == modified
  assert results(tmp_path) == first

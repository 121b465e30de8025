"""A replay through the command: what it writes, and what it refuses."""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from experiments import allocation
from familial.allocation import config as allocation_config
from familial.allocation import study
from familial.allocation import synthetic
from familial.cli import main

ROOM = pathlib.Path(study.__file__).parent
EXPERIMENTS = pathlib.Path(allocation.__file__).parent


def table(tmp_path, count=6):
  """Clean curves as a CSV file."""
  path = tmp_path / 'curves.csv'
  lines = ['shape,N,tokens,C,val_loss']
  for i, curve in enumerate(synthetic.curves(count).curves):
    n, d = curve.columns['N'], curve.columns['D']
    for row in zip(n, d, curve.flops, curve.loss, strict=True):
      lines.append(','.join([str(i), *map(repr, map(float, row))]))
  path.write_text('\n'.join(lines) + '\n')
  return path


def run(capsys, *flags):
  status = main._main(['familial', 'allocate', *flags])
  out, err = capsys.readouterr()
  return status, out, err


def flags(path, out, *more):
  return (
    f'--table={path}', f'--out={out}', '--nodraw', '--draws=2',
    '--columns=params=N,tokens=tokens,flops=C,loss=val_loss', '--curve=shape',
    '--candidates=4', '--policy=sh', *more,
  )  # fmt: skip


@pytest.mark.slow
def test_a_replay_writes_what_it_found_and_is_deterministic(tmp_path, capsys):
  path = table(tmp_path)
  for name in 'ab':
    more = ('--policy=uniform', '--policy=law', '--budget=1e18')
    status, out, _ = run(capsys, *flags(path, tmp_path / name, *more))
    assert status == 0
    assert 'gain over sh: curves (4, 1e+18): oracle' in out
  first, again = (
    json.loads((tmp_path / name / study.RESULT).read_text()) for name in 'ab'
  )
  for found in (first, again):
    del found['seconds'], found['cells'][0]['seconds']
  assert first == again
  [cell] = first['cells']
  assert cell['rounds'] == [4, 2]
  assert set(cell['policies']) == {'sh', 'oracle', 'uniform', 'law'}
  assert cell['source']['sha256'] and cell['source']['path'] == str(path)
  rows = [
    json.loads(line)
    for line in (tmp_path / 'a' / study.DRAWS).read_text().splitlines()
  ]
  assert len(rows) == 2 * 4
  mean = np.mean([row['best'] for row in rows if row['policy'] == 'sh'])
  assert cell['policies']['sh']['best']['value'] == pytest.approx(mean)
  for row in rows:
    assert row['spent'] <= 1e18


@pytest.mark.parametrize(
  ('more', 'what'),
  [
    (('--budget=1e18', '--candidates=7'), 'candidates: 7; .* has 6 curves'),
    (('--budget=1e3',), 'no curve of .* has a loss before'),
    (('--budget=1e18', '--policy=lmc'), "policy 'lmc' is unknown.*'sh_lmc'"),
    (('--budget=1e18', '--eta=1'), 'eta: 1 is not allowed'),
    (('--budget=1e18', '--draws=0'), 'draws: 0 is not allowed'),
    ((), '--budget: is missing'),
    (('--budget=1e18', '--where=token>=1'), "'token>=1': a condition is"),
  ],
)
def test_what_cannot_be_is_one_line(tmp_path, capsys, more, what):
  out = tmp_path / 'out'
  status, _, err = run(capsys, *flags(table(tmp_path), out, *more))
  assert status == 2
  assert err.count('\n') == 1
  assert re.search(what, err), err
  assert not out.exists()


def test_a_table_or_a_config_is_needed(tmp_path, capsys):
  status, _, err = run(capsys, f'--out={tmp_path}')
  assert status == 2 and '--table or --config' in err
  live = f'--config={EXPERIMENTS / "allocation_live.py"}:test'
  status, _, err = run(capsys, live, '--nodraw', f'--out={tmp_path}')
  assert status == 2 and '--nodraw: of a replay' in err
  ours = EXPERIMENTS / 'results' / 'familial_law_cpu' / 'rows.jsonl'
  status, _, err = run(
    capsys, f'--table={ours}', '--curve=width', '--budget=1e12',
    f'--out={tmp_path / "out"}',
  )  # fmt: skip
  assert status == 2 and '--curve: width is not allowed' in err


@pytest.mark.parametrize(
  'arg', ['test', 'synthetic', 'other_law', 'nanogpt', 'savings']
)
def test_the_experiments_are_replays(arg):
  found = allocation_config.read(allocation.get_config(arg))
  for candidates, budget in found.cells:
    for _, pool in study.tables(found) if not found.columns else ():
      study.check(pool, candidates, budget, found.eta)
  with pytest.raises(ValueError, match='savings'):
    allocation.get_config('none')


def test_noise_is_as_large_as_it_says():
  rng = np.random.default_rng(0)
  for kind in synthetic.NOISES[1:]:
    ends = [synthetic._noise(kind, rng)[-1] for _ in range(4000)]
    assert np.std(ends) == pytest.approx(1.0, abs=0.05)
    assert abs(np.mean(ends)) < 0.06
  assert not synthetic._noise('clean', rng).any()


def test_the_room_imports_without_training():
  names = [
    f'familial.allocation.{path.stem}'
    for path in sorted(ROOM.glob('*.py'))
    if path.stem != '__init__' and not path.stem.startswith('figures')
  ]
  code = '\n'.join(
    [
      'import sys',
      'for name in ("flax", "optax", "orbax", "matplotlib"):',
      '  sys.modules[name] = None',
      *(f'import {name}' for name in names),
    ]
  )
  subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOM.parents[1])

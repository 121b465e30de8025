"""A study of width and depth: a full grid, and the law that its points obey."""

import dataclasses
import json
import sys

import numpy as np
import pytest

from familial.cli import main
from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.laws import table as tables
from familial.report import page
from familial.studies import depth
from familial.studies import depth_summary
from familial.studies import sweep
from familial.studies import templates
from familial.training import rows as rows_lib
from tests import experiments_test

LAW = {'c_width': 9.0, 'a_width': 0.8, 'c_depth': 1.2, 'a_depth': 0.5}
ARGS = ('test', 'cpu', 'gpu', 'paper')


@pytest.fixture
def make(text_data):
  """Makes studies of three widths and three depths."""

  def make(**changes):
    config = templates.depth_template()
    config.title = 'tiny'
    config.data.update(dataclasses.asdict(text_data))
    config.data.seq_len = 16
    config.model.base_width = 8
    config.train.update(
      base_lr=0.01, batch_size=4, first_evaluation=20, evaluations=4
    )
    config.update(
      widths=(8, 16, 32), depths=(1, 2, 4), tokens=10_240, seeds=(0, 1),
      rates=(0.02,), cutoffs=(0.0, 0.1),
    )  # fmt: skip
    config.fit.update(starts=32, resamples=50)
    with config.unlocked():
      config.update(changes)
    return templates.depth(config)

  return make


def loss_of(cell, tokens):
  """What a cell loses; 2 % more at another rate, 0.2 % of noise by seed."""
  width, layers = cell.model.width, cell.model.depth
  noise = np.random.default_rng(width * layers + cell.train.seed).normal()
  return (
    1.0 + 9 / width**0.8 + 1.2 / layers**0.5 + 40 / tokens**0.4
  ) * (1 + 0.002 * noise + 0.02 * (cell.arm == 'rate'))  # fmt: skip


def write_cells(study, workdir):
  for cell in depth.build(study):
    run = sweep.folder(workdir, cell.cell)
    run.mkdir(parents=True, exist_ok=True)
    rows = []
    for step in sorted(cell.train.evaluated):
      status = 'finished' if step == cell.train.steps else 'running'
      tokens = step * 64
      rows += rows_lib.of_evaluation(
        cell, run.name, 'f00d', step, 0.0, 0.1, [loss_of(cell, tokens)], 1.0,
        status,
      )  # fmt: skip
    storage.append(run / run_folder.ROWS, rows)
  return workdir


def test_the_grid_is_full_and_its_tokens_are_equal(make):
  cells = depth.build(make())
  grid = [c for c in cells if c.arm == 'grid']
  shapes = [(c.model.width, c.model.depth) for c in grid]
  assert shapes == [(w, d) for w in (8, 16, 32) for d in (1, 2, 4)]
  assert {c.train.steps for c in cells} == {160}
  assert {c.model.granularity for c in cells} == {1}
  assert {c.train.schedule for c in cells} == {'constant'}
  corners = {(8, 1), (8, 4), (32, 1), (32, 4)}
  for arm, key, value in (('seed', 'seed', 1), ('rate', 'base_lr', 0.02)):
    others = [c for c in cells if c.arm == arm]
    assert {(c.model.width, c.model.depth) for c in others} == corners
    assert {getattr(c.train, key) for c in others} == {value}
  assert len({c.cell for c in cells}) == len(cells) == 9 + 8


def test_what_cannot_be_is_refused_by_its_key(make):
  for key, value, allowed in (
    ('widths', (8, 16), 'at least three'),
    ('depths', (1, 2, 2), 'at least three'),
    ('widths', (8, 12, 16), 'a multiple of head_width, 8'),
    ('tokens', 0, 'at least 1'),
    ('seeds', (1, 1), 'no two alike'),
    ('rates', (0.01,), 'another than base_lr'),
    ('cutoffs', (1.0,), 'below 1'),
    ('first_tokens', 20_000, 'within 0 to tokens'),
  ):
    with pytest.raises(errors.UserError, match=allowed) as raised:
      make(**{key: value})
    assert str(raised.value).startswith(key)
  with pytest.raises(errors.UserError, match=r'train\.schedule.*constant, wsd'):
    study = make()
    dataclasses.replace(study, train={**study.train, 'schedule': 'cosine'})
  with pytest.raises(errors.UserError, match='below one step'):
    depth.build(make(tokens=20))


@pytest.mark.parametrize('arg', ARGS)
def test_experiments_decorrelate_what_they_compare(arg):
  study = templates.depth(experiments_test.load('depth_law').get_config(arg))
  cells = [c for c in depth.build(study) if c.arm == 'grid']
  logs = np.log([[c.model.width, c.model.depth] for c in cells])
  assert abs(np.corrcoef(logs.T)[0, 1]) < 1e-12
  points = [e for e in cells[0].train.evaluated]
  first = min(points) * study.train['batch_size'] * study.data.seq_len
  assert len(points) >= 4 and first >= study.first_tokens
  assert study.rates


def test_points_are_the_grids_from_the_first_tokens_on(make, tmp_path):
  study = make(first_tokens=2000)
  rows = list(run_folder.rows_of(write_cells(study, tmp_path) / 'cells'))
  table = depth_summary._table(study, rows)
  steps = [s for s in depth.build(study)[0].train.evaluated if s * 64 >= 2000]
  assert table.rows == (9 + 4) * len(steps) and len(steps) == 3
  assert table.columns['D'].min() >= 2000
  assert len(np.unique(table.run)) == 13
  rates = list(depth_summary._rates(depth_summary.summaries.last_of(rows)))
  assert len(rates) == 4
  assert all(r['over'] == pytest.approx(0.02, abs=2e-4) for r in rates)


@pytest.mark.slow
def test_the_planted_law_is_found_and_drawn(make, tmp_path):
  study = make()
  write_cells(study, tmp_path)
  storage.write_json(
    tmp_path / 'plan.json',
    {
      'schema': storage.SCHEMA,
      'study': 'depth',
      'title': 'A study',
      'cells': [],
    },
  )
  line = depth_summary.write(study, tmp_path, [])
  found = json.loads((tmp_path / 'summary.json').read_text())
  assert found['summary_line'] == line and not found['notes']
  law = found['laws']['width_depth']['params']
  for name, value in LAW.items():
    if name.startswith('a_'):
      assert law[name]['lo'] < value < law[name]['hi']
  assert abs(found['design']['correlations'][0]['value']) < 1e-9
  assert found['selection']['by_aic'] in ('width_depth', 'width_depth_inverse')
  first, second = found['scan']['cutoffs']
  assert (first['dropped'], second['dropped']) == (
    0,
    round(0.1 * first['rows']),
  )
  for name, constant in law.items():
    assert first['params'][name]['value'] == pytest.approx(
      constant['value'], rel=1e-12
    )
  assert found['noise']['sd_log_loss']['final'] < 0.01
  html = page.write(tmp_path).read_text()
  for name in ('shapes', 'forms', 'cutoffs'):
    assert (tmp_path / 'report' / 'figures' / f'{name}.png').exists()
  for said in ('Which form?', 'One rate for all shapes?', 'a_depth'):
    assert said in html


def test_a_page_without_a_law_says_so(make, tmp_path):
  study = make(rates=(), seeds=(0,))
  write_cells(study, tmp_path)
  storage.write_json(
    tmp_path / 'plan.json',
    {
      'schema': storage.SCHEMA,
      'study': 'depth',
      'title': 'A study',
      'cells': [],
    },
  )
  html = page.write(tmp_path).read_text()
  assert 'No law of width and depth was fitted.' in html
  assert 'Other base rates were not tried.' in html


def test_cut_offs_are_shares_of_all_points(make, monkeypatch):
  asked = []
  monkeypatch.setattr(
    depth_summary.scans,
    'scan',
    lambda form, table, dropped, options: asked.extend(dropped) or [],
  )
  table = tables.Table(
    {'loss': np.ones(140)}, np.arange(140).astype(str), source='points'
  )
  study = make(cutoffs=(0.4, 0.0, 0.1, 0.1))
  depth_summary._scan(study, table, depth_summary.results.Options())
  assert asked == [0, 14, 56]


def test_the_law_is_fitted_with_e_held_from_zero_on():
  width, layers, tokens = (
    axis.ravel()
    for axis in np.meshgrid([8, 16, 32], [1, 2, 4], [1e3, 4e3, 1e5])
  )
  above = 9 / width**0.8 + 1.2 / layers**0.5 + 40 / tokens**0.4
  loss = above.min() + above  # E is half of the lowest loss.
  table = tables.Table(
    {'width': width, 'depth': layers, 'D': tokens, 'loss': loss},
    np.arange(len(loss)).astype(str),
    source='points',
  )
  options = depth_summary.results.Options(starts=32)
  rows = depth_summary.over_e(table, options, aic=np.inf)['rows']
  assert [row['value'] for row in rows] == pytest.approx(
    [share * loss.min() for share in (0, 0.25, 0.5, 0.75, 0.9)]
  )
  exponents = [row['params']['a_depth'] for row in rows]
  assert exponents[2] == pytest.approx(LAW['a_depth'], rel=1e-4)
  assert exponents[0] < LAW['a_depth'] - 0.02 < LAW['a_depth'] < exponents[3]
  behind = [row['aic_behind'] for row in rows]
  assert behind[2] == 0 and min(behind[1], behind[3]) > 10
  # A fit with E free that is better is what they are behind.
  behind = depth_summary.over_e(table, options, aic=-1e6)['rows'][2]
  assert behind['aic_behind'] > 1e5


def test_the_line_says_which_constant_is_open():
  constants = {
    'E': {'value': 0.1, 'lo': 0.0, 'hi': 1.0, 'identified': False},
    'a_depth': {'value': 66.2, 'lo': -25.0, 'hi': 174.0, 'identified': False},
    'a_width': {'value': 0.5, 'lo': 0.4, 'hi': 0.6, 'identified': True},
  }
  line = depth_summary._line({
    'cost': {'finished': 9, 'flops': 1e9},
    'selection': {'by_aic': 'chinchilla', 'by_model': None},
    'laws': {'width_depth': {'params': constants, 'flags': ['not converged']}},
  })  # fmt: skip
  assert 'a_depth 66.200 [-25.000, 174.000] (not identified)' in line
  assert 'a_width 0.500 [0.400, 0.600] (not converged)' in line


def test_the_commands_know_the_study(tmp_path, capsys):
  config = '--config=experiments/depth_law.py:test'
  assert main._main(['familial', 'train', config, f'--workdir={tmp_path}']) == 2
  assert "a study's, for familial run" in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_runs_to_its_page(tmp_path, capsys, monkeypatch):
  arguments = [
    'familial', 'run', '--config=experiments/depth_law.py:test',
    f'--workdir={tmp_path}', '--config.tokens=6000',
    '--config.train.first_evaluation=4', '--config.first_tokens=0',
    '--config.rates=()', '--config.seeds=(0,)',
  ]  # fmt: skip
  monkeypatch.setattr(sys, 'argv', arguments)  # Where overrides are read.
  assert main._main(arguments) == 0
  assert 'a_depth' in capsys.readouterr().out
  assert (tmp_path / 'report' / 'index.html').exists()

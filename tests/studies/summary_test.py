import dataclasses
import json
import re

import pytest

from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.laws import definitions
from familial.laws import selection
from familial.model import flops as flops_lib
from familial.studies import cells as cells_lib
from familial.studies import summary

GAMMA = 0.03
LAW = {'E': 1.0, 'A': 30.0, 'B': 90.0, 'alpha': 0.4, 'beta': 0.4}
TWO = {'budgets': (4e8,), 'shapes': (0, 1), 'granularities': (2, 4)}
ONE = {'budgets': (4e8,), 'shapes': (0,), 'granularities': (2,)}


def dense_loss(params, budget):
  return 1 + 30 / params**0.4 + 90 / (budget / params / 20) ** 0.4


def losses_of(cell):
  """What every exit of a cell loses: the dense law times G^gamma."""
  model = cell.model
  return [
    dense_loss(flops_lib.params(model, exit_), cell.budget)
    * model.granularity**GAMMA
    for exit_ in range(1, model.granularity + 1)
  ]


@pytest.fixture
def study(make_study):
  return make_study(
    grid={
      'budgets': (4e8, 1.6e9, 6.4e9),
      'shapes': ((8, 4, 1), (16, 4, 1), (24, 4, 1)),
      'granularities': (1, 2, 4),
    },
    arms={
      'twin': TWO,
      'seed': {**ONE, 'granularities': (1, 4), 'values': (1,)},
      'weighting': {**ONE, 'values': ('final_one', 'linear')},
      'kind': {**ONE, 'values': ('separate',)},
      'frozen': {**ONE, 'values': ('separate', 'head', 'branch')},
    },
  )


@pytest.fixture
def workdir(study, tmp_path, write_rows):
  for cell in cells_lib.build(study):
    inherited = 4e8 if cell.train.init_from else 0.0
    run = write_rows(tmp_path, cell, losses_of(cell), inherited)
    storage.write_json(run / 'lineage.json', {'inherited_flops': inherited})
  return tmp_path


@pytest.fixture
def fake_fits(monkeypatch):
  """Replaces the fits, which take a while, by files of one shape."""

  def use(interval=None, flags=()):
    def run(table, forms, out, options, *, loss_definition='final'):
      for form in forms if interval is not None else ():
        folder = out / form if len(forms) > 1 else out
        folder.mkdir(parents=True, exist_ok=True)
        fit = {
          'params': {**LAW, 'gamma': 0.1234},
          'bootstrap': {'gamma': interval} if interval else {},
          'profile': {},
          'flags': list(flags),
        }
        (folder / 'fit.json').write_text(json.dumps(fit))

    monkeypatch.setattr(selection, 'compare', run)
    monkeypatch.setattr(summary, '_leverage', lambda workdir, rows: [])

  return use


def written(study, workdir, failed=()):
  line = summary.write(study, workdir, failed)
  found = json.loads((workdir / 'summary.json').read_text())
  assert found['summary_line'] == line
  return found


def test_weightings_stand_beside_the_uniform_one(study, workdir, fake_fits):
  fake_fits()
  rows = written(study, workdir)['weighting']
  assert sorted((row['weighting'], row['exit']) for row in rows) == [
    (name, exit_)
    for name in ('final_one', 'linear', 'uniform')
    for exit_ in (1, 2)
  ]
  assert {(row['budget'], row['width'], row['exits']) for row in rows} == {
    (4e8, 8, 2)
  }


def test_frozen_exits_stand_beside_joint_ones_of_their_kind(
  study, workdir, fake_fits
):
  fake_fits()
  cells = {cell.cell: cell for cell in cells_lib.build(study)}
  rows = written(study, workdir)['frozen']
  found = {row['exit_kind']: row for row in rows}
  assert len(rows) == len(found) == 3  # The last exit is not trained again.
  # The trunk's FLOPs and a quarter more; nearest is the budget of 4e8.
  assert found['head']['flops'] == pytest.approx(5e8, rel=0.05)
  assert found['head']['budget_joint'] == 4e8
  joint = cells['c4e8_w8_d4_g2'], cells['c4e8_w8_d4_g2_separate']
  head, separate = (losses_of(cell)[0] for cell in joint)
  assert found['head']['loss_joint'] == pytest.approx(head)
  assert found['separate']['loss_joint'] == pytest.approx(separate)
  assert found['branch']['loss_joint'] is None  # None was trained jointly.
  assert found['branch']['budget_joint'] is None


def test_cost_counts_what_ran(study, workdir, fake_fits, write_rows):
  fake_fits()
  cells = cells_lib.build(study)
  runs = sorted((workdir / 'cells').iterdir())
  (runs[0] / run_folder.ROWS).unlink()
  [wild] = [cell for cell in cells if cell.cell == runs[1].name]
  (runs[1] / run_folder.ROWS).unlink()
  write_rows(workdir, wild, None)
  for run, own in ((runs[2], 0.25), (runs[3], 0.5)):
    progress = [{'step': 1, 'seconds_per_step': own}]
    storage.append(run / run_folder.PROGRESS, progress)
  cost = written(study, workdir, ['a'])['cost']
  assert cost['finished'] == len(cells) - 2
  assert (cost['diverged'], cost['missing']) == (1, 1)
  # A frozen trunk's FLOPs are its own run's.
  counted = [c for c in cells if c.cell not in (runs[0].name, runs[1].name)]
  assert any(cell.train.init_from for cell in counted)
  own = sum(cells_lib.cost(cell) for cell in counted)
  assert cost['flops'] == pytest.approx(own, rel=1e-12)
  steps = [
    storage.read_rows(runs[k] / run_folder.ROWS)[-1]['step'] for k in (2, 3)
  ]
  due = 0.25 * steps[0] + 0.5 * steps[1]
  assert cost['seconds'] == pytest.approx(due)
  # Of one the time was not its own alone.
  storage.append(runs[4] / run_folder.PROGRESS, [{'step': 1, 'loss': 1.0}])
  assert written(study, workdir, ['a'])['cost']['seconds'] is None


@pytest.mark.parametrize(
  ('interval', 'shown'),
  [
    ({'lo': 0.1, 'hi': 0.2}, '0.1234 [0.1000, 0.2000]'),
    ({'lo': None, 'hi': 0.2}, '0.1234 [-inf, 0.2000]'),
    ({}, '0.1234 [-inf, inf]'),
  ],
)
def test_the_line_shows_no_gamma_without_interval(
  study, workdir, fake_fits, interval, shown
):
  fake_fits(interval, flags=['E not identified'])
  line = written(study, workdir)['summary_line']
  assert '\n' not in line
  assert line.count('0.1234') == line.count(shown) == 3
  assert line.count('(E not identified)') == 3
  measured, by_law = line.split('; by the law (')
  assert measured.startswith('gamma measured at equal FLOPs: final loss ')
  assert 'each exit against its twin 0.0300 [' in measured
  for loss in ('final', 'mean', 'exit'):
    assert f'{loss} loss {shown}' in by_law


def test_one_granularity_fits_no_gamma(
  make_study, tmp_path, write_rows, fake_fits
):
  fake_fits({'lo': 0.1, 'hi': 0.2})
  study = make_study(grid={'granularities': (2,)})
  for cell in cells_lib.build(study):
    write_rows(tmp_path, cell, losses_of(cell))
  found = written(study, tmp_path)
  assert found['gamma'] == found['paired']['gamma'] == []
  assert 'gamma was not fitted' in found['summary_line']
  assert any('one granularity' in note for note in found['notes'])


def test_nothing_finished_is_said_in_one_line(
  study, tmp_path, write_rows, fake_fits
):
  fake_fits()
  write_rows(tmp_path, cells_lib.build(study)[0], None)
  with pytest.raises(errors.UserError, match='no run has finished'):
    summary.write(study, tmp_path, [])


# Of two budgets there are 64 rows at most: programs that the laws' tests share.
@pytest.mark.slow
@pytest.mark.parametrize('budgets', [2, 3])
def test_real_fits_find_gamma_and_leverage(
  study, tmp_path, write_rows, monkeypatch, budgets
):
  grid = dataclasses.replace(study.grid, budgets=study.grid.budgets[:budgets])
  study = dataclasses.replace(study, grid=grid)
  monkeypatch.setattr(summary, 'LOSSES', ('final',))
  monkeypatch.setattr(summary, 'FORMS', summary.FORMS[:2])
  workdir = tmp_path
  for cell in cells_lib.build(study):
    tokens = cell.train.steps * cell.train.batch_size * cell.data.seq_len
    exits = range(1, cell.model.granularity + 1)
    sizes = [flops_lib.params(cell.model, exit_) for exit_ in exits]
    write_rows(
      workdir,
      cell,
      [
        (1 + 30 / size**0.4 + 90 / tokens**0.4) * cell.model.granularity**GAMMA
        for size in sizes
      ],
    )
  found = written(study, workdir)
  total = found['gamma'][0]
  assert (total['loss'], total['form']) == ('final', 'familial_total')
  assert total['gamma'] == pytest.approx(GAMMA, abs=1e-3)
  assert total['lo'] <= total['gamma'] <= total['hi']
  pattern = r'final loss -?\d\.\d{4} \[-?\d\.\d{4}, -?\d\.\d{4}\]'
  assert re.search(pattern, found['summary_line'])
  families = [c for c in cells_lib.build(study) if c.arm in definitions.GRID]
  families = {c.cell for c in families if c.model.granularity > 1}
  assert {row['run'] for row in found['leverage']} == families
  for row in found['leverage']:
    assert row['lo'] is not None
    assert row['infinite'] or row['lo'] <= row['leverage']
  # Every exit of the twins' families has a dense run of its own FLOPs.
  measured = {row['run'] for row in found['leverage_measured']}
  assert {'c4e8_w8_d4_g2', 'c4e8_w16_d4_g4'} <= measured
  fits = {
    path.parent.name: json.loads(path.read_text())['table']['filters']['arms']
    for path in workdir.glob('fits/*/*/fit.json')
  }
  assert fits == {
    'familial_total': ['grid', 'seed'],  # Twins would move the level at G = 1.
    'familial_reducible': ['grid', 'seed'],
    'chinchilla': ['grid', 'seed', 'twin'],
    'branch': ['grid', 'seed', 'twin', 'branch'],
  }

"""Replays: exact where the truth is known, and what the command writes."""

import itertools
import json
import os
import pathlib
import re

import numpy as np
import pytest

from experiments import allocation
from familial.allocation import comparison
from familial.allocation import config
from familial.allocation import curves
from familial.allocation import replay
from familial.allocation import synthetic
from familial.cli import main
from familial.core import storage
from tests.allocation import replays

LAW = config.Law()
EXPERIMENTS = pathlib.Path(allocation.__file__).parent
RESULTS = EXPERIMENTS / 'results'


def outcomes(grids, budget, names=('sh', 'uniform', 'oracle'), **law):
  allocations = {name: replays.allocate(name, grids, budget) for name in names}
  found = list(
    replay.outcomes(allocations, grids, budget, **{'law': LAW, **law})
  )
  return {
    name: {
      key: np.array([getattr(each[name], key) for each in found])
      for key in replay.Outcome.__annotations__
    }
    for name in names
  }


def test_a_policy_that_trains_everything_has_no_error():
  found = outcomes(replays.draws(1), 1e25)
  for mine in found.values():
    assert (mine['gain'] <= 1e-12).all()
  for key in ('regret', 'area', 'line', 'law'):
    np.testing.assert_allclose(found['uniform'][key], 0.0, atol=1e-9)


def test_clean_curves_of_a_law_give_that_law_back():
  # On curves without noise even a fraction of them extrapolates exactly.
  found = outcomes(replays.draws(2), 2e19)['sh']
  assert (np.abs(found['law']) < 1e-3).all()
  assert (np.abs(found['line']) > 1e-3).all()  # The law is not a line.


def logged(points):
  """Curves of a law after a first percent that follows none."""
  for i, params in enumerate(np.geomspace(1e7, 1e9, 4)):
    for j, end in enumerate(np.geomspace(5, 80, 3) * params):
      tokens = np.linspace(end / points, end, points)
      loss = 1.7 + 400 / params**0.34 + 410 / tokens**0.28
      loss += 3 * np.exp(-tokens / (0.01 * end))
      known = {'N': np.full(points, params), 'D': tokens}
      yield curves.Curve(f'{i} {j}', 6 * params * tokens, loss, known)


def test_how_densely_curves_were_logged_does_not_change_the_law():
  error = {
    points: outcomes([list(logged(points))], 3e19)['sh']['law'][0]
    for points in (40, 900)
  }
  assert abs(error[900]) < 0.02
  assert error[900] == pytest.approx(error[40], abs=0.02)
  [dense] = [each for each in logged(900) if each.name == '0 0']
  kept = dense.thinned()
  assert kept.flops[-1] == dense.flops[-1] and 24 <= len(kept.flops) <= 32
  assert set(kept.flops) <= set(dense.flops)
  assert all(len(each.flops) == 60 for each in curves.thin(list(logged(60))))
  short = list(logged(40))
  assert [len(each.flops) for each in curves.thin([dense, *short])] == [
    len(each.thinned().flops) for each in (dense, *short)
  ]


def test_a_law_sees_nothing_that_was_not_trained():
  dense = next(iter(logged(900)))
  seen = dense.cut(float(dense.flops[600]) * 1.0001)
  kept = seen.at_points_of(dense.thinned())
  assert kept.flops[-1] == seen.flops[-1] and kept.loss[-1] == seen.loss[-1]
  assert set(kept.flops[:-1]) <= set(dense.thinned().flops)


def test_the_draws_that_ended_are_kept_where_a_replay_fails(
  tmp_path, monkeypatch
):
  settings = config.ReplayConfig(
    title='', cells=((4, 1e18),), curves=6, draws=3, policies=('uniform',),
    law=config.Law(''),
  )  # fmt: skip
  comparison.run(settings, tmp_path / 'whole')
  calls = itertools.count()
  original = replay.checked

  def failing(*arguments):
    if next(calls) == 7:  # of three policies in the third draw
      raise KeyboardInterrupt
    return original(*arguments)

  monkeypatch.setattr(replay, 'checked', failing)
  with pytest.raises(KeyboardInterrupt):
    comparison.run(settings, tmp_path / 'part')
  whole, part = (
    storage.read_rows(tmp_path / name / comparison.DRAWS)
    for name in ('whole', 'part')
  )
  assert len(whole) == 9 and len(part) == 6
  assert all(row in whole for row in part)


@pytest.mark.slow
def test_laws_are_compared_with_the_law_that_curves_obey():
  grids, law = replays.draws(2), synthetic.LAW
  whole = outcomes(grids, 2e19)['sh']['law']
  known = outcomes(grids, 2e19, truth=law)['sh']['law']
  np.testing.assert_allclose(known, whole, atol=1e-4)
  other = outcomes(grids, 2e19, truth={**law, 'E': 2 * law['E']})['sh']['law']
  assert (other < -0.3).all()


def test_outcomes_by_hand():
  tokens = np.array([1.0, 2.0, 4.0])
  a = curves.Curve('a', tokens, np.array([4.0, 3.0, 2.0]))
  b = curves.Curve('b', tokens, np.array([5.0, 2.5, 1.0]))
  [found] = replay.outcomes(
    {'sh': replays.allocate('uniform', [[a, b]], 4.0)},
    [[a, b]],
    4.0,
    config.Law(''),
  )
  found = found['sh']
  # All of the budget on b would reach 1; half of it on each reaches 2.5.
  assert (found.best, found.spent, found.gain) == (2.5, 4.0, 0.0)
  assert found.regret == pytest.approx(1.5)
  assert found.saving == pytest.approx(0.5)
  assert np.isnan(found.law)


def draw(number, policy, predictions=(), **outcome):
  values = dict.fromkeys(replay.Outcome.__annotations__, 0.0) | outcome
  return replay.Draw(
    'clean', 2, 1.0, number, policy, ('a', 'b'), ((0,),),
    replay.Outcome(**values), tuple(predictions),
  )  # fmt: skip


def test_statistics_over_draws_by_hand():
  nan = float('nan')
  base = [draw(i, 'sh', law=x) for i, x in enumerate((0.3, -0.2, nan))]
  bound = [draw(i, 'oracle', gain=x) for i, x in enumerate((0.2, 0.4, 0.6))]
  own = [
    draw(i, 'own', gain=gain, law=law)
    for i, (gain, law) in enumerate(((0.1, 0.005), (0.2, -0.1), (0.3, 0.01)))
  ]
  found = comparison.summary(own, base, bound)
  assert found.gain.value == pytest.approx(0.2)
  assert 0.1 <= found.gain.lo < 0.2 < found.gain.hi <= 0.3
  assert found.share_of_bound.value == pytest.approx(0.5)
  assert found.share_of_bound.lo == pytest.approx(0.5)
  assert found.law_error.value == 0.01 and found.law_fits == 3
  assert found.law_error_less.value == pytest.approx((0.295 + 0.1) / 2)
  assert found.law_within_1_percent.value == pytest.approx(2 / 3)
  sh = comparison.summary(base, base, bound)
  assert sh.law_fits == 2 and sh.law_error.value == 0.3


def test_an_interval_is_of_the_draws_that_are_known():
  found = comparison.interval(np.array([1.0, 2.0, 3.0, np.nan]), np.mean)
  assert found.value == 2.0 and 1 <= found.lo < 2 < found.hi <= 3
  one = comparison.interval(np.array([np.nan, 5.0]), np.mean)
  assert (one.value, one.lo, one.hi) == (5.0, None, None)
  assert np.isnan(comparison.interval(np.array([np.nan]), np.mean).value)


def test_calibration_by_hand():
  predictions = [
    replay.Checked(1, 3.0, 3.0, 2.7, 3.3, 3.0),
    replay.Checked(1, 5.0, 3.0, 2.7, 3.3, 5.0),
    replay.Checked(2, 4.0, 4.4, 3.0, 5.0, 6.0),
  ]
  first, second = comparison.calibration([draw(0, 'sh_lmc', predictions)])
  assert (first.round, first.predictions, first.coverage.value) == (1, 2, 0.5)
  assert (second.round, second.predictions) == (2, 1)
  assert second.coverage.value == 1.0
  for name, value in {
    'error': 0.2, 'bias': -0.2, 'held_error': 0.0, 'width': (0.2 + 0.12) / 2,
  }.items():  # fmt: skip
    assert getattr(first, name) == pytest.approx(value), name


def test_predictions_are_compared_with_the_whole_curves():
  grids = replays.draws()
  allocations = replays.allocate('sh_ensemble_power_law', grids, 1e19)
  found = [
    each
    for allocation, grid in zip(allocations, grids, strict=True)
    for each in replay.checked(allocation, grid)
  ]
  assert {each.round for each in found} == {1, 2}
  errors = [[e.mean / e.true - 1, e.seen / e.true - 1] for e in found]
  predicted, unchanged = np.median(np.abs(errors), axis=0)
  assert predicted < unchanged
  assert np.mean([e.lo <= e.true <= e.hi for e in found]) > 0.5


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
  status = main.run(['familial', 'allocate', *flags])
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
    json.loads((tmp_path / name / comparison.RESULT).read_text())
    for name in 'ab'
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
    for line in (tmp_path / 'a' / comparison.DRAWS).read_text().splitlines()
  ]
  assert len(rows) == 2 * 4
  mean = np.mean([row['best'] for row in rows if row['policy'] == 'sh'])
  assert cell['policies']['sh']['best']['value'] == pytest.approx(mean)
  assert all(row['spent'] <= 1e18 for row in rows)


@pytest.mark.parametrize(
  'path', sorted(RESULTS.glob('allocation_[ns]*/*.json')), ids=str
)
def test_results_are_read_back_and_written_as_they_were(tmp_path, path):
  found = comparison.ReplaySummary.read(path)
  found.write(tmp_path / 'again.json')
  again = json.loads((tmp_path / 'again.json').read_text())
  before = json.loads(path.read_text())
  # Earlier files lack these.
  before['config'] = {'maximize': False, 'wide': {}, **before['config']}
  for cell in before['cells']:
    for rows in cell['calibration'].values():
      for row in rows:
        row.setdefault('width', None)  # The earliest files lack it.
  assert again == before


@pytest.mark.parametrize(
  ('more', 'what'),
  [
    (('--budget=1e18', '--candidates=7'), 'candidates: 7; .* has 6 curves'),
    (('--budget=1e3',), 'no curve of .* has a loss before'),
    (
      ('--budget=1e18', '--policy=lmc'),
      "policy: 'lmc' is not one of.*'sh_lmc'",
    ),
    (('--budget=1e18', '--eta=1'), 'eta: 1 is not allowed'),
    (('--budget=1e18', '--draws=0'), 'draws: 0'),
    ((), '--budget: is missing'),
    (('--budget=1e18', '--where=token>=1'), "'token>=1': a condition is"),
    (('--budget=1e18', '--where=tokens>=1e30'), 'no row is left to fit'),
    (('--budget=1e18', '--form=familial_total'), 'needs column G'),
    (('--budget=1e18', '--form=power_of_compute'), 'has N and D'),
  ],
)
def test_refusals_are_one_line(tmp_path, capsys, more, what):
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
  ours = RESULTS / 'familial_law_cpu' / 'rows.jsonl'
  status, _, err = run(
    capsys, f'--table={ours}', '--curve=width', '--budget=1e12',
    f'--out={tmp_path / "out"}',
  )  # fmt: skip
  assert status == 2 and '--curve: width is not allowed' in err


@pytest.mark.parametrize(
  'arg', ['test', 'synthetic', 'other_law', 'nanogpt', 'savings']
)
def test_the_experiments_are_replays(arg):
  found = config.read(allocation.get_config(arg))
  for candidates, budget in found.cells:
    for _, pool in replay.tables_of(found) if not found.columns else ():
      replay.check(pool, candidates, budget, found.eta)


@pytest.mark.parametrize('kind', synthetic.NOISES)
def test_noise_is_as_large_as_it_says(kind):
  rng = np.random.default_rng(0)
  ends = [synthetic.log_noise(kind, rng)[-1] for _ in range(4000)]
  assert np.std(ends) == pytest.approx(float(kind != 'clean'), abs=0.05)
  assert abs(np.mean(ends)) < 0.06


@pytest.mark.tables
@pytest.mark.parametrize(
  ('candidates', 'budget', 'loss', 'uniform', 'oracle'),
  [
    (20, 1e19, 3.22, -13.0, 2.04),
    (20, 1e20, 2.97, -4.0, 6.95),
    (5, 1e19, 3.11, -6.4, 1.02),
    (5, 1e20, 2.90, 1.9, 4.42),
  ],
)
def test_real_curves_give_the_figures_of_arxiv_2605_17234(
  candidates, budget, loss, uniform, oracle
):
  asked = config.read(allocation.get_config('nanogpt'))
  folder = pathlib.Path(os.environ['FAMILIAL_TABLES']) / 'nanogpt_curves'
  pool = curves.read(folder / 'curves.csv', asked.columns, asked.curve)
  assert len(pool.curves) == 30 and pool.flags == ()
  rng = np.random.default_rng(0)
  grids = [
    [pool.curves[i] for i in rng.choice(30, candidates, replace=False)]
    for _ in range(200)
  ]
  found = outcomes(grids, budget, law=config.Law(''))
  assert found['sh']['best'].mean() == pytest.approx(loss, abs=0.03)
  # Four standard errors of 200 draws.
  gain = {name: 100 * each['gain'].mean() for name, each in found.items()}
  assert gain['uniform'] == pytest.approx(uniform, abs=0.7)
  assert gain['oracle'] == pytest.approx(oracle, abs=0.5)
  assert (found['oracle']['best'] <= found['sh']['best']).all()

"""A live allocation: it spends what it may, and goes on exactly where it was."""

import dataclasses
import functools
import json
import subprocess
import sys
import time

import ml_collections
import numpy as np
import pytest

from experiments import allocation_live
from familial.allocation import config
from familial.allocation import curves
from familial.allocation import halving
from familial.allocation import replay
from familial.cli import main
from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.studies import allocation
from familial.studies import allocation_summary
from familial.studies import cells as cells_lib
from familial.studies import sweep
from familial.studies import templates
from tests.allocation import replays


@pytest.fixture(scope='session')
def make(text_data):
  """Makes live allocations of one shape, with and without exits."""

  def make(**changes):
    config = templates.allocation_template()
    config.title = 'tiny'
    config.data.update(dataclasses.asdict(text_data))
    config.data.seq_len = 16
    config.model.base_width = 8
    config.train.update(
      base_lr=0.01, batch_size=4, first_evaluation=2, evaluations=5,
      eval_tokens=256, eval_batch_size=8,
    )  # fmt: skip
    config.shapes = ((8, 4, 1),)
    config.granularities = (1, 2, 4)
    config.horizon, config.budget, config.policy = 6e7, 1.2e8, 'sh'
    config.law.form = ''
    with config.unlocked():
      config.update(changes)
    return templates.allocation(config)

  return make


@pytest.fixture(scope='session')
def whole(make, tmp_path_factory):
  """A finished allocation, whose other candidates were trained on as well."""
  workdir = tmp_path_factory.mktemp('whole')
  study = make()
  cells = allocation.build(study)
  allocation.allocate(study, cells, workdir)
  sweep.execute(cells, workdir)
  return study, workdir


def _rounds(workdir):
  return allocation_summary.decided(workdir)


@pytest.mark.slow
def test_it_spends_real_flops_within_its_budget(whole):
  study, workdir = whole
  cells = allocation.build(study)
  rounds = _rounds(workdir)
  assert [len(made.alive) for made in rounds] == [3, 1]
  spent = dict.fromkeys(range(3), 0.0)
  for made in rounds:
    best = sorted(made.alive, key=lambda i: made.seen[made.alive.index(i)])
    if made is not rounds[-1]:
      assert set(made.kept) == set(best[:1])
    for i, flops in zip(made.alive, made.spent, strict=True):
      step = cells_lib.cost(cells[i]) / cells[i].train.steps
      target = min(spent[i] + made.share, cells_lib.cost(cells[i]))
      # As many whole steps as the share pays for.
      assert target - step < flops <= target
      spent[i] = flops
  assert sum(spent.values()) <= study.budget


@pytest.mark.slow
def test_what_is_live_is_what_its_own_curves_replay(whole):
  study, workdir = whole
  cells = allocation.build(study)
  source = allocation.Live(study, cells, workdir)
  known = source.advance({i: cells_lib.cost(c) for i, c in enumerate(cells)})
  curves = [known[i] for i in range(len(cells))]
  [again] = replays.allocate(
    study.policy, [curves], study.budget, eta=study.eta, law=study.law
  )
  live = _rounds(workdir)
  assert [r.kept for r in again.rounds] == [r.kept for r in live]
  # Live training takes whole steps: a little less.
  for mine, theirs in zip(live, again.rounds, strict=True):
    assert np.all(np.array(mine.spent) <= theirs.spent)
    np.testing.assert_allclose(mine.spent, theirs.spent, rtol=0.2)


@pytest.mark.slow
@pytest.mark.parametrize('round_', [0, 1])
def test_killed_in_any_round_it_goes_on_exactly(
  make, whole, tmp_path, monkeypatch, round_
):
  study, expected = whole
  execute, calls = sweep.execute, []

  def killed(cells, workdir, *, until=None, **how):
    if len(calls) == round_ and until is not None:
      # The first to train gets there; then the process dies.
      first = next(iter(until))
      execute(cells, workdir, until={first: until[first]}, **how)
      raise KeyboardInterrupt
    calls.append(until)
    return execute(cells, workdir, until=until, **how)

  with monkeypatch.context() as patch:
    patch.setattr(sweep, 'execute', killed)
    with pytest.raises(KeyboardInterrupt):
      allocation.allocate(study, allocation.build(study), tmp_path)
  assert len(_rounds(tmp_path)) == round_
  allocation.allocate(study, allocation.build(study), tmp_path)
  assert (tmp_path / allocation_summary.ROUNDS).read_bytes() == (
    expected / allocation_summary.ROUNDS
  ).read_bytes()
  for cell in allocation.build(study):
    mine, theirs = (
      storage.read_rows(sweep.folder(folder, cell.cell) / run_folder.ROWS)
      for folder in (tmp_path, expected)
    )
    assert mine == theirs[: len(mine)]


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_exactly(tmp_path):
  """SIGKILL while it trains, again and again, and then as if nothing had been."""
  command = [
    sys.executable, '-m', 'familial', 'allocate',
    '--config=experiments/allocation_live.py:test', '--config.full=False',
  ]  # fmt: skip
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  run = functools.partial(subprocess.run, capture_output=True, check=True)
  run([*command, f'--out={whole}'])

  def written():
    rows = killed.glob(f'cells/*/{run_folder.ROWS}')
    return sum(path.stat().st_size for path in rows)

  kills = 0
  for _ in range(4):
    with subprocess.Popen(
      [*command, f'--out={killed}'],
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    ) as started:
      before = written()
      while written() == before and started.poll() is None:
        time.sleep(0.01)
      time.sleep(0.2)
      kills += started.poll() is None
      started.kill()
  assert kills >= 3
  run([*command, f'--out={killed}'])
  rounds = (whole / allocation_summary.ROUNDS).read_bytes()
  assert len(rounds.splitlines()) == 3
  assert (killed / allocation_summary.ROUNDS).read_bytes() == rounds
  cells = sorted(path.name for path in (whole / 'cells').iterdir())
  assert len(cells) == 6
  for cell in cells:
    one, other = (
      (sweep.folder(folder, cell) / run_folder.ROWS).read_bytes()
      for folder in (whole, killed)
    )
    assert one == other


def test_losses_of_a_decay_are_spent_and_not_seen(make):
  train = {**make().train, 'schedule': 'wsd', 'decay_fraction': 0.25}
  study = dataclasses.replace(make(), train=train)
  assert (make().steady, study.steady) == (1.0, 0.75)
  cells = allocation.build(study)
  live = allocation.Live(study, cells, None)
  for i, cell in enumerate(cells):
    # No candidate is trained into its decay.
    assert live.limit(i) == int(0.75 * cell.train.steps) * live.step(i)
  row = {
    'run': 'a', 'cell': 'a', 'exit': 1, 'exits': 1, 'params': 10.0,
    'params_full': 10.0, 'status': 'running',
  }  # fmt: skip
  rows = [
    {**row, 'step': step, 'tokens': 4.0 * step, 'tokens_dense': 4.0 * step,
     'flops': 240.0 * step, 'loss': 5 - step / 50}
    for step in (50, 75, 80, 100)
  ]  # fmt: skip
  last = study.steady * 100
  curve = curves.of_run('a', rows, 'final', {}, last)
  assert curve.flops.tolist() == [12_000.0, 18_000.0]
  assert curve.end == 24_000.0 and curve.best == 3.5
  # Cut within the decay, that much is spent; nothing more is seen.
  part = curve.cut(20_000.0)
  assert part.end == 20_000.0 and len(part.flops) == 2
  assert replay.KnownCurves([curve]).limit(0) == 18_000.0


@pytest.mark.slow
def test_pausing_changes_nothing_of_a_run(make, whole, tmp_path):
  study, workdir = whole
  cells = allocation.build(study)
  sweep.execute(cells, tmp_path)
  for cell in cells:
    straight, paused = (
      storage.read_rows(sweep.folder(folder, cell.cell) / run_folder.ROWS)
      for folder in (tmp_path, workdir)
    )
    kept = [row for row in paused if row['step'] in cell.train.evaluated]
    assert straight == kept


@pytest.mark.slow
def test_a_finished_one_is_left_alone(whole, monkeypatch):
  study, workdir = whole
  before = {path: path.read_bytes() for path in workdir.rglob('*.jsonl')}
  monkeypatch.setattr(sweep, 'work', None)  # Nothing is trained.
  found = allocation.allocate(study, allocation.build(study), workdir)
  assert found.rounds == tuple(_rounds(workdir))
  assert before == {path: path.read_bytes() for path in before}


def test_a_round_waits_for_who_failed(make, tmp_path, monkeypatch):
  study = make()
  monkeypatch.setattr(
    sweep, 'execute', lambda cells, workdir, until, **how: ['w8_d4_g1']
  )
  with pytest.raises(errors.Incomplete, match='1 of 3 candidates failed'):
    allocation.allocate(study, allocation.build(study), tmp_path)
  assert _rounds(tmp_path) == []


@pytest.mark.parametrize(
  ('changes', 'what'),
  [
    ({'policy': 'oracle'}, "policy: 'oracle' knows the future"),
    ({'policy': 'lmc'}, "policy 'lmc' is unknown"),
    ({'eta': 1}, 'eta: 1'),
    ({'budget': 1e4}, 'candidate w8_d4_g1: budget: 10000 FLOPs give it'),
    ({'granularities': (1,)}, 'at least 2'),
    ({'loss': 'exit'}, "loss: 'exit' is not one of final, mean"),
    ({'horizon': 0.0}, 'horizon: 0.0 must be positive'),
  ],
)
def test_what_cannot_be_is_one_line(make, changes, what):
  with pytest.raises(errors.UserError, match=what):
    allocation.build(make(**changes))


def test_who_diverges_before_any_loss_leaves_a_summary(make):
  # All policies on curves of which one, or all, show nothing.
  study = dataclasses.replace(make(), law=config.Law('chinchilla'))
  nothing = np.zeros(0)
  gone = curves.Curve('gone', nothing, nothing, {}, {}, 1e6)
  found = allocation_summary._law(study, None, 'allocated', [gone, gone], 1e9)
  assert found['rows'] == 0 and 'no curve has a loss' in found['error']


def test_a_rate_that_falls_to_its_own_end_is_refused(make):
  config = allocation_live.get_config('test')
  config.train.schedule = 'cosine'
  with pytest.raises(errors.UserError, match=r"train\.schedule: 'cosine'"):
    templates.allocation(config)


@pytest.mark.parametrize('arg', ['test', 'cpu', 'gpu', 'paper'])
def test_experiments_make_candidates_that_their_budgets_pay(arg):
  config = allocation_live.get_config(arg)
  assert isinstance(config, ml_collections.ConfigDict)
  study = templates.allocation(config)
  cells = allocation.build(study)
  counts = halving.survivors(len(cells), study.eta)
  last = sum(study.budget / (n * len(counts)) for n in counts)
  # The last survivor is trained to most of the horizon, and the grid costs more.
  assert 0.3 * study.horizon < last <= 1.5 * study.horizon
  assert study.budget < 0.5 * sum(map(cells_lib.cost, cells))
  for cell in cells:
    assert cell.train.schedule in ('constant', 'wsd')


@pytest.mark.slow
def test_the_law_of_a_fraction_stands_beside_that_of_all(tmp_path, capsys):
  flags = ['--config=experiments/allocation_live.py:test', f'--out={tmp_path}']
  assert main.run(['familial', 'allocate', *flags]) == 0
  assert 'its law is off by at most' in capsys.readouterr().out
  found = json.loads((tmp_path / 'summary.json').read_text())
  for name in ('allocated', 'full'):
    assert (tmp_path / 'fits' / name / 'fit.json').exists()
    assert found['laws'][name]['rows'] > 6
  spent = sum(row['flops'] for row in found['candidates'])
  assert found['spent'] == pytest.approx(spent)
  assert found['saving'] == pytest.approx(1 - spent / found['grid'])
  assert found['laws']['allocated']['rows'] < found['laws']['full']['rows']
  apart = found['apart']['params']['gamma']
  both = [
    found['laws'][name]['params']['gamma']['value']
    for name in ('allocated', 'full')
  ]
  assert apart == pytest.approx(both[0] - both[1])
  assert {'sh', 'uniform', 'law', 'oracle'} <= set(found['replays'])
  assert found['replays']['sh']['gain'] == 0.0

"""A live allocation: it spends what it may, and goes on exactly where it was."""

import dataclasses
import functools
import subprocess
import sys
import time

import numpy as np
import pytest

from familial.allocation import curves
from familial.allocation import replay
from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.studies import live_allocation as allocation
from familial.studies import shapes
from familial.studies import study as study_lib
from familial.studies import sweep
from familial.training import rows as rows_lib
from tests.allocation import replays

STUDY = allocation.LIVE


@pytest.fixture(scope='session')
def make(text_data):
  """Makes live allocations of one shape, with and without exits."""

  def make(**changes):
    config = STUDY.template()
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
    return STUDY.read_config(config)

  return make


@pytest.fixture(scope='session')
def whole(make, tmp_path_factory):
  """A finished allocation, whose other candidates were trained on as well."""
  workdir = tmp_path_factory.mktemp('whole')
  study = make()
  cells = STUDY.runs(study)
  allocation.allocate(study, cells, workdir)
  sweep.execute(cells, workdir)
  return study, workdir


@pytest.mark.slow
def test_it_spends_real_flops_within_its_budget(whole):
  study, workdir = whole
  cells = STUDY.runs(study)
  rounds = allocation.decided(workdir)
  assert [len(made.alive) for made in rounds] == [3, 1]
  spent = dict.fromkeys(range(3), 0.0)
  for made in rounds:
    best = sorted(made.alive, key=lambda i: made.seen[made.alive.index(i)])
    if made is not rounds[-1]:
      assert set(made.kept) == set(best[:1])
    for i, flops in zip(made.alive, made.spent, strict=True):
      step = shapes.cost(cells[i]) / cells[i].train.steps
      target = min(spent[i] + made.share, shapes.cost(cells[i]))
      # As many whole steps as the share pays for.
      assert target - step < flops <= target
      spent[i] = flops
  assert sum(spent.values()) <= study.budget


@pytest.mark.slow
def test_what_is_live_is_what_its_own_curves_replay(whole):
  study, workdir = whole
  cells = STUDY.runs(study)
  source = allocation.Live(study, cells, workdir)
  known = source.advance({i: shapes.cost(c) for i, c in enumerate(cells)})
  curves = [known[i] for i in range(len(cells))]
  [again] = replays.allocate(
    study.policy, [curves], study.budget, eta=study.eta, law=study.law
  )
  live = allocation.decided(workdir)
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

  def killed(cells, workdir, options, *, until=None):
    if len(calls) == round_ and until is not None:
      # The first to train gets there; then the process dies.
      first = next(iter(until))
      execute(cells, workdir, options, until={first: until[first]})
      raise KeyboardInterrupt
    calls.append(until)
    return execute(cells, workdir, options, until=until)

  with monkeypatch.context() as patch:
    patch.setattr(sweep, 'execute', killed)
    with pytest.raises(KeyboardInterrupt):
      allocation.allocate(study, STUDY.runs(study), tmp_path)
  assert len(allocation.decided(tmp_path)) == round_
  allocation.allocate(study, STUDY.runs(study), tmp_path)
  assert (tmp_path / allocation.ROUNDS).read_bytes() == (
    expected / allocation.ROUNDS
  ).read_bytes()
  for cell in STUDY.runs(study):
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
  rounds = (whole / allocation.ROUNDS).read_bytes()
  assert len(rounds.splitlines()) == 3
  assert (killed / allocation.ROUNDS).read_bytes() == rounds
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
  cells = STUDY.runs(study)
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
  cells = STUDY.runs(study)
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
  found = allocation.allocate(study, STUDY.runs(study), workdir)
  assert found.rounds == tuple(allocation.decided(workdir))
  assert before == {path: path.read_bytes() for path in before}


def test_a_round_waits_for_who_failed(make, tmp_path, monkeypatch):
  study = make()
  monkeypatch.setattr(
    sweep, 'execute', lambda cells, workdir, options, until: ['w8_d4_g1']
  )
  with pytest.raises(errors.Incomplete, match='1 of 3 candidates failed'):
    allocation.allocate(study, STUDY.runs(study), tmp_path)
  assert allocation.decided(tmp_path) == []


def test_it_has_a_summary_at_every_moment(make, make_plan, tmp_path):
  """Before its first row, and where all diverge before a loss."""
  study = make(law={'form': 'chinchilla'})
  runs = STUDY.runs(study)
  storage.write_json(tmp_path / 'plan.json', make_plan(STUDY, study))
  summary = STUDY.summarise(study, study_lib.read(tmp_path))
  [spending] = summary.tables.spending
  assert (spending.spent, spending.rounds) == (0.0, 0)
  assert (spending.saving, summary.tables.points) == (1.0, ())
  for run in runs:
    folder = sweep.folder(tmp_path, run.cell)
    folder.mkdir(parents=True)
    rows = rows_lib.of_evaluation(
      run, run.cell, 'f00d', 1, 0.0, 0.1, None, 1.0, 'diverged'
    )
    storage.append(folder / run_folder.ROWS, rows)
  results = study_lib.read(tmp_path)
  notes = list(STUDY.fit(study, results))
  assert len(notes) == 1 and 'no curve has a loss' in notes[0]
  summary = STUDY.summarise(study, results, notes)
  assert all(row.diverged for row in summary.tables.candidates)
  assert summary.cost.diverged == 3 and summary.tables.laws == ()
  assert len(summary.flags) == 2
  study_lib.write_summary(tmp_path, summary)
  assert STUDY.read_summary(tmp_path) == summary


@pytest.mark.slow
def test_the_law_of_a_fraction_is_beside_that_of_all(tmp_path, familial):
  flags = ['--config=experiments/allocation_live.py:test', f'--out={tmp_path}']
  status, _, err = familial('allocate', *flags)
  assert status == 0, err
  assert (tmp_path / 'report' / 'index.html').exists()
  tables = STUDY.read_summary(tmp_path).tables
  [spending] = tables.spending
  spent = sum(row.flops for row in tables.candidates)
  assert spending.spent == pytest.approx(spent)
  assert spending.saving == pytest.approx(1 - spent / spending.grid)
  assert (spending.rounds, spending.planned) == (3, 3)
  assert spending.grid == sum(row.flops_in_all for row in tables.candidates)
  rows = {law.of: law.rows for law in tables.laws}
  assert 6 < rows['allocated'] < rows['full']
  for quantity in tables.quantities:
    one, other = quantity.allocated, quantity.full
    if one is not None and other is not None:
      ratio, apart = one.value / other.value - 1, one.value - other.value
      due = ratio if quantity.kind == 'loss' else apart
      assert quantity.difference == pytest.approx(due)
  replayed = {row.policy: row for row in tables.replays}
  assert {'sh', 'uniform', 'law', 'oracle'} <= set(replayed)
  assert replayed['sh'].gain == 0.0
  # What was kept is what has the lowest scores, and no candidate left twice.
  for number in (1, 2):
    ranked = [row for row in tables.ranking if row.round == number]
    out = [row.score for row in ranked if not row.kept]
    assert out and max(row.score for row in ranked if row.kept) <= min(out)
    pruned = [row.cell for row in tables.candidates if row.pruned == number]
    assert sorted(pruned) == sorted(r.cell for r in ranked if not r.kept)

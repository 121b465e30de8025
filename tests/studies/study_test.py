"""What a study's folder holds, and its summary, written and read back."""

import dataclasses
import json
import math

import pytest

from familial.core import errors
from familial.core import run_folder
from familial.core import schema
from familial.core import storage
from familial.core.estimate import Estimate
from familial.studies import isoflop
from familial.studies import registry
from familial.studies import study as study_lib
from familial.studies import sweep

STUDY = isoflop.ISOFLOP
COST = study_lib.Cost(1e9, None, 2, 0, 1)


@pytest.fixture
def four(make_study, make_plan, tmp_path, write_rows):
  """A plan's four runs: finished, diverged, running, not started."""
  config = make_study(grid={'budgets': (1e8, 4e8)})
  runs = STUDY.runs(config)
  first, second, third, _ = runs
  write_rows(tmp_path, first, [3.0])
  write_rows(tmp_path, second, None)
  folder = write_rows(tmp_path, third, [2.0])
  path = folder / run_folder.ROWS
  rows = [{**row, 'status': 'running'} for row in storage.read_rows(path)]
  path.unlink()
  storage.append(path, rows)
  storage.write_json(tmp_path / study_lib.PLAN, make_plan(STUDY, config))
  return tmp_path


def test_runs_have_the_plan_s_order_and_their_status(four):
  results = study_lib.read(four)
  assert [run.cell for run in results.runs] == [
    cell['cell'] for cell in results.plan['cells']
  ]
  status = [run.status for run in results.runs]
  assert status == ['finished', 'diverged', 'running', 'not run']
  first, diverged, _, planned = results.runs
  assert results.finished == (first,)
  assert (first.losses, first.rows[-1]['loss']) == ((3.0,), 3.0)
  assert first.log_loss('mean') == first.log_loss('final') == math.log(3.0)
  assert diverged.losses == (None, None) and not diverged.finished
  assert (planned.rows, planned.heads, planned.exits) == ((), 0, 2)
  cost = study_lib.cost_of(results)
  assert (cost.finished, cost.diverged, cost.missing) == (1, 1, 2)
  flags = list(study_lib.flags_of(results))
  assert len(flags) == 3
  for run in results.runs[1:]:
    assert sum(run.cell in flag for flag in flags) >= 1


def test_finished_runs_that_repeat_their_text_are_flagged(four):
  results = study_lib.read(four)
  often = dataclasses.replace(results.runs[0], epochs=4.1)
  (flag,) = study_lib.flags_of(dataclasses.replace(results, runs=(often,)))
  assert often.cell in flag


def test_the_last_evaluation_counts(four):
  path = sweep.folder(four, 'c1e8_w8_d2_g1') / run_folder.ROWS
  (row,) = storage.read_rows(path)
  # A diverged run may have written its last step again.
  storage.append(
    path,
    [{**row, 'step': row['step'] + 1, 'loss': loss} for loss in (2.5, 2.4)],
  )
  (run,) = study_lib.read(four).finished
  assert run.losses == (2.4,) and len(run.rows) == 1


def test_seconds_are_those_of_all_runs_or_unknown(four):
  folders = study_lib.read(four).run_folders()
  steps = [storage.read_rows(f / run_folder.ROWS)[-1]['step'] for f in folders]
  for folder, own in zip(folders, (0.25, 0.5), strict=False):
    progress = [{'step': 1, 'seconds_per_step': own}]
    storage.append(folder / run_folder.PROGRESS, progress)
  seconds = study_lib.cost_of(study_lib.read(four)).seconds
  assert seconds == pytest.approx(0.25 * steps[0] + 0.5 * steps[1])
  # Of one the time was not its own alone.
  storage.append(folders[2] / run_folder.PROGRESS, [{'step': 1}])
  assert study_lib.cost_of(study_lib.read(four)).seconds is None


def test_rows_kept_without_runs_are_the_same_results(four, tmp_path):
  kept = tmp_path / 'kept'
  kept.mkdir()
  results = study_lib.read(four)
  storage.append(kept / 'rows.jsonl', results.rows)
  storage.write_json(kept / study_lib.PLAN, dict(results.plan))
  again = study_lib.read(kept)
  assert again.runs == results.runs and again.rows == results.rows
  assert again.run_folders() == []
  storage.append(kept / 'rows.jsonl', [{'cell': 'odd', 'loss': 1.0}])
  with pytest.raises(errors.UserError, match=r'rows\.jsonl: row 5 lacks arm'):
    study_lib.read(kept)


def test_nothing_finished_has_no_summary(four, make_study):
  results = study_lib.read(four)
  none = dataclasses.replace(results, runs=results.runs[1:])
  with pytest.raises(errors.UserError, match='no run has finished'):
    STUDY.summarise(make_study(), none)


@dataclasses.dataclass(frozen=True)
class Row:
  name: str
  value: Estimate
  layers: tuple[int, ...]
  share: float | None = None


@dataclasses.dataclass(frozen=True)
class Tables:
  """Tables of a small study."""

  first: tuple[Row, ...]
  second: tuple[Row, ...] = ()


@dataclasses.dataclass(frozen=True)
class Config:
  """A small study.

  Attributes:
    least: least number of finished runs.
  """

  title: str = ''
  least: schema.Count = 1


class Small(study_lib.Study[Config, Tables]):
  kind = 'small'
  config_class = Config
  tables_class = Tables

  def analyse(self, config, results):
    return 'small', Tables((Row('a', Estimate(1.0, 0.5, 1.5), (1, 2)),))

  def run(self, config, workdir, options=study_lib.Options()):
    raise NotImplementedError


def summary_of(tables):
  return study_lib.Summary(
    'small', 'a line', {'jax': '1'}, COST, ('a flag',), tables
  )


def test_a_summary_is_read_as_it_was_written(tmp_path):
  rows = (
    Row('a "b"\n', Estimate(0.1, None, 1 / 3), (1, 2), 1e-300),
    Row('b', Estimate(-1.0), ()),
  )
  for tables in (Tables(rows), Tables((), rows), Tables(())):
    summary = summary_of(tables)
    study_lib.write_summary(tmp_path, summary)
    assert Small().read_summary(tmp_path) == summary
    values = json.loads((tmp_path / study_lib.SUMMARY).read_text('utf-8'))
    assert values['schema'] == storage.SCHEMA


def test_numbers_that_are_not_finite_are_written_as_null(tmp_path):
  rows = (Row('a', Estimate(1.0, -math.inf, math.inf), (), math.nan),)
  study_lib.write_summary(tmp_path, summary_of(Tables(rows)))
  (row,) = Small().read_summary(tmp_path).tables.first
  assert row == Row('a', Estimate(1.0), ())


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    (lambda values: values | {'study': 'other'}, "'other'"),
    (lambda values: values | {'schema': 2}, 'schema 2'),
    (lambda values: values | {'cost': {}}, 'cost.flops'),
    (
      lambda values: values | {'tables': {'first': [{'name': 'a'}]}},
      'tables.first',
    ),
    (
      lambda values: {k: v for k, v in values.items() if k != 'tables'},
      'summary.json',
    ),
  ],
)
def test_a_summary_that_is_none_is_refused_by_its_key(tmp_path, change, said):
  with pytest.raises(errors.UserError, match=study_lib.SUMMARY):
    Small().read_summary(tmp_path)
  study_lib.write_summary(tmp_path, summary_of(Tables(())))
  path = tmp_path / study_lib.SUMMARY
  storage.write_json(path, change(json.loads(path.read_text('utf-8'))))
  with pytest.raises(errors.UserError) as raised:
    Small().read_summary(tmp_path)
  assert str(raised.value).startswith(f'{path}: ')
  assert said in str(raised.value) and '\n' not in str(raised.value)


def test_kinds_are_told_by_name():
  for kind, study in registry.STUDIES.items():
    assert study.kind == kind
    assert registry.of_config(study.template()) is study
    assert registry.of_plan({'study': kind}) is study
  assert registry.of_config({'train': {}}) is None
  with pytest.raises(errors.UserError, match="did you mean 'isoflop'"):
    registry.of_config({'kind': 'isoflp'})
  # Folders of the first schema: rows alone, and toys, which name no kind.
  assert registry.of_plan({}).kind == 'isoflop'
  assert registry.of_plan({'studies': []}).kind == 'depth_toys'


def test_a_template_is_a_config_of_defaults():
  template = Small().template()
  assert template.to_dict() == {'kind': 'small', 'title': '', 'least': 1}
  assert Small().read_config(template) == Config()
  template.least = 0
  with pytest.raises(errors.UserError, match=r'^least: 0 '):
    Small().read_config(template)

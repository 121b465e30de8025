"""The page of a study of families, and its figures."""

import dataclasses

import pytest

from familial.core import storage
from familial.plots import families as plots
from familial.plots import theme
from familial.report import page
from familial.studies import families
from familial.studies import study
from tests.report.conftest import Page
from tests.studies import families_rows

SECTIONS = ('answer', 'compared', 'losses', 'compute', 'agreement', 'ledger',
            'serving', 'runs', 'record', 'terms')  # fmt: skip
EVIL = '<script>alert("x")</script>'


def pairs(config):
  measured = families.Measured(0.25, 0.01)
  agreement = families.Agreement(*[measured] * 4)
  for way in config.ways:
    for c in config.budgets:
      yield families.Pair('adjacent', way, c, 0, 1, 2, 0, agreement)
      yield families.Pair('seeds', way, c, 0, 1, 1, 1, agreement)


def write(folder, data, **changes):
  """Writes results that are kept without their runs; returns their summary."""
  config = families_rows.config(data, **changes)
  families_rows.write(config, folder)
  results = study.read(folder)
  line, tables = families.FAMILIES.analyse(config, results)
  summary = study.Summary(
    'families', line, {'devices': '1 x test'}, study.cost_of(results), (),
    dataclasses.replace(tables, agreement=tuple(pairs(config))),
  )  # fmt: skip
  study.write_summary(folder, summary)
  plan = {'study': 'families', 'title': config.title, 'equal': config.equal}
  plan['warnings'] = [EVIL]
  storage.write_json(
    folder / 'plan.json', {'schema': 1, **plan, 'cells': [], 'corpus': None}
  )
  return summary


@pytest.fixture
def full(tmp_path, text_data):
  summary = write(tmp_path, text_data, budgets=(1e9, 4e9), seeds=(0, 1))
  return summary, page.write(tmp_path)


def test_page_holds_every_section_and_needs_no_network(full):
  summary, path = full
  found = Page(path)
  assert found.sections == list(SECTIONS)
  assert EVIL not in path.read_text('utf-8') and EVIL in found.content
  for name in ('heat', 'compared', 'agreement'):
    assert name in found.figures
    for suffix in ('.png', '.svg'):
      assert (path.parent / 'figures' / f'{name}{suffix}').stat().st_size > 1e3
  for row in summary.tables.overall:
    assert (
      f'{row.log_ratio.map(lambda x: 2.718281828459045**x - 1):%}'
      in found.content
    )


def test_a_study_of_one_seed_and_one_budget_has_a_page(
  tmp_path, text_data, undrawn
):
  write(tmp_path, text_data, title=EVIL)
  path = page.write(tmp_path)
  assert EVIL not in path.read_text('utf-8')
  assert Page(path).sections == [s for s in SECTIONS if s != 'compute']


def test_models_that_were_not_kept_are_a_flag(tmp_path, text_data):
  config = families_rows.config(text_data)
  families_rows.write(config, tmp_path)
  summary = families.FAMILIES.summarise(config, study.read(tmp_path))
  assert summary.tables.agreement == ()
  assert any('models were not kept' in flag for flag in summary.flags)


def test_figures_hold_the_intervals_of_the_tables(full):
  tables = full[0].tables
  for chart in (plots.heat(tables), plots.compared(tables)):
    drawn = theme.specification(chart)['data']['values']
    assert [row['over_hi'] for row in drawn] == pytest.approx(
      [theme.percent(row.log_ratio.hi) for row in tables.compared]
    )
  charts = theme.specification(plots.agreement(tables))['concat']
  assert len(charts) == len(dataclasses.fields(families.Agreement))

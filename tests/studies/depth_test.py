"""A study of width and depth: a full grid, and the law that its points obey."""

import dataclasses
import re

import numpy as np
import pytest

from familial.laws import inference
from familial.laws import table as tables_lib
from familial.plots import depth_law as plots
from familial.plots import theme
from familial.report import page
from familial.studies import depth_law
from familial.studies import study
from tests.studies import depth_rows

DEPTH = depth_law.DEPTH


def test_grid_is_full_and_its_tokens_are_equal(text_data):
  runs = DEPTH.runs(depth_rows.config(text_data))
  grid = [run for run in runs if run.arm == 'grid']
  shapes = [(run.model.width, run.model.depth) for run in grid]
  assert shapes == [(w, d) for w in (8, 16, 32) for d in (1, 2, 4)]
  assert {run.train.steps for run in runs} == {160}
  assert {run.model.granularity for run in runs} == {1}
  corners = {(8, 1), (8, 4), (32, 1), (32, 4)}
  for arm, key, value in (('seed', 'seed', 1), ('rate', 'base_lr', 0.02)):
    others = [run for run in runs if run.arm == arm]
    assert {(run.model.width, run.model.depth) for run in others} == corners
    assert {getattr(run.train, key) for run in others} == {value}
  assert len({run.cell for run in runs}) == len(runs) == 9 + 8


def test_points_are_of_the_grid_and_its_seeds_from_first_tokens_on(
  text_data, tmp_path
):
  config = depth_rows.config(text_data, first_tokens=2000)
  results = study.read(depth_rows.write(config, tmp_path))
  table = depth_law.points(config, results.rows)
  assert table.rows == (9 + 4) * 3  # The first of four evaluations is left out.
  assert table.columns['D'].min() >= 2000
  assert len(np.unique(table.run)) == 13
  _, tables = DEPTH.analyse(config, results)
  assert len(tables.rates) == 4
  for rate in tables.rates:
    assert rate.over == pytest.approx(depth_rows.RATE, abs=2e-4)
  assert tables.noise[0].degrees == 4
  assert not tables.laws


@pytest.fixture(scope='module')
def fitted(text_data, tmp_path_factory):
  """A study of a planted law, fitted: (config, folder, summary)."""
  folder = tmp_path_factory.mktemp('depth')
  config = depth_rows.config(text_data, cutoffs=(0.95, 0.1, 0.1, 0.0))
  results = study.read(depth_rows.write(config, folder))
  summary = DEPTH.summarise(config, results, list(DEPTH.fit(config, results)))
  study.write_summary(folder, summary)
  return config, folder, summary


@pytest.mark.slow
def test_planted_law_is_recovered(fitted):
  _, folder, summary = fitted
  tables = summary.tables
  assert DEPTH.read_summary(folder) == summary
  constants = tables.constants_of()
  for name, value in depth_rows.LAW.items():
    if name.startswith('a_'):
      assert value in constants[name].value
  assert abs(tables.design[0].correlations[0].value) < 1e-9
  assert tables.candidates[0].form in ('width_depth', 'width_depth_inverse')
  assert {law.form for law in tables.laws} == set(depth_law.FORMS)
  # A share of 95 % leaves too few points, which a flag says.
  assert [row.dropped for row in tables.cutoffs] == [0, 5]
  assert any('cutoffs' in flag for flag in summary.flags)
  for name, constant in constants.items():
    found = tables.cutoffs[0].params[name].value
    assert found == pytest.approx(constant.value.value, rel=1e-12)
  assert tables.over_E[0].value == 0


@pytest.mark.slow
def test_figures_hold_every_run_form_and_cutoff(fitted):
  config, folder, summary = fitted
  tables, rows = summary.tables, study.read(folder).rows
  drawn = theme.specification(plots.grid(tables, rows))['data']['values']
  assert len(drawn) == 13
  table = depth_law.points(config, rows)
  predicted = tables.law().predict(table.columns)
  for row in drawn:
    [place] = np.flatnonzero(
      (table.run == row['run']) & (table.columns['D'] == config.tokens)
    )
    assert row['law'] == predicted[place]
  assert plots.grid(tables, ()) is None
  panels = theme.specification(plots.cutoffs('width_depth', tables.cutoffs))
  points = {(r['constant'], r['dropped']) for r in panels['data']['values']}
  assert len(points) == 3 * len(tables.cutoffs)
  without = [
    dataclasses.replace(candidate, by_model=None)
    for candidate in tables.candidates
  ]
  for candidates, count in ((tables.candidates, 2), (without, 1)):
    spec = theme.specification(plots.forms(candidates))
    assert len(spec['concat']) == count


def test_study_without_a_law_has_a_page(text_data, tmp_path):
  config = depth_rows.config(text_data, rates=(), seeds=(0,))
  results = study.read(depth_rows.write(config, tmp_path))
  study.write_summary(tmp_path, DEPTH.summarise(config, results))
  assert not DEPTH.read_summary(tmp_path).tables.candidates
  html = page.write(tmp_path).read_text('utf-8')
  assert re.findall(r'<section id="(\w+)"', html) == [
    'answer', 'runs', 'record', 'terms'
  ]  # fmt: skip


def test_law_is_fitted_with_e_held_from_zero_on():
  width, layers, tokens = (
    axis.ravel()
    for axis in np.meshgrid([8, 16, 32], [1, 2, 4], [1e3, 4e3, 1e5])
  )
  above = 9 / width**0.8 + 1.2 / layers**0.5 + 40 / tokens**0.4
  loss = above.min() + above  # E is half of the lowest loss.
  table = tables_lib.Table(
    {'width': width, 'depth': layers, 'D': tokens, 'loss': loss},
    np.arange(len(loss)).astype(str),
  )
  options = inference.Options(starts=32)
  rows = list(depth_law.over_e(table, options, aic=np.inf))
  assert [row.value for row in rows] == pytest.approx(
    [share * loss.min() for share in (0, 0.25, 0.5, 0.75, 0.9)]
  )
  planted = depth_rows.LAW['a_depth']
  exponents = [row.params['a_depth'] for row in rows]
  assert exponents[2] == pytest.approx(planted, rel=1e-4)
  assert exponents[0] < planted - 0.02 < planted < exponents[3]
  behind = [row.aic_behind for row in rows]
  assert behind[2] == 0
  assert min(behind[1], behind[3]) > 10
  # A fit with E free that is better is the lowest.
  assert list(depth_law.over_e(table, options, aic=-1e6))[2].aic_behind > 1e5

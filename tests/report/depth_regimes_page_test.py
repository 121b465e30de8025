"""The page of a study of layers and exits, and its figures."""

import pytest

from familial.plots import regimes
from familial.plots import theme
from familial.report import page
from tests.report.conftest import Page
from tests.studies import regimes_rows

SECTIONS = ('answer', 'layers', 'early', 'seeds', 'runs', 'record', 'terms')


@pytest.fixture(scope='module')
def study(tmp_path_factory):
  folder = tmp_path_factory.mktemp('regimes')
  return folder, regimes_rows.write(folder).tables


def test_page_holds_every_section_and_figure(study, undrawn):
  found = Page(page.write(study[0]))
  assert found.sections == list(SECTIONS)
  assert found.figures >= {'regimes_4', 'layers_4'}


def test_intervals_of_shares_are_shares(study):
  rows = theme.specification(regimes.statistics(study[1], 4))['data']['values']
  ends = [
    row[end]
    for row in rows
    if row['statistic'] == regimes.STATISTICS['early'] and 'mean' in row
    for end in ('mean_lo', 'mean_hi')
  ]
  assert ends[-2:] == [None, None]  # A single seed has no interval.
  assert all(0 <= end <= 1 for end in ends[:-2])


@pytest.mark.parametrize(
  ('costs', 'ticks'),
  [
    ([2.0, 0.2, 0.004], [0, 0.001, 0.01, 0.1, 1]),
    ([0.02, 0.004, -0.005], [-0.001, 0, 0.001, 0.01]),
    ([], [0, 0.001, 0.01]),
  ],
)
def test_an_axis_of_costs_shows_zero_and_all_values(costs, ticks):
  axis = theme.symlog_axis(costs, 1e-3)
  low, high = axis['scale'].domain
  assert low < min(0, *costs, 0) and high > max(0, *costs, 0)
  assert axis['axis'].values == pytest.approx(ticks)

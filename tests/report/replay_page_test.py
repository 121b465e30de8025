"""The page of a replay shows what its record holds."""

import dataclasses

import pytest

from experiments import allocation
from familial.allocation import comparison
from familial.allocation import config as allocation_config
from familial.allocation import halving
from familial.allocation import policies
from familial.allocation import surrogate
from familial.report import replay_page
from tests.report.conftest import Page


def bold(observed, keys):
  """A surrogate that expects far too much, and is sure of it."""
  last = observed.loss_SxMxT[:, :, -1]
  return halving.Prediction(0.5 * last, 0.49 * last, 0.51 * last)


@pytest.fixture(scope='module')
def replayed(tmp_path_factory):
  """A small replay: its folder, its result, its page."""
  out = tmp_path_factory.mktemp('replay')
  config = allocation.get_config('test')
  config.policies = ('uniform', 'sh_lmc')
  config.law.form = ''
  with pytest.MonkeyPatch.context() as patch:
    policy = policies.SuccessiveHalving(surrogate.ranked_by(bold))
    patch.setitem(policies.POLICIES, 'sh_lmc', policy)
    result, cells = comparison.run(allocation_config.read(config), out)
  examples = [(cell.grid, cell.allocations) for cell in cells]
  page = replay_page.write(result, examples, out).read_text('utf-8')
  return out, result, page


def test_it_holds_every_section_and_figure(replayed):
  out, result, _ = replayed
  found = Page(out / 'index.html')
  assert set(found.sections) >= {
    'answer', 'gains', 'law', 'predictions', 'draws', 'record'
  }  # fmt: skip
  names = {'heat', 'gains_0', 'coverage_0', 'predictions_0', 'draw_0',
           'frontiers_0'}  # fmt: skip
  assert {path.stem for path in (out / 'figures').iterdir()} == names
  assert found.figures == names
  assert result.summary_line.partition('|')[0][:40] in found.content


def test_the_page_of_a_stored_record_has_no_draws(replayed, tmp_path, undrawn):
  out, result, _ = replayed
  stored = comparison.ReplaySummary.read(out / comparison.RESULT)
  page = replay_page.write(stored, (), tmp_path).read_text('utf-8')
  assert 'id="draws"' not in page and 'id="gains"' in page
  [cell] = result.cells
  for policy in cell.policies.values():
    assert f'{policy.best}' in page


def flags(result, tmp_path, **changes):
  """The number of flags of a page whose only cell is changed."""
  [cell] = result.cells
  cell = dataclasses.replace(cell, **changes)
  changed = dataclasses.replace(result, cells=(cell,))
  page = replay_page.write(changed, (), tmp_path).read_text('utf-8')
  return page[page.index('<aside>') : page.index('</aside>')].count('<li>')


def test_what_makes_it_unreliable_is_flagged(replayed, tmp_path, undrawn):
  _, result, _ = replayed
  [cell] = result.cells
  base = flags(result, tmp_path)
  assert base == 2  # Few draws, and a surrogate that is too sure.
  assert flags(result, tmp_path, draws=100) == base - 1
  assert flags(result, tmp_path, calibration={}) == base - 1
  assert flags(result, tmp_path, flags=('2 of 9 curves end early',)) == base + 1
  gain = dataclasses.replace(cell.policies['uniform'].gain, lo=0.01, hi=0.03)
  uniform = dataclasses.replace(cell.policies['uniform'], gain=gain)
  better = {**cell.policies, 'uniform': uniform}
  assert flags(result, tmp_path, policies=better) == base + 1

"""The page of a replay says what its JSON says."""

import copy
import json

import pytest

from experiments import allocation
from familial.allocation import comparison
from familial.allocation import config as allocation_config
from familial.allocation import halving
from familial.allocation import policies
from familial.allocation import surrogate
from familial.report import replay_page
from tests.report import page_test


def bold(observed, keys):
  """A surrogate that expects far too much, and is sure of it."""
  last = observed.loss_SxMxT[:, :, -1]
  return halving.Prediction(0.5 * last, 0.49 * last, 0.51 * last)


@pytest.fixture(scope='module')
def replayed(tmp_path_factory):
  """A small replay: its folder, its result, its examples, its page."""
  out = tmp_path_factory.mktemp('replay')
  config = allocation.get_config('test')
  config.policies = ('uniform', 'sh_lmc')
  config.law.form = ''
  with pytest.MonkeyPatch.context() as patch:
    policy = policies.SuccessiveHalving(surrogate.ranked_by(bold))
    patch.setitem(policies.POLICIES, 'sh_lmc', policy)
    summary, cells = comparison.run(allocation_config.read(config), out)
  result = summary.record()
  examples = [(cell.grid, cell.allocations) for cell in cells]
  replay_page.write(result, examples, out)
  text = (out / 'index.html').read_text('utf-8')
  return out, result, examples, page_test.Checker(text)


def test_it_holds_every_cell_and_needs_nothing_else(replayed):
  out, result, _, page = replayed
  assert {
    'answer',
    'gains',
    'law',
    'predictions',
    'draws',
    'record',
    'terms',
  } <= (set(page.ids))
  assert not page.tags & {'script', 'link', 'iframe', 'object'}
  # Gains, coverage, errors of predictions, and two of the first draw.
  assert len(page.images) == 5
  assert len(list((out / 'figures').glob('*.png'))) == len(page.images)
  saved = json.loads((out / comparison.RESULT).read_text())
  assert saved['summary_line'] == result['summary_line']
  assert result['summary_line'] in page.text


def test_numbers_are_those_of_the_record(replayed):
  _, result, _, page = replayed
  for cell in result['cells']:
    for row in cell['policies'].values():
      assert f'{row["best"]["value"]:.3f}' in page.text
    [calibration] = cell['calibration'].values()
    for row in calibration:
      assert f'{100 * row["error"]:.3g}'[:3] in page.text
    held = sum(
      row['coverage']['value'] * row['predictions'] for row in calibration
    )
    made = sum(row['predictions'] for row in calibration)
    doubted = 'sh_lmc: its intervals of 90 % held' in page.text
    assert doubted == (held / made < 0.85)
  assert '3 draws: the intervals themselves are uncertain' in page.text


def answer(result, changes, **cell):
  """What the page says first, with other gains and law errors."""
  result = copy.deepcopy(result)
  result['cells'][0].update(cell)
  for (name, key), value in changes.items():
    result['cells'][0]['policies'][name][key] = value
  return page_test.Checker(replay_page._answer(result)).text


def test_the_answer_names_who_gained_how_much_of_what(replayed):
  _, result, _, _ = replayed
  changes = {
    ('oracle', 'gain'): {'value': 0.04, 'lo': 0.03, 'hi': 0.05},
    ('sh_lmc', 'gain'): {'value': 0.01, 'lo': -0.002, 'hi': 0.021},
    ('sh_lmc', 'share_of_bound'): {'value': 0.25, 'lo': 0.2, 'hi': 0.3},
    ('uniform', 'gain'): {'value': -0.12, 'lo': -0.13, 'hi': -0.11},
    ('uniform', 'law_error'): {'value': 0.077, 'lo': 0.05, 'hi': 0.1},
    ('uniform', 'law_fits'): 3,
    ('sh_lmc', 'law_error'): {'value': 0.001, 'lo': 0.0005, 'hi': 0.002},
    ('sh_lmc', 'law_fits'): 1,
  }
  text = answer(result, changes)
  assert 'best is sh_lmc, +1.0 % [−0.2, 2.1], 25 % of the oracle' in text
  # A law that one draw in three gives is not told first.
  assert 'The law of uniform extrapolates best, off by 7.7 % [5.0, 10]' in text


def test_where_equal_shares_win_is_warned_of(replayed):
  _, result, _, page = replayed
  said = 'Equal shares for all (uniform) did better'
  assert said not in page.text
  changes = {('uniform', 'gain'): {'value': 0.02, 'lo': 0.01, 'hi': 0.03}}
  assert said in answer(result, changes)


def test_flags_of_the_table_are_told(replayed):
  flag = '2 of 9 curves end where a loss was not finite'
  assert f'clean: {flag}.' in answer(replayed[1], {}, flags=[flag])

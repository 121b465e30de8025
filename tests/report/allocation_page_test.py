"""The page of a live allocation, at every moment of one."""

import pathlib
import shutil

import pytest

from familial.core import run_folder
from familial.core import storage
from familial.report import page
from familial.studies import live_allocation
from tests.report.conftest import Page

TESTS = pathlib.Path(__file__).parents[1]
RESULTS = TESTS.parent / 'experiments' / 'results' / 'allocation_live_cpu'
TINY = TESTS / 'data' / 'schema_1' / 'allocation_live'


def test_results_without_their_runs_have_a_page(tmp_path, undrawn):
  shutil.copytree(RESULTS, tmp_path / 'results')
  found = Page(page.write(tmp_path / 'results'))
  assert found.sections == [
    'answer', 'laws', 'rounds', 'candidates', 'replays', 'runs', 'record', 'terms'
  ]  # fmt: skip
  # Of the curves the losses at the rounds' ends are kept: too few for a frontier.
  assert found.figures == {'curves'}
  tables = live_allocation.LIVE.read_summary(RESULTS).tables
  for candidate in tables.candidates:
    assert candidate.cell in found.content
  for quantity in tables.quantities:
    assert (
      quantity.allocated is None or f'{quantity.allocated}' in found.content
    )


@pytest.mark.parametrize(
  ('rounds', 'share', 'figures'),
  [
    (0, 0.0, set()),  # Planned.
    (0, 0.2, {'curves'}),  # The first round is under way.
    (1, 0.3, {'curves'}),
    (3, 0.5, {'curves'}),  # All rounds are decided; no law is fitted yet.
  ],
)
def test_it_is_a_page_at_every_moment(
  tmp_path, undrawn, rounds, share, figures
):
  config = storage.read_json(TINY / 'config.json')
  storage.write_json(tmp_path / 'config.json', config)
  shutil.copy(TINY / 'plan.json', tmp_path)
  for row in storage.read_rows(TINY / live_allocation.ROUNDS)[:rounds]:
    storage.append(tmp_path / live_allocation.ROUNDS, [row])
  for path in TINY.glob(f'cells/*/{run_folder.ROWS}'):
    rows = [
      row
      for row in storage.read_rows(path)
      if row['flops'] <= share * config['horizon']
    ]
    if rows:
      folder = tmp_path / 'cells' / path.parent.name
      folder.mkdir(parents=True)
      storage.append(folder / run_folder.ROWS, rows)
  found = Page(page.write(tmp_path))
  assert found.figures == figures
  assert {'answer', 'rounds', 'candidates', 'runs'} <= set(found.sections)
  assert 'laws' not in found.sections
  planned = len(storage.read_rows(TINY / live_allocation.ROUNDS))
  said = f'{rounds} of {planned} rounds' in found.content
  assert said == (rounds < planned)

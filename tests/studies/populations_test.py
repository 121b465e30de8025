import dataclasses

import pytest

from familial.studies import isoflop
from familial.studies import populations


def names(groups):
  return [[cell.cell for cell in group] for group in groups]


@pytest.fixture
def rates(make_study):
  """Cells of two shapes and five rates each."""
  arm = {
    'budgets': (4e8,),
    'granularities': (1,),
    'values': (1e-3, 2e-3, 5e-3, 2e-2),
  }
  study = make_study(
    grid={
      'budgets': (4e8,),
      'shapes': ((8, 2, 2), (16, 2, 2)),
      'granularities': (1,),
    },
    arms={'rate': {**arm, 'shapes': (0, 1)}},
  )
  return isoflop.ISOFLOP.runs(study)


def test_a_rate_sweep_is_one_group_a_shape(rates):
  groups = populations.groups(rates, 'gpu')
  assert [len(group) for group in groups] == [5, 5]
  for group, width in zip(groups, (8, 16), strict=True):
    assert {cell.model.width for cell in group} == {width}
    assert len({cell.train.base_lr for cell in group}) == 5


def test_every_cell_is_in_one_group_in_the_order_of_the_study(rates):
  for workers in (1, 2, 3, 20):
    groups = populations.groups(rates, 'cpu', workers)
    assert len(groups) >= min(workers, len(rates))
    found = [cell for group in groups for cell in group]
    assert sorted(c.cell for c in found) == sorted(c.cell for c in rates)
    assert groups[0][0] == rates[0]


def test_exits_are_laid_over_each_other_where_they_cost_little(make_study):
  study = make_study(
    grid={
      'budgets': (4e8,),
      'shapes': ((64, 4, 2),),
      'granularities': (1, 2, 4),
    }
  )
  cells = isoflop.ISOFLOP.runs(study)
  assert len(populations.groups(cells, 'gpu')) < len(cells)
  # With a large vocabulary a head costs more than the trunk.
  large = [
    dataclasses.replace(
      cell,
      model=dataclasses.replace(cell.model, vocab_size=50_000),
      data=dataclasses.replace(cell.data, tokenizer='bpe', vocab_size=50_000),
    )
    for cell in cells
  ]
  assert len(populations.groups(large, 'gpu')) == len(cells)


@pytest.mark.parametrize(
  ('section', 'change'),
  [
    ('train', {'batch_size': 3}),
    ('train', {'trained': 'exits', 'init_from': '../c'}),
    ('data', {'seq_len': 8}),
    ('model', {'width': 4}),
    ('model', {'exit_kind': 'branch'}),
  ],
)
def test_what_a_program_is_made_for_keeps_cells_apart(
  make_study, section, change
):
  study = make_study(grid={'budgets': (4e8,), 'granularities': (2,)})
  cell = isoflop.ISOFLOP.runs(study)[0]
  part = dataclasses.replace(getattr(cell, section), **change)
  other = dataclasses.replace(cell, cell='other', **{section: part})
  assert len(populations.groups([cell, cell], 'gpu')) == 1
  assert len(populations.groups([cell, other], 'gpu')) == 2


def test_a_run_is_not_kept_waiting_for_a_much_longer_one(make_study):
  study = make_study(grid={'budgets': (4e8, 8e8), 'granularities': (2,)})
  cells = [
    dataclasses.replace(
      cell, train=dataclasses.replace(cell.train, batch_size=4)
    )
    for cell in isoflop.ISOFLOP.runs(study)
  ]
  assert [len(g) for g in populations.groups(cells, 'gpu')] == [1, 1]


def test_a_step_stays_within_what_a_backend_is_given(rates):
  one = rates[0]
  long = dataclasses.replace(
    one, train=dataclasses.replace(one.train, batch_size=40_000)
  )
  copies = [dataclasses.replace(long, cell=str(i)) for i in range(6)]
  on_cpu = populations.groups(copies, 'cpu')
  assert len(on_cpu) > 1
  assert len(populations.groups(copies, 'gpu')) == 1
  assert names(on_cpu)[0][0] == '0'

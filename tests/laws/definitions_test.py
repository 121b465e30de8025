import pytest

from familial.core import errors
from familial.laws import definitions
from familial.laws import table as tables


@pytest.mark.parametrize(
  'loss, wanted',
  [('final', {'a'}), ('mean', {'a'}), ('exit', {'a', 'b'})],
)
def test_twins_count_for_the_loss_of_each_exit_alone(rows, loss, wanted):
  """A shape at G = 1 alone would be read as a penalty of the other Gs."""
  rows = [{**r, 'arm': 'twin'} if r['run'] == 'b' else r for r in rows]
  table = tables.from_rows(rows, loss)
  assert set(table.run) == wanted
  assert table.filters['arms'] == list(definitions.arms_of(loss))
  assert set(tables.from_rows(rows, loss, arms=('twin',)).run) == {'b'}


def test_an_unknown_loss_is_refused():
  with pytest.raises(errors.UserError, match=r"loss='las'.*allowed are"):
    definitions.arms_of('las')

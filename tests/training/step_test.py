import pytest

from familial.training import step


@pytest.mark.parametrize('count', [2, 11])
def test_on_a_frozen_trunk_all_exits_but_the_last_are_trained(count):
  exits = {f'exit_{number}': number for number in range(1, count + 1)}
  params = {'embedding': 0, 'segment_0': 0, 'unembedding': 0, **exits}
  trained, frozen = step.partition(params, 'exits')
  assert set(trained) == {f'exit_{number}' for number in range(1, count)}
  assert {**trained, **frozen} == params
  assert step.partition(params, 'all') == (params, {})

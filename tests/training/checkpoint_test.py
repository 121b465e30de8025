import jax
import jax.numpy as jnp
import numpy as np
import pytest

from familial.core import errors
from familial.training import checkpoint
from familial.training import step as step_lib


def _state(step, value=None, shape=(3,)):
  leaf = jnp.full(shape, step if value is None else value, jnp.float32)
  return step_lib.State({'w': leaf}, {'mean': 2 * leaf}, jnp.int32(step))


@pytest.fixture
def folder(tmp_path):
  return tmp_path / 'checkpoints'


@pytest.fixture
def opened(folder):
  """Opens the checkpoints of a folder; closes all that a test opened."""
  found = []

  def open_(keep=2):
    found.append(checkpoint.Checkpoints(folder, keep))
    return found[-1]

  yield open_
  for checkpoints in found:
    checkpoints.close()


def _steps(folder):
  return sorted(int(path.name) for path in folder.iterdir())


def test_a_state_comes_back_to_the_bit(opened):
  rng = np.random.default_rng(0)
  params = {'w': jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)}
  state = step_lib.State(params, {'mean': params['w'] / 3}, jnp.int32(7))
  checkpoints = opened()
  assert checkpoints.latest() is None
  checkpoints.save(state)
  checkpoints.wait()
  like = jax.tree.map(jnp.zeros_like, state)
  for reader in (checkpoints, opened()):
    assert reader.latest() == 7
    restored = reader.restore(like)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert restored.step.dtype == jnp.int32


def test_entries_are_read_in_the_order_that_is_asked_for(folder, opened):
  values = np.arange(20.0, dtype=np.float32).reshape(5, 4)
  state = _state(3)._replace(params={'w': jnp.asarray(values)})
  checkpoints = opened()
  checkpoints.save(state)
  checkpoints.wait()
  like = {'params': {'w': jax.ShapeDtypeStruct((5, 4), jnp.float32)}}
  take = checkpoint.reader(folder, 3, like)
  for rows, columns in (
    ([0, 1, 3, 2], [0, 1, 2, 3]),
    ([3, 2, 1, 0], [1, 2, 0, 3]),
    ([4, 0, 4], [3, 1]),
    ([2, 3], [1, 1, 2]),
  ):
    index = np.array(rows), np.array(columns)
    np.testing.assert_array_equal(
      take(('params', 'w'), index), values[np.ix_(*index)]
    )


def test_the_last_ones_and_the_best_stay(folder, opened):
  checkpoints = opened(keep=2)
  losses = {1: 5.0, 2: 1.5, 3: None, 4: 3.0, 5: None, 6: 4.0, 7: None}
  for step, loss in losses.items():
    checkpoints.save(_state(step), loss)
    checkpoints.wait()
  assert _steps(folder) == [2, 6, 7]
  assert checkpoints.restore(_state(0), 2).params['w'][0] == 2


def test_a_step_is_saved_once(opened):
  checkpoints = opened()
  checkpoints.save(_state(3), 1.0)
  checkpoints.save(_state(3, value=9))
  checkpoints.wait()
  assert checkpoints.restore(_state(0)).params['w'][0] == 3


def test_what_is_being_saved_may_be_overwritten(opened):
  # The training step gives its state's memory away while it is being written.
  advance = jax.jit(
    lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0
  )
  checkpoints = opened()
  state = _state(1, value=1, shape=(2048, 2048))
  checkpoints.save(state)
  for _ in range(10):
    state = advance(state)
  jax.block_until_ready(state)
  checkpoints.wait()
  restored = checkpoints.restore(jax.tree.map(jnp.zeros_like, state), 1)
  assert (restored.params['w'] == 1).all()
  assert (restored.opt_state['mean'] == 2).all()


def test_an_unfinished_checkpoint_is_ignored_and_removed_by_a_writer(
  folder, opened
):
  checkpoints = opened()
  checkpoints.save(_state(3), 1.0)
  checkpoints.close()
  unfinished = folder / '8.orbax-checkpoint-tmp-0' / 'state'
  unfinished.mkdir(parents=True)
  assert checkpoint.steps(folder) == {'last': 3, 'best': 3}
  assert unfinished.exists()
  again = opened()
  assert again.latest() == 3
  again.save(_state(4))
  again.wait()
  assert _steps(folder) == [3, 4]


@pytest.mark.parametrize(
  'other',
  [
    _state(0, shape=(4,)),
    _state(0, shape=(2,)),
    _state(0)._replace(params={'w': jnp.zeros(3), 'more': jnp.zeros(1)}),
    _state(0)._replace(params={'v': jnp.zeros(3)}),
    _state(0)._replace(opt_state={}),
  ],
  ids=['larger', 'smaller', 'more', 'renamed', 'less'],
)
def test_a_model_of_another_shape_is_refused(opened, other):
  checkpoints = opened()
  with pytest.raises(errors.UserError, match='no checkpoint'):
    checkpoints.restore(_state(0))
  checkpoints.save(_state(3))
  checkpoints.wait()
  with pytest.raises(errors.UserError, match='not a checkpoint of this model'):
    checkpoints.restore(other)

import numpy as np
import pytest

from familial.core import arrays
from familial.core import errors

LIKE = {'a': np.zeros((2, 3), np.float32), 'b': np.zeros(4)}


def damaged(path):
  """Compressed, with its last numbers overwritten."""
  np.savez_compressed(path, a=LIKE['a'] + 1, b=np.arange(4.0))
  content = bytearray(path.read_bytes())
  start = content.index(b'b.npy') + 5
  content[start : start + 30] = b'\xff' * 30
  path.write_bytes(content)


def test_arrays_come_back_as_they_were(tmp_path):
  kept = {'a': np.arange(6, dtype=np.float32).reshape(2, 3), 'b': np.ones(4)}
  arrays.save(tmp_path / 'x.npz', kept)
  found = arrays.load(tmp_path / 'x.npz', LIKE)
  for name, value in kept.items():
    np.testing.assert_array_equal(found[name], value)
    assert found[name].dtype == value.dtype


@pytest.mark.parametrize(
  ('write', 'said'),
  [
    (lambda path: None, 'cannot be read'),
    (lambda path: path.write_bytes(b'no archive'), 'cannot be read'),
    # An array that is not in an archive, under an archive's name.
    (lambda path: np.save(path.open('wb'), LIKE['b']), 'cannot be read'),
    (lambda path: np.savez(path, a=LIKE['a']), 'cannot be read'),
    (lambda path: np.savez(path, **LIKE, c=np.zeros(2**20)), 'too large'),
    (
      lambda path: np.savez_compressed(path, **LIKE, c=np.zeros(2**20)),
      'too large',
    ),
    (
      lambda path: np.savez(path, a=LIKE['a'], b=np.array([{}], object)),
      'cannot be read',
    ),
    (lambda path: np.savez(path, a=LIKE['a'], b=np.zeros(3)), r'b is float64'),
    (damaged, 'cannot be read'),
  ],
)
def test_what_is_not_as_expected_is_one_line(tmp_path, write, said):
  path = tmp_path / 'x.npz'
  write(path)
  with pytest.raises(errors.UserError, match=said) as raised:
    arrays.load(path, LIKE)
  assert str(path) in str(raised.value) and '\n' not in str(raised.value)

"""How long the command takes to answer, and the laws to import."""

import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.bench


@pytest.mark.parametrize(
  ('what', 'arguments', 'aim'),
  [
    ('python alone', ['-c', 'pass'], 0.1),
    ('familial --help', ['-m', 'familial', '--help'], 1.0),
    ('import familial.laws.fit', ['-c', 'import familial.laws.fit'], 2.0),
  ],
)
def test_seconds(what, arguments, aim):
  seconds = []
  for _ in range(5):
    start = time.perf_counter()
    subprocess.run(
      [sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL
    )
    seconds.append(time.perf_counter() - start)
  print(f'\n{what}: {min(seconds):.2f} s ({aim} or less)')
  assert min(seconds) < 5 * aim

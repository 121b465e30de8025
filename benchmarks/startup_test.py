"""How long the command takes to answer, and the laws to import."""

import resource
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
    (
      'import familial.laws.estimation',
      ['-c', 'import familial.laws.estimation'],
      2.0,
    ),
  ],
)
def test_seconds(what, arguments, aim):
  wall, cpu = [], []
  for _ in range(5):
    start, used = time.perf_counter(), _children_seconds()
    subprocess.run(
      [sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL
    )
    wall.append(time.perf_counter() - start)
    cpu.append(_children_seconds() - used)
  print(
    f'\n{what}: {min(wall):.2f} s ({aim} or less), {min(cpu):.2f} s of '
    'processor time'
  )
  assert min(cpu) < 3 * aim


def _children_seconds() -> float:
  usage = resource.getrusage(resource.RUSAGE_CHILDREN)
  return usage.ru_utime + usage.ru_stime

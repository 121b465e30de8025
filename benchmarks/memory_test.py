"""Eight exits over 32k tokens in about the memory of one."""

import subprocess
import sys

import pytest

from benchmarks import peak

pytestmark = pytest.mark.bench


def test_planned_by_the_compiler():
  analyses = {g: peak.compiled(g)[0].memory_analysis() for g in (1, 8)}
  sizes = {
    g: a.temp_size_in_bytes + a.output_size_in_bytes + a.argument_size_in_bytes
    for g, a in analyses.items()
  }
  _report('compiled program', sizes)


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_resident():
  sizes = {
    g: int(
      subprocess.run(
        [sys.executable, '-m', 'benchmarks.peak', str(g)],
        check=True,
        capture_output=True,
        text=True,
      ).stdout
    )
    for g in (1, 8)
  }
  _report('resident set', sizes)


def _report(what: str, sizes: dict[int, int]) -> None:
  ratio = sizes[8] / sizes[1]
  print(
    f'\npeak of the loss and its gradient, {what}: G = 1 '
    f'{sizes[1] / 2**20:.0f} MiB, G = 8 {sizes[8] / 2**20:.0f} MiB: '
    f'{ratio:.2f} x (1.3 or less)'
  )
  assert ratio < 1.5

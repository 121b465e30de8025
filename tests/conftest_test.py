"""The tests' own settings."""

import os
import pathlib
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_tests_run_without_pytest_s_cache(tmp_path):
  environment = {
    **os.environ, 'TMPDIR': str(tmp_path), 'JAX_COMPILATION_CACHE_DIR': 'none'
  }  # fmt: skip
  done = subprocess.run(
    [
      sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-n', '1',
      'tests/core/text_test.py',
    ],
    cwd=pathlib.Path(__file__).parents[1],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout + done.stderr
  assert not list(tmp_path.glob('familial_xla_*'))

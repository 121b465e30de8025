"""What all benchmarks share."""

from collections.abc import Iterator
import os

import jax
import pytest


@pytest.fixture(scope='session', autouse=True)
def without_programs_on_disk() -> Iterator[None]:
  """Compiling is measured: what an earlier session compiled does not count."""
  os.environ['TORCHINDUCTOR_FORCE_DISABLE_CACHES'] = '1'  # Nor the peer's.
  was = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  yield
  jax.config.update('jax_enable_compilation_cache', was)

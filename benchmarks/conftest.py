"""What all benchmarks share."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(scope='session', autouse=True)
def nothing_from_earlier_sessions(
  tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
  """Compiling is measured: what an earlier session compiled does not count."""
  was = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('FAMILIAL_CACHE', str(tmp_path_factory.mktemp('cache')))
    patch.setenv('TORCHINDUCTOR_FORCE_DISABLE_CACHES', '1')  # Nor the peer's.
    yield
  jax.config.update('jax_enable_compilation_cache', was)

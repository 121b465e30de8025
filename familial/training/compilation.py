"""Compiled programs kept on disk between runs."""

import jax

from familial.data import config as data_config


def enable_cache() -> None:
  """Keeps compiled programs under the cache folder, for every later run."""
  folder = data_config.cache_folder(data_config.DataConfig()) / 'xla'
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)

"""How a process is readied for training, once, before JAX runs."""

import jax

from familial.data import config as data_config
from familial.training import heap


def prepare() -> None:
  """Keeps compiled programs on disk for later runs, and the heap for steps."""
  heap.keep()
  folder = data_config.cache_folder(data_config.DataConfig()) / 'xla'
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)

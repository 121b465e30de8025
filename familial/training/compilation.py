"""How a process is readied for training, once, before JAX runs."""

import jax

from familial import errors
from familial.data import config as data_config
from familial.training import heap


def prepare(data: data_config.DataConfig | None = None) -> None:
  """Keeps compiled programs on disk for later runs, and the heap for steps.

  Args:
    data: whose cache holds the programs; by default that of no config.

  Raises:
    UserError: if JAX runs as several processes, as it does on a pod.
  """
  heap.keep()
  folder = data_config.cache_folder(data or data_config.DataConfig()) / 'xla'
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
  if jax.process_count() > 1:
    raise errors.UserError(
      f'{jax.process_count()} JAX processes: a run trains in one, with its '
      "batch split over that host's devices"
    )

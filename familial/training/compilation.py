"""How a process is readied for training, once, before JAX runs."""

import pathlib
from typing import Any

import jax

from familial.core import errors
from familial.core import storage
from familial.data import config as data_config
from familial.training import heap
from familial.training import processes

# JAX's cache of programs has no public name. Where it is not found, what JAX does
# by itself must do.
try:
  from jax._src import lru_cache

  _cache: Any = lru_cache.LRUCache
  _put, _SUFFIX = _cache.put, lru_cache._CACHE_SUFFIX
except (ImportError, AttributeError):
  _cache = None


def prepare(
  data: data_config.DataConfig | None = None, *, several: bool = False
) -> None:
  """Keeps compiled programs on disk for later runs, and the heap for steps.

  Args:
    data: whose cache holds the programs; by default that of no config.
    several: whether what follows can be one of several processes' work.

  Raises:
    UserError: if JAX runs as several processes, as it does on a pod, and they
      cannot, or did not meet.
  """
  heap.keep()
  if _cache:
    _cache.put = _put_whole
  folder = data_config.cache_folder(data or data_config.DataConfig()) / 'xla'
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
  count = jax.process_count()
  if count > 1 and not several:
    raise errors.UserError(
      f'{count} JAX processes: familial train alone is done by several; a study, '
      'a population of runs and what serves a model keep to one'
    )
  if count != processes.count():
    raise errors.UserError(
      f'{count} JAX processes that have not met: set {processes.COUNT}=auto for '
      'familial train'
    )


def _put_whole(cache: Any, key: str, value: bytes) -> None:
  """Keeps a program whole or not at all.

  Half of one, which a kill or a full disk would leave, could not be read at any
  later start, and would not be replaced either. What this raises, JAX warns of.
  """
  if cache.eviction_enabled:
    _put(cache, key, value)
    return
  path = pathlib.Path(str(cache.path)) / f'{key}{_SUFFIX}'
  if not path.exists():
    storage.write_bytes(path, value)

"""The names of JAX that are not public and that this project needs.

No public function of JAX reads the key-value store of a run's processes before
the backend starts, or writes a compiled program to the cache atomically.
`setup.cfg` bounds the version of JAX for the sake of this module, and
tests/training/jax_internals_test.py checks it.
"""

from collections.abc import Callable
import pathlib
from typing import Any

from jax._src import distributed
from jax._src import lru_cache

_cache: Any = lru_cache.LRUCache
_put = _cache.put


def num_processes() -> int:
  """Returns the number of processes that jax.distributed has connected."""
  return distributed.global_state.num_processes or 1


def process_id() -> int:
  """Returns this process's index among them."""
  return distributed.global_state.process_id


def client() -> Any:
  """Returns the client of their key-value store and barriers."""
  return distributed.global_state.client


def write_programs_with(write: Callable[[pathlib.Path, bytes], None]) -> None:
  """Makes JAX's compilation cache write its files with a function.

  JAX's own writes are not atomic: a kill or a full disk leaves part of a program,
  which no later process can read and which JAX never replaces: it warns of it at
  every start. What JAX compiles because it could read no file replaces that file.
  JAX turns an exception of the function into a warning.
  """

  def put(cache: Any, key: str, value: bytes) -> None:
    if cache.eviction_enabled:  # JAX then keeps times of access beside it.
      _put(cache, key, value)
      return
    write(
      pathlib.Path(str(cache.path), f'{key}{lru_cache._CACHE_SUFFIX}'), value
    )

  _cache.put = put

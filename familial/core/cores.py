"""Which processor cores this process may use, on any system, and threads on them."""

from collections.abc import Callable
from collections.abc import Iterable
from concurrent import futures
import os
from typing import Any
from typing import TypeVar

T = TypeVar('T')


def available_cores() -> list[int]:
  """The numbers of the cores that this process may run on."""
  affinity = getattr(os, 'sched_getaffinity', None)  # Linux alone has it.
  return sorted(affinity(0)) if affinity else list(range(os.cpu_count() or 1))


def keep_to(cores: list[int]) -> None:
  """Restricts this process to these cores, where the system can."""
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, cores)


def feeding_threads() -> int:
  """Number of threads that feed JAX's device: a CPU's cores, one of a GPU."""
  import jax

  return len(available_cores()) if jax.default_backend() == 'cpu' else 1


def in_threads(function: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
  """Returns a function's value of each item, computed in `feeding_threads`."""
  with futures.ThreadPoolExecutor(feeding_threads()) as pool:
    return list(pool.map(function, items))

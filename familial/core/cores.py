"""Which processor cores this process may use, on any system."""

import os


def available_cores() -> list[int]:
  """The numbers of the cores that this process may run on."""
  affinity = getattr(os, 'sched_getaffinity', None)  # Linux alone has it.
  return sorted(affinity(0)) if affinity else list(range(os.cpu_count() or 1))


def keep_to(cores: list[int]) -> None:
  """Restricts this process to these cores, where the system can."""
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, cores)

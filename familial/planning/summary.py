"""The plan for a pod as text: headline, layouts and runs."""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

from familial.core import text as text_lib

_GIB = 2**30


def text(plan: Mapping[str, Any]) -> str:
  """Returns a plan of `pod.make` as lines."""
  return '\n'.join(_lines(plan))


def headline(plan: Mapping[str, Any]) -> str:
  """Summarises a plan in one line."""
  cells = plan['cells']
  fitting = sum(cell['fits'] for cell in cells)
  fits = 'all fit' if fitting == len(cells) else f'only {fitting} fit'
  return (
    f'{text_lib.count(len(cells), "run")} on {plan["topology"]}: {fits}; '
    f'{plan["flops"]:.3g} FLOPs take at least {_hours(plan["device_hours"])} '
    f'device-hours: {_hours(plan["device_hours"] / plan["devices"])} h on all '
    'devices'
  )


def chip(plan: Mapping[str, Any]) -> str:
  """Describes the devices in one line."""
  of = plan['chip']
  return (
    f'{plan["devices"]} x {of["kind"]}, each {of["flops"] / 1e12:.0f} TFLOP/s, '
    f'{of["memory"] / _GIB:.0f} GiB at {of["memory_speed"] / 1e9:.0f} GB/s, '
    f'{of["link_speed"] / 1e9:.0f} GB/s to others'
  )


def measured(plan: Mapping[str, Any]) -> str:
  """Describes the measured step, if there is one, in one line."""
  found = plan['measured']
  if not found:
    return (
      "Nothing here is measured: bounds are the datasheet's speed, reached by "
      'products, memory and links at once.'
    )
  return (
    f'Measured: a step of {found["cell"]} takes {found["step_seconds"]:.4g} s, '
    f'{found["over_bound"]:.2f} times its bound, a utilisation of '
    f'{found["utilisation"]:.1%}; at that ratio the whole takes '
    f'{_hours(found["over_bound"] * plan["device_hours"])} device-hours.'
  )


def growth(plan: Mapping[str, Any]) -> Iterator[str]:
  """Yields what the largest growth asks of a device, in a line, if there is one."""
  rows = [row for row in plan['cells'] if row.get('growth')]
  if rows:
    row = max(rows, key=lambda row: row['growth']['whole'])
    of = row['growth']
    yield (
      f'Growth, at most: {row["cell"]} from {of["parent"]}: a device reads '
      f'{of["reads"] / _GIB:.3f} GiB of its parent and makes '
      f'{of["makes"] / _GIB:.3f} of {of["whole"] / _GIB:.1f} GiB of what grows.'
    )


def layout_row(row: Mapping[str, Any]) -> dict[str, str]:
  """Returns a layout that was tried, by the columns of a table."""
  sent = row['sent']
  return {
    'data x fsdp x tensor': f'{row["data"]} x {row["fsdp"]} x {row["tensor"]}',
    'parts': str(row['microbatches']),
    'remat': _yes(row['remat']),
    'fits': _yes(row['fits']),
    'GiB': f'{row["memory"] / _GIB:.2f}',
    'expected GiB': f'{row["estimated_memory"] / _GIB:.2f}',
    'GB sent': '' if sent is None else f'{sent / 1e9:.2f}',
    'expected GB': f'{row["estimated_sent"] / 1e9:.2f}',
    's a step': f'{row["bound_seconds"]:.3g}',
    's to compile': f'{row["seconds"]:.0f}',
    'run': row['cell'],
  }


def run_row(row: Mapping[str, Any]) -> dict[str, str]:
  """Returns a run, by the columns of a table.

  Memory is `<=` where a larger run of the same width and batch was compiled.
  """
  compiled = row['step_flops_compiler']
  bound = '' if row['compiled'] == row['cell'] else '<= '
  return {
    'run': row['cell'],
    'params': text_lib.amount(row['params_full'] + row['params_embedding']),
    'G': str(row['exits']),
    'batch': str(row['batch_size']),
    'steps': str(row['steps']),
    'fits': _yes(row['fits']),
    'GiB': f'{bound}{row["memory"] / _GIB:.2f}',
    'XLA / ours': (
      '' if compiled is None else f'{compiled / row["step_flops"]:.4f}'
    ),
    's a step': f'{row["bound_seconds"]:.3g}',
    'limit': row['limit'],
    'at most': f'{row["utilisation_bound"]:.0%}',
    'device-h': _hours(row['device_hours']),
  }


def _lines(plan: Mapping[str, Any]) -> Iterator[str]:
  yield plan['title']
  yield chip(plan)
  yield ''
  yield 'layouts, best first by arithmetic'
  yield _table(layout_row(row) for row in plan['layouts'])
  yield f'recommended: {plan["recommended"]["flags"]}'
  yield ''
  yield _table(run_row(row) for row in plan['cells'])
  yield from growth(plan)
  yield ''
  yield measured(plan)


def _table(rows: Iterable[dict[str, str]]) -> str:
  every = list(rows)
  return text_lib.table(list(every[0]), [list(row.values()) for row in every])


def _yes(value: bool) -> str:
  return 'yes' if value else 'no'


def _hours(hours: float) -> str:
  return f'{hours:,.0f}' if hours >= 100 else f'{hours:.3g}'

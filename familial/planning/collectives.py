"""Collectives of a compiled program, read from its text.

The text is that of `compiled.as_text()`: the program of one device after all of
the compiler's work, from CPU, GPU or TPU. Nothing here needs JAX or a device.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import math
import re

import numpy as np

KINDS = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?{$')
_NAMED = re.compile(r'  (ROOT )?%?([\w.\-]+) = ')
_OPCODE = re.compile(r' ([a-z][\w\-]*)\(')
_ARRAY = re.compile(r'([a-z]+)(\d*)\w*\[([\d,<=]*)\]')
_CALLED = re.compile(
  r' (?:calls|to_apply|called_computations|branch_computations|'
  r'true_computation|false_computation)=({[^}]*}|%?[\w.\-]+)'
)
# Devices in the order of an array [2,4], or of one that was transposed.
_ORDER = re.compile(r'\[([\d,]+)\](?:T\(([\d,]+)\))?')
_GROUPS = re.compile(r'replica_groups=\[\d+,(\d+)\]<=' + _ORDER.pattern)
_MESH = re.compile(
  r'replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? {(.*?)}'
)
_TRIPS = re.compile(r'"known_trip_count":{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Collective:
  """An exchange between devices, as often as a program does it.

  Attributes:
    kind: one of `KINDS`; those that run beside other work are called alike.
    bytes: of the whole that the group works on, in each device's memory and
      without padding: the result of an all-gather, what goes into a
      reduce-scatter, and elsewhere either, for they are of one size.
    group: devices of the first group that exchange among themselves, in
      increasing order, by their place in the program's mesh.
    count: how often a run of the program does it: the product of the lengths
      of the loops around it, as far as the text gives them; a loop whose length
      it does not give counts once, and so does every branch of a condition.
  """

  kind: str
  bytes: int
  group: tuple[int, ...]
  count: int

  @property
  def group_size(self) -> int:
    """n, devices that exchange among themselves."""
    return len(self.group)

  @property
  def sent(self) -> float:
    """Bytes that each device sends each time, if the group is a ring."""
    n = self.group_size
    if self.kind == 'collective-permute':
      return float(self.bytes)
    passes = 2 if self.kind == 'all-reduce' else 1
    return passes * (n - 1) / n * self.bytes


@dataclasses.dataclass(frozen=True)
class _Instruction:
  """A line of a computation.

  Attributes:
    name: of the result.
    type: of the result.
    opcode: what is done.
    rest: operands and attributes.
    root: whether it is the computation's result.
  """

  name: str
  type: str
  opcode: str
  rest: str
  root: bool

  @property
  def operands(self) -> list[str]:
    """Names of the operands."""
    rest = re.sub(r'/\*.*?\*/', '', self.rest)
    return [part.split()[-1].lstrip('%') for part in _parts(rest)]

  def attribute(self, key: str) -> str:
    """Returns an attribute that is one word, or ''."""
    found = re.search(rf'[ ,]{key}=%?([\w.\-]+)', self.rest)
    return found[1] if found else ''


_Computations = dict[str, dict[str, _Instruction]]


def of(text: str) -> tuple[Collective, ...]:
  """Returns the collectives of a compiled program, in the order of its text.

  Where TPUs do a reduce-scatter, their text has an all-reduce in a computation
  `all-reduce-scatter`; here it is a reduce-scatter. What their compiler turns
  into products with a ring around them is the ring's collective-permutes.

  Raises:
    ValueError: if this is no program's text.
  """
  computations, entry = _read(text)
  if not entry:
    raise ValueError('a program without ENTRY')
  header = text[: text.index('\n')]
  counts = re.findall(r'(?:replica_count|num_partitions)=(\d+)', header)
  devices = math.prod(map(int, counts))
  return tuple(_walk(computations, entry, 1, devices, set()))


def _walk(
  computations: _Computations,
  name: str,
  count: int,
  devices: int,
  begun: set[str],
) -> Iterator[Collective]:
  computation = computations.get(name, {})
  for line in computation.values():
    kind = line.opcode.removesuffix('-start')
    if kind in KINDS:
      # A TPU begins, goes on with and ends one exchange in several fusions, each
      # of which holds it, under one number.
      channel = re.search(r'channel_id=\d+', line.rest)
      key = f'{kind} {channel[0]}' if channel and 'fus' in name else ''
      if key not in begun:
        yield _collective(line, kind, name, count, devices)
      begun |= {key} - {''}
    elif line.opcode == 'while':
      loops = count * _trips(computations, computation, line)
      yield from _walk(
        computations, line.attribute('body'), loops, devices, begun
      )
    elif line.opcode not in ('async-update', 'async-done'):
      for called in _CALLED.findall(line.rest):
        for inner in re.findall(r'[\w.\-]+', called):
          yield from _walk(computations, inner, count, devices, begun)


def _collective(
  line: _Instruction, kind: str, within: str, count: int, devices: int
) -> Collective:
  group = _group(line.rest, devices)
  if line.opcode.endswith('-start') and kind != 'all-reduce':
    # Operands, results, and what the device needs to wait for them.
    size = _bytes(_parts(line.type[1:-1])[1])
  else:
    size = _bytes(line.type)
  if kind == 'reduce-scatter':
    size *= len(group)
  elif kind == 'all-reduce' and within.startswith('all-reduce-scatter'):
    kind = 'reduce-scatter'
  return Collective(kind, size, group, count)


def _group(rest: str, devices: int) -> tuple[int, ...]:
  """Returns the devices of the first group."""
  pairs = re.search(r'source_target_pairs={({.*?})}', rest)
  if pairs:
    ends = [tuple(map(int, p)) for p in re.findall(r'(\d+),(\d+)', pairs[1])]
    group = set(ends[0])
    while more := {x for p in ends if group & set(p) for x in p} - group:
      group |= more
    return tuple(sorted(group))
  if mesh := _MESH.search(rest):
    return _mesh_group(*mesh.groups())
  if groups := _GROUPS.search(rest):
    size, *order = groups.groups()
    first = _turned(*order).reshape(-1)[: int(size)]
    return tuple(sorted(first.tolist()))
  listed = re.search(r'replica_groups={{([\d,]+)}', rest)
  if listed:
    return tuple(sorted(map(int, listed[1].split(','))))
  return tuple(range(devices))


def _mesh_group(axes: str, ids: str | None, grouped: str) -> tuple[int, ...]:
  """Returns the first group along some axes of a mesh, or parts of axes."""
  sizes = {
    name: int(size) for name, size in re.findall(r'([^,=]+)=(\d+)', axes)
  }
  shape = tuple(sizes.values())
  if ids is None:
    devices = np.arange(math.prod(shape))
  elif order := _ORDER.fullmatch(ids):
    devices = _turned(*order.groups())
  else:
    devices = np.array(_numbers(ids))
  devices = devices.reshape(shape)
  at: list[Sequence[int]] = [[0]] * len(shape)
  for part in grouped.split(','):
    name, _, sub = part.partition(':')
    axis = list(sizes).index(name)
    if sub:  # (major)size: the axis is major x size x the rest.
      major, size = map(int, re.findall(r'\d+', sub))
      at[axis] = range(0, shape[axis] // major, shape[axis] // major // size)
    else:
      at[axis] = range(shape[axis])
  return tuple(sorted(devices[np.ix_(*at)].reshape(-1).tolist()))


def _turned(shape: str, order: str | None) -> np.ndarray:
  """Returns all devices in the order that `[shape]T(order)` stands for."""
  devices = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
  return devices.transpose(_numbers(order)) if order else devices


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(map(int, text.split(',')))


def _trips(
  computations: _Computations,
  outside: dict[str, _Instruction],
  loop: _Instruction,
) -> int:
  """Returns how often a loop runs: what the compiler says, or what follows from
  start, step and end of the number that it counts with; else 1."""
  if known := _TRIPS.search(loop.rest):
    return int(known[1])
  condition, body = (
    computations.get(loop.attribute(name), {}) for name in ('condition', 'body')
  )
  try:
    [test] = [line for line in condition.values() if line.root]
    [result] = [line for line in body.values() if line.root]
    counter, bound = test.operands
    place = int(condition[counter].attribute('index'))
    start = _constant(outside, _element(outside[loop.operands[0]], place))
    step = _step(body, body[_element(result, place)])
    end = _constant(condition, bound)
  except (LookupError, ValueError):
    return 1
  if test.opcode != 'compare' or 'direction=LT' not in test.rest or not step:
    return 1
  return max(0, -(-(end - start) // step))


def _element(line: _Instruction, place: int) -> str:
  """Returns the name of an element of a tuple; LookupError for other opcodes."""
  if line.opcode != 'tuple':
    raise LookupError(line.name)
  return line.operands[place]


def _constant(computation: dict[str, _Instruction], name: str) -> int:
  """Returns a constant number; LookupError or ValueError for anything else."""
  line = computation[name]
  while line.opcode in ('copy', 'bitcast', 'convert'):
    line = computation[line.operands[0]]
  if line.opcode != 'constant':
    raise LookupError(name)
  return int(line.operands[0])


def _step(computation: dict[str, _Instruction], line: _Instruction) -> int:
  """Returns the constant that an addition adds; 0 for another instruction."""
  for name in line.operands if line.opcode == 'add' else ():
    with contextlib.suppress(LookupError, ValueError):
      return _constant(computation, name)
  return 0


def _read(text: str) -> tuple[_Computations, str]:
  """Returns all computations, and the name of the one that the program is."""
  computations: _Computations = {}
  current: dict[str, _Instruction] = {}
  entry = ''
  for line in text.splitlines():
    if not line.startswith(' '):
      if started := _COMPUTATION.match(line):
        current = computations[started[2]] = {}
        entry = started[2] if started[1] else entry
    elif named := _NAMED.match(line):
      rest = line[named.end() :]
      if opcode := _OPCODE.search(rest):
        type_, rest = rest[: opcode.start()], rest[opcode.end() :]
        current[named[2]] = _Instruction(
          named[2], type_, opcode[1], rest, bool(named[1])
        )
  return computations, entry


def _parts(text: str) -> list[str]:
  """Returns the parts between commas, but for those in brackets, up to the
  bracket that closes them."""
  parts, depth, start, end = [], 0, 0, len(text)
  for sign in re.finditer(r'[(){}\[\],]', text):
    if sign[0] == ',' and not depth:
      parts.append(text[start : sign.start()])
      start = sign.end()
    elif sign[0] != ',':
      depth += 1 if sign[0] in '({[' else -1
      if depth < 0:
        end = sign.start()
        break
  return [part for part in (*parts, text[start:end]) if part.strip()]


def _bytes(type_: str) -> int:
  """Returns the bytes of an array, or of all in a tuple."""
  bits = 0
  for name, width, shape in _ARRAY.findall(type_):
    size = 8 if name == 'pred' else int(width or 0)
    bits += -(-size * math.prod(map(int, re.findall(r'\d+', shape))) // 8) * 8
  return bits // 8

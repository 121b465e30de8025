"""The keys and types of each JSON file and row that the package writes.

The record says for each path below the top of a file, as `cells[].loss`, which
of JSON's types stand there. A path that ends with `?` may be missing; `*` stands
for any key of an object whose keys are data, such as the names of parameters.
"""

from collections.abc import Iterable
from collections.abc import Iterator
import json
import pathlib
from typing import Any

from tests.golden import record

NAME = 'keys'
# Patterns of the files of each kind, below the folders of schema 1, whose keys must
# all stay, and of published results, which versions up to it wrote.
KINDS = {
  'run/config.json': (
    'run/config.json', 'export/config.json', 'import/config.json',
    '*/cells/*/config.json',
  ),
  'lineage.json': ('**/lineage.json',),
  'metrics.jsonl': ('**/metrics.jsonl', '*/rows.jsonl'),
  'progress.jsonl': ('**/progress.jsonl',),
  'gradients.jsonl': ('**/gradients.jsonl',),
  'rounds.jsonl': ('**/rounds.jsonl',),
  'fit.json': ('**/fit.json',),
  'scan.json': ('**/scan.json',),
  'selection.json': ('**/selection.json',),
  'allocation.json': (
    'replay/allocation.json', 'allocation_nanogpt/*.json',
    'allocation_synthetic/*.json',
  ),
  'draws.jsonl': ('replay/draws.jsonl',),
  'evaluation.json': ('**/evaluation.json',),
  'decoding.json': ('**/decoding.json',),
  'generated.json': ('**/generated.json',),
  'segment.json': ('**/segment.json',),
  'probe.json': ('**/probe.json',),
  'depth.json': ('**/depth.json',),
  'hugging_face/config.json': ('hugging_face/config.json',),
  'pod/plan.json': ('plans/*.json',),
  'toys/study.json': ('*/toys/*.json',),
}  # fmt: skip
# The folders of each study: the one of schema 1, then those of results.
STUDIES = {
  'isoflop': ('isoflop', 'familial_law_cpu'),
  'families': ('families', 'expansion_*', 'three_families_cpu'),
  'allocation': ('allocation_live', 'allocation_live_cpu'),
  'depth': ('depth_law', 'depth_law_cpu'),
  'regimes': ('depth_regimes', 'depth_regimes_cpu*'),
  'toys': ('depth_toys', 'depth_toys_cpu'),
}
for _study, _folders in STUDIES.items():
  for _file in ('plan', 'config'):
    KINDS[f'{_study}/{_file}.json'] = tuple(
      f'{folder}/{_file}.json' for folder in _folders
    )
  # Schema 1's summary is still read; now one is named tables.
  first, *rest = (f'{folder}/summary.json' for folder in _folders)
  KINDS[f'{_study}/summary.json'] = (first,)
  KINDS[f'{_study}/tables.json'] = tuple(rest)
# Paths of the objects whose keys are data.
MAPS = {
  'fit.json': (
    'approaches.costs', 'approaches.missing', 'bootstrap', 'derived',
    'identified', 'params', 'profile', 'sd', 'table.columns',
  ),
  'scan.json': ('cutoffs[].params',),
  'allocation.json': (
    'cells[].calibration', 'cells[].policies', 'cells[].seconds',
    'config.columns', 'config.wide', 'frontiers',
  ),
  'generated.json': ('share',),
  'isoflop/config.json': ('arms',),
  'families/config.json': ('ways',),
  'allocation/summary.json': (
    'apart.extrapolated', 'apart.params', 'laws', 'laws.*.extrapolated',
    'laws.*.identified', 'laws.*.params', 'replays',
  ),
  'depth/summary.json': (
    'laws', 'laws.*.params', 'over_E.rows[].params', 'scan.cutoffs[].params',
  ),
  'regimes/summary.json': ('groups[].evidence[].fits',),
  'toys/config.json': ('studies',),
  'toys/summary.json': ('regimes[].evidence', 'regimes[].evidence.*.fits'),
  **{f'{study}/tables.json': ('machine',) for study in STUDIES},
}  # fmt: skip
# Keys that have been added since the files were stored, which lack them.
_OF_DATA = {'data.allow_left_out?': 'boolean', 'data.separator?': 'string'}
ADDED = {
  'allocation.json': {
    'config.maximize?': 'boolean',
    'config.wide?': 'object',
    'config.wide.*?': 'string',
  },
  'fit.json': {
    'approaches.costs': 'object',
    'approaches.costs.*?': 'array',
    'approaches.costs.*[]': 'number',
    'approaches.flags': 'array',
    'approaches.flags[]?': 'string',
    'approaches.minima': 'array',
    'approaches.minima[].flag': 'string',
    'approaches.minima[].flops': 'number',
    'approaches.minima[].label': 'string',
    'approaches.minima[].left_out': 'number',
    'approaches.minima[].loss': 'number',
    'approaches.minima[].parabola': 'null|number',
    'approaches.minima[].parabola_bias': 'null|number',
    'approaches.minima[].parabola_loss': 'null|number',
    'approaches.minima[].params': 'object',
    'approaches.minima[].params.hi': 'null|number',
    'approaches.minima[].params.lo': 'null|number',
    'approaches.minima[].params.value': 'number',
    'approaches.minima[].rows': 'number',
    'approaches.minima[].tokens': 'object',
    'approaches.minima[].tokens.hi': 'null|number',
    'approaches.minima[].tokens.lo': 'null|number',
    'approaches.minima[].tokens.value': 'number',
    'approaches.minima[]?': 'object',
    'approaches.missing': 'object',
    'approaches.missing.*?': 'string',
    'approaches.optima': 'array',
    'approaches.optima[].approach': 'string',
    'approaches.optima[].exponent': 'object',
    'approaches.optima[].exponent.hi': 'null|number',
    'approaches.optima[].exponent.lo': 'null|number',
    'approaches.optima[].exponent.value': 'number',
    'approaches.optima[].flops': 'number',
    'approaches.optima[].label': 'string',
    'approaches.optima[].params': 'object',
    'approaches.optima[].params.hi': 'null|number',
    'approaches.optima[].params.lo': 'null|number',
    'approaches.optima[].params.value': 'number',
    'approaches.optima[].token_exponent': 'object',
    'approaches.optima[].token_exponent.hi': 'null|number',
    'approaches.optima[].token_exponent.lo': 'null|number',
    'approaches.optima[].token_exponent.value': 'number',
    'approaches.optima[].tokens': 'object',
    'approaches.optima[].tokens.hi': 'null|number',
    'approaches.optima[].tokens.lo': 'null|number',
    'approaches.optima[].tokens.value': 'number',
    'approaches.optima[]?': 'object',
    'approaches?': 'null|object',
    'degrees?': 'number',
    'held_out.covered_run?': 'null|number',
    'held_out.unknown?': 'number',
    'residual_scale?': 'number',
    'span?': 'object',
    'span.centre': 'array',
    'span.centre[]': 'number',
    'span.columns': 'array',
    'span.columns[]': 'string',
    'span.confounded': 'array',
    'span.confounded[]': 'string',
    'span.logs': 'array',
    'span.logs[]': 'boolean',
    'span.missing': 'array',
    'span.missing[]': 'array',
    'span.missing[][]': 'number',
    'span.room': 'number',
    'span.scale': 'array',
    'span.scale[]': 'number',
  },
  **dict.fromkeys(
    ('run/config.json', *(f'{study}/config.json' for study in STUDIES)),
    _OF_DATA,
  ),
}


def check(kind: str, path: pathlib.Path) -> None:
  """Fails unless a file that was written now has the keys of its kind."""
  problems = list(differences(kind, read(path)))
  assert not problems, '\n'.join([f'{path}:', *problems[:20]])


def differences(
  kind: str, values: Iterable[Any], whole: bool = True
) -> Iterator[str]:
  """Yields a line for each key and type that differs from the record.

  Args:
    kind: of `KINDS`.
    values: a file's value, or its rows.
    whole: whether keys that are always there must be.
  """
  known = record.read(NAME)[kind]
  seen = _Seen(kind)
  for value in values:
    seen.add(value)
  for path, types in seen.types.items():
    allowed = known.get(path, known.get(f'{path}?', ''))
    for name in sorted(types - {*allowed.split('|')}):
      yield f'{path}: is {name}, was {allowed or "not there"}'
  if whole:
    needed = [path for path in known if not path.endswith('?')]
    for path, objects in seen.objects.items():
      for key in _below(path, needed):
        if not all(key in keys for keys in objects):
          yield f'{_join(path, key)}: is missing'


def stored(kind: str) -> Iterator[tuple[pathlib.Path, list[Any], bool]]:
  """Yields (path, its value or rows, whether of schema 1) of the stored files."""
  for root in (record.SCHEMA_1, record.RESULTS):
    for path in sorted({p for each in KINDS[kind] for p in root.glob(each)}):
      yield path, read(path), root == record.SCHEMA_1


def read(path: pathlib.Path) -> list[Any]:
  """Returns a file's value, or its rows."""
  text = path.read_text(encoding='utf-8')
  lines = text.splitlines() if path.suffix == '.jsonl' else [text]
  return [json.loads(line) for line in lines]


def observed() -> dict[str, dict[str, str]]:
  """Returns the record of all stored files.

  A kind without files keeps its previous record.
  """
  known = record.read(NAME) if record.path(NAME).exists() else {}
  return {
    kind: dict(
      sorted({
        **(_observed(kind) or known.get(kind, {})), **ADDED.get(kind, {})
      }.items())
    )
    for kind in KINDS
  }  # fmt: skip


def _observed(kind: str) -> dict[str, str]:
  every, current = _Seen(kind), _Seen(kind)
  for _, values, is_current in stored(kind):
    for value in values:
      every.add(value)
      if is_current:
        current.add(value)
  paths = {}
  for path, types in every.types.items():
    above, _, key = path.rpartition('.')
    # Earlier versions wrote fewer keys: the present one decides what is optional.
    objects = current.objects.get(above) or every.objects.get(above, [])
    named = key != '*' and not key.endswith('[]') and path
    optional = named and not all(key in keys for keys in objects)
    paths[f'{path}?' if optional else path] = '|'.join(sorted(types))
  return dict(sorted(paths.items()))


class _Seen:
  """The types at each path of some values, and the keys of each object."""

  def __init__(self, kind: str) -> None:
    self.maps = MAPS.get(kind, ())
    self.types: dict[str, set[str]] = {}
    self.objects: dict[str, list[set[str]]] = {}

  def add(self, value: Any, path: str = '') -> None:
    """Adds a value that stands at a path."""
    self.types.setdefault(path, set()).add(_type(value))
    if isinstance(value, list):
      for item in value:
        self.add(item, f'{path}[]')
    elif isinstance(value, dict):
      is_map = path in self.maps
      if not is_map:
        self.objects.setdefault(path, []).append({*value})
      for key, item in value.items():
        self.add(item, _join(path, '*' if is_map else key))


def _type(value: Any) -> str:
  if value is None:
    return 'null'
  names = {bool: 'boolean', str: 'string', list: 'array', dict: 'object'}
  return names.get(type(value), 'number')


def _join(path: str, key: str) -> str:
  return f'{path}.{key}' if path else key


def _below(path: str, paths: Iterable[str]) -> set[str]:
  """Returns the keys of the object at a path."""
  return {
    key
    for above, _, key in (other.rpartition('.') for other in paths if other)
    if above == path and key != '*' and not key.endswith('[]')
  }

"""The keys and types of each JSON file and row that the package writes.

The record says for each path below the top of a file, as `cells[].loss`, which
of JSON's types stand there. A path that ends with `?` may be missing; `*` stands
for any key of an object whose keys are data, such as the names of parameters.
"""

from collections.abc import Iterable
from collections.abc import Iterator
import dataclasses
import json
import pathlib
from typing import Any

from tests.golden import record

ROOT = pathlib.Path(__file__).parents[2]
NAME = 'keys'
# Files of the present code, whose keys must all stay, and of versions up to it,
# which may lack some.
CURRENT = ROOT / 'tests' / 'data' / 'schema_1'
EARLIER = ROOT / 'experiments' / 'results'


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of file.

  Attributes:
    current: patterns of its files in `CURRENT`.
    earlier: patterns of its files in `EARLIER`.
    maps: paths of the objects in it whose keys are data.
  """

  current: tuple[str, ...] = ()
  earlier: tuple[str, ...] = ()
  maps: tuple[str, ...] = ()


def _of_study(
  name: str,
  current: str,
  earlier: tuple[str, ...],
  config: tuple[str, ...] = (),
  summary: tuple[str, ...] = (),
) -> dict[str, Kind]:
  """Returns the kinds of a study's plan, config and summary.

  `summary.json` is that of schema 1, which is still read; `tables.json` stands for
  a summary of named tables, as it is written now.

  Args:
    name: of the kind of study.
    current: its folder in `CURRENT`.
    earlier: its folders in `EARLIER`.
    config: maps of its config.
    summary: maps of its summary.
  """
  files = {'plan': (), 'config': config, 'summary': summary}
  kinds = {
    f'{name}/{file}.json': Kind(
      (f'{current}/{file}.json',),
      tuple(f'{folder}/{file}.json' for folder in earlier)
      if file != 'summary'
      else (),
      maps,
    )
    for file, maps in files.items()
  }
  summaries = tuple(f'{folder}/summary.json' for folder in earlier)
  kinds[f'{name}/tables.json'] = Kind((), summaries, ('machine',))
  return kinds


KINDS: dict[str, Kind] = {
  'run/config.json': Kind(
    (
      'run/config.json',
      'export/config.json',
      'import/config.json',
      '*/cells/*/config.json',
    )
  ),
  'lineage.json': Kind(('**/lineage.json',)),
  'metrics.jsonl': Kind(('**/metrics.jsonl',), ('*/rows.jsonl',)),
  'progress.jsonl': Kind(('**/progress.jsonl',)),
  'gradients.jsonl': Kind(('**/gradients.jsonl',)),
  'rounds.jsonl': Kind(('**/rounds.jsonl',), ('*/rounds.jsonl',)),
  'fit.json': Kind(
    ('**/fit.json',),
    ('**/fit.json',),
    (
      'bootstrap',
      'derived',
      'identified',
      'params',
      'profile',
      'sd',
      'table.columns',
    ),
  ),
  'scan.json': Kind(
    ('**/scan.json',), ('**/scan.json',), ('cutoffs[].params',)
  ),
  'selection.json': Kind(('**/selection.json',), ('**/selection.json',)),
  'allocation.json': Kind(
    ('replay/allocation.json',),
    ('allocation_nanogpt/*.json', 'allocation_synthetic/*.json'),
    (
      'cells[].calibration',
      'cells[].policies',
      'cells[].seconds',
      'config.columns',
      'frontiers',
    ),
  ),
  'draws.jsonl': Kind(('replay/draws.jsonl',)),
  'evaluation.json': Kind(('**/evaluation.json',), ('**/evaluation.json',)),
  'decoding.json': Kind(('**/decoding.json',), ('**/decoding.json',)),
  'generated.json': Kind(('**/generated.json',), maps=('share',)),
  'segment.json': Kind(('**/segment.json',)),
  'probe.json': Kind(('**/probe.json',)),
  'depth.json': Kind(('**/depth.json',)),
  'hugging_face/config.json': Kind(('hugging_face/config.json',)),
  'pod/plan.json': Kind(('plans/*.json',), ('plans/*.json',)),
  'toys/study.json': Kind(('*/toys/*.json',)),
  **_of_study('isoflop', 'isoflop', ('familial_law_cpu',), ('arms',)),
  **_of_study(
    'families', 'families', ('expansion_*', 'three_families_cpu'), ('ways',)
  ),
  **_of_study(
    'allocation',
    'allocation_live',
    ('allocation_live_cpu',),
    summary=(
      'apart.extrapolated',
      'apart.params',
      'laws',
      'laws.*.extrapolated',
      'laws.*.identified',
      'laws.*.params',
      'replays',
    ),
  ),
  **_of_study(
    'depth',
    'depth_law',
    ('depth_law_cpu',),
    summary=(
      'laws',
      'laws.*.params',
      'over_E.rows[].params',
      'scan.cutoffs[].params',
    ),
  ),
  **_of_study(
    'regimes',
    'depth_regimes',
    ('depth_regimes_cpu*',),
    summary=('groups[].evidence[].fits',),
  ),
  **_of_study(
    'toys',
    'depth_toys',
    ('depth_toys_cpu',),
    ('studies',),
    ('regimes[].evidence', 'regimes[].evidence.*.fits'),
  ),
}


def check(kind: str, *values: Any) -> None:
  """Fails unless what was written has the keys of its kind.

  Args:
    kind: of `KINDS`.
    *values: what the present code wrote: a file's value, or its rows.
  """
  problems = list(differences(kind, values))
  assert not problems, '\n'.join([f'{kind}:', *problems[:20]])


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
  seen = _Seen(KINDS[kind].maps)
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
  """Yields (path, its value or rows, whether current) of the stored files."""
  for root, patterns in (
    (CURRENT, KINDS[kind].current),
    (EARLIER, KINDS[kind].earlier),
  ):
    for path in sorted({p for pattern in patterns for p in root.glob(pattern)}):
      text = path.read_text(encoding='utf-8')
      lines = text.splitlines() if path.suffix == '.jsonl' else [text]
      yield path, [json.loads(line) for line in lines], root == CURRENT


def observed() -> dict[str, dict[str, str]]:
  """Returns the record of all stored files.

  A kind without files keeps its previous record.
  """
  known = record.read(NAME) if record.path(NAME).exists() else {}
  return {kind: _observed(kind) or known.get(kind, {}) for kind in KINDS}


def _observed(kind: str) -> dict[str, str]:
  every, current = _Seen(KINDS[kind].maps), _Seen(KINDS[kind].maps)
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

  def __init__(self, maps: tuple[str, ...]) -> None:
    self.maps = maps
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

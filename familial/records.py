"""Run folders and their rows: the contract between training and the rest.

A run folder holds `config.json` (what was asked), `lineage.json` (what it
started from), `metrics.jsonl` (one row per exit and evaluation) and
`progress.jsonl` (training loss and speed, which no result depends on);
`gradients.jsonl` where a run measures its exits' gradients. Rows
hold no clock, so an undisturbed run and a resumed one write the same bytes.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import sys
from typing import Any
import uuid

from familial import errors
from familial import flops as flops_lib

SCHEMA = 1
ROWS = 'metrics.jsonl'
PROGRESS = 'progress.jsonl'
GRADIENTS = 'gradients.jsonl'
# How a run ends; it is never trained again.
DONE = ('finished', 'diverged')
Row = dict[str, Any]


def write_json(path: str | os.PathLike[str], value: Any) -> None:
  """Writes JSON at once: a reader sees the old file or the new one."""
  write_text(path, json.dumps(value, indent=1, allow_nan=False) + '\n')


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes a text file at once."""
  write_bytes(path, text.encode('utf-8'))


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
  """Writes a file at once or not at all; its folder is made if missing.

  Raises:
    UserError: if the disk is full, or takes no writing for another reason.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex}.tmp')
  with writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      with open(temporary, 'wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
      os.replace(temporary, path)
    finally:
      temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
  """Makes what the system says of writing a file or folder one line."""
  try:
    yield
  except OSError as error:
    raise unwritten(path, error.strerror or str(error)) from None


def unwritten(path: str | os.PathLike[str], why: str) -> errors.UserError:
  """Returns the error for what could not be written."""
  return errors.UserError(
    f'{path}: cannot be written: {why}; what was there stays, and the same '
    'command goes on once it can be'
  )


def read_json(path: str | os.PathLike[str]) -> Any:
  """Returns a JSON file's value; a damaged one is a UserError."""
  try:
    with open(path, encoding='utf-8') as file:
      return json.load(file)
  except ValueError as error:
    raise errors.UserError(f'{path}: not valid JSON ({error})') from None


def read_own(path: str | os.PathLike[str]) -> Row:
  """Returns what a JSON file of this project holds.

  Raises:
    UserError: if it is damaged, no object, or of another version.
  """
  value = read_json(path)
  if not isinstance(value, dict):
    raise errors.UserError(f'{path}: not a JSON object')
  check_schema(path, value)
  return value


def check_schema(
  where: str | os.PathLike[str], value: Mapping[str, Any]
) -> None:
  """Refuses what another version wrote; the first left it out here and there."""
  was = value.get('schema', 1)
  if was != SCHEMA:
    raise errors.UserError(
      f'{where}: schema {was!r} is not {SCHEMA}, the one that this version '
      'reads and writes'
    )


def open_run(
  folder: str | os.PathLike[str],
  config: Any,
  lineage: Row | None = None,
  *,
  free: tuple[str, ...] = (),
) -> pathlib.Path:
  """Makes a run folder, or opens the one of this very config.

  Args:
    folder: of the run.
    config: a dataclass; compared with what the folder was made for.
    lineage: of a run: its parent and the FLOPs inherited from it.
    free: the sections on which nothing that is kept depends: they may change.
  """
  folder = pathlib.Path(folder)
  path = folder / 'config.json'
  if path.exists():
    changed = False
    for key, was, now in differences(folder, config):
      if key.partition('.')[0] in free:
        changed = True
        continue
      raise errors.UserError(
        f'{folder} was made with {key} = {was!r}, not {now!r}; use another '
        'workdir, or that value'
      )
    if changed:
      write_json(path, _asked(config))
    return folder
  with writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
  if lineage:
    write_json(folder / 'lineage.json', lineage)
  write_json(path, _asked(config))
  return folder


def differences(
  folder: str | os.PathLike[str], config: Any
) -> Iterator[tuple[str, Any, Any]]:
  """Yields (key, was, now) where a config is not the one a folder was made for.

  Raises:
    UserError: if the folder is of another version.
  """
  path = pathlib.Path(folder) / 'config.json'
  yield from _differences(read_own(path), _asked(config))


@contextlib.contextmanager
def held(
  folder: str | os.PathLike[str], *, wait: bool = False
) -> Iterator[bool]:
  """Holds a folder for this process; yields whether it could be had.

  The system lets go of it when the process dies.

  Args:
    folder: made if missing.
    wait: until whoever has it lets go; otherwise what is held cannot be had.
  """
  path = pathlib.Path(folder) / 'lock'
  with writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, 'w', encoding='utf-8')
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
      yield False
      return
    yield True


def append(path: str | os.PathLike[str], rows: Iterable[Row]) -> None:
  """Appends rows to a JSONL file in one write.

  Raises:
    UserError: if the disk is full, or takes no writing for another reason.
  """
  lines = ''.join(json.dumps(row, allow_nan=False) + '\n' for row in rows)
  with writing(path), open(path, 'a', encoding='utf-8') as file:
    file.write(lines)
    file.flush()
    os.fsync(file.fileno())


def read(path: str | os.PathLike[str]) -> list[Row]:
  """Returns a JSONL file's whole rows; a half-written last one is left out.

  Raises:
    UserError: if a line before the last is not JSON, or one is of another
      version.
  """
  return _read(pathlib.Path(path))[0]


def truncate(path: str | os.PathLike[str], step: int) -> None:
  """Drops rows after a step: a run resumes there and writes them again."""
  path = pathlib.Path(path)
  if not path.exists():
    return
  rows, cut_off = _read(path)
  if cut_off:
    print(
      f'familial: {path}: its last line was cut off and is dropped',
      file=sys.stderr,
    )
  kept = [row for row in rows if row['step'] <= step]
  write_text(path, ''.join(json.dumps(row) + '\n' for row in kept))


def status(folder: str | os.PathLike[str]) -> str:
  """Returns `finished`, `diverged`, `running`, or `new` for a run folder.

  Last rows that were cut short, before the last exit's, leave it `running`.
  """
  rows = read(pathlib.Path(folder) / ROWS)
  if not rows:
    return 'new'
  last = rows[-1]
  return last['status'] if last['exit'] == last['exits'] else 'running'


def outcome(folder: str | os.PathLike[str]) -> str:
  """Returns one line on how a run ended and its held-out loss by exit."""
  rows = read(pathlib.Path(folder) / ROWS)
  step = rows[-1]['step']
  losses = [row['loss'] for row in rows if row['step'] == step]
  text = ', '.join('none' if x is None else f'{x:.4f}' for x in losses)
  return f'{rows[-1]["status"]} after {step} steps; loss by exit: {text}'


def rows_of(workdir: str | os.PathLike[str]) -> Iterator[Row]:
  """Yields the rows of every run below a folder, by path."""
  for path in sorted(pathlib.Path(workdir).rglob(ROWS)):
    yield from read(path)


def evaluation_rows(
  config: Any,
  run: str,
  fingerprint: str,
  step: int,
  inherited: float,
  epochs: float,
  losses: Iterable[float] | None,
  bytes_per_token: float,
  status: str,
) -> list[Row]:  # pylint: disable=redefined-outer-name
  """Returns the rows of one evaluation, one per exit.

  Args:
    config: the RunConfig.
    run: the run folder's name.
    fingerprint: of the corpus.
    step: steps done.
    inherited: FLOPs of the runs that this one started from.
    epochs: passes over the training tokens so far.
    losses: held-out nats per token by exit; None where the run diverged.
    bytes_per_token: of the held-out tokens.
    status: `running`, `finished` or `diverged`.
  """
  model, train, seq_len = config.model, config.train, config.data.seq_len
  batch_tokens = train.batch_size * seq_len
  tokens = step * batch_tokens
  flops = inherited + tokens * flops_lib.train(model, seq_len, train.trained)
  weights = train.exit_weights_at(step, model.exits)
  weightings = (train.weighting, train.weighting_end)
  count = model.granularity
  values = [None] * count if losses is None else list(losses)
  return [
    {
      'schema': SCHEMA,
      'run': run,
      'cell': config.cell,
      'arm': config.arm,
      'budget': config.budget,
      'step': step,
      'tokens': tokens,
      'epochs': epochs,
      'flops': flops,
      'flops_6nd': flops_lib.six_nd(model, tokens),
      'exit': exit_,
      'exits': count,
      'exit_layers': list(model.exits),
      'layer': model.exits[exit_ - 1],
      'exit_kind': model.kind_of(exit_),
      'params': flops_lib.params(model, exit_),
      'params_embedding': flops_lib.params_embedding(model, exit_),
      'params_full': flops_lib.params_full(model),
      'width': model.width,
      'depth': model.depth,
      'heads': model.heads,
      'kv_heads': model.kv_heads,
      'vocab': model.vocab_size,
      'batch_tokens': batch_tokens,
      'tokens_dense': flops_lib.tokens_dense(model, exit_, seq_len, flops),
      'loss': None if loss is None else float(loss),
      'loss_per_byte': (
        None if loss is None else float(loss) / bytes_per_token
      ),
      'weighting': '>'.join(filter(None, weightings)),
      'weight': weights[exit_ - 1],
      'base_lr': train.base_lr,
      'seed': train.seed,
      'corpus': fingerprint,
      'status': status,
    }
    for exit_, loss in enumerate(values, start=1)
  ]


def _read(path: pathlib.Path) -> tuple[list[Row], bool]:
  """Returns a file's whole rows, and whether a half-written one follows."""
  if not path.exists():
    return [], False
  lines = path.read_text(encoding='utf-8', errors='replace').split('\n')
  rows: list[Row] = []
  for number, line in enumerate(lines, start=1):
    if not line:
      continue
    try:
      row = json.loads(line)
    except ValueError:
      if number == len(lines):  # The last line has no newline behind it.
        return rows, True
      raise errors.UserError(f'{path}:{number}: not valid JSON') from None
    if not isinstance(row, dict):
      raise errors.UserError(f'{path}:{number}: not a JSON object')
    check_schema(f'{path}:{number}', row)
    rows.append(row)
  return rows, False


def _asked(config: Any) -> Row:
  """Returns a config as config.json has it."""
  values = {'schema': SCHEMA, **dataclasses.asdict(config)}
  return json.loads(json.dumps(values))


def _differences(
  known: Any, asked: Any, key: str = ''
) -> Iterator[tuple[str, Any, Any]]:
  """Yields (key, was, now) where two JSON values differ."""
  if isinstance(known, dict) and isinstance(asked, dict):
    for name in sorted(known.keys() | asked.keys()):
      yield from _differences(
        known.get(name), asked.get(name), f'{key}.{name}' if key else name
      )
  elif known != asked:
    yield key, known, asked

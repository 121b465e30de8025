"""The toys of the depth law: plans them, trains what is missing, sums up.

`toys/STUDY_DEPTH.json` holds what the students of one depth of a study gave, and
`toys/STUDY_DEPTH.npz` those of the first teachers, trained. A depth is all or
nothing: it is some minutes at most.
"""

from collections.abc import Callable
from collections.abc import Iterator
import io
import math
import os
import pathlib
import time
from typing import NamedTuple
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from familial import errors
from familial import records
from familial.analysis import figures_toys
from familial.analysis import toys
from familial.studies import depth_toys_config as config_lib
from familial.studies import depth_toys_summary as summary
from familial.training import compilation
from familial.training import meter

_CHUNK = 1e11  # FLOPs of a dispatch, seconds on CPU: a signal waits for its end
_ARRAYS = 2**28  # numbers in a file of students, at most


class Member(NamedTuple):
  """A student of a depth of a study: its teacher and its temperature."""

  teacher: str
  number: int
  temperature: float | None


def run(
  asked: config_lib.ToysConfig,
  workdir: str | os.PathLike[str],
  *,
  plan_only: bool = False,
) -> str:
  """Trains all students, or goes on with that; returns the summary line.

  Args:
    asked: what to do.
    workdir: where; everything is below it.
    plan_only: print the plan and stop.

  Raises:
    UserError: if the workdir is of another config.
    errors.Interrupted: on SIGTERM or SIGINT, with all but one depth saved.
  """
  workdir = records.open_run(workdir, asked)
  parts = [(name, d) for name, s in asked.studies.items() for d in s.depths]
  plan: list[records.Row] = [
    {'study': name, 'depth': depth, 'students': len(members(asked, name)),
     'flops': flops(asked, name, depth)}
    for name, depth in parts
  ]  # fmt: skip
  records.write_json(
    workdir / 'plan.json', {'schema': records.SCHEMA, 'parts': plan}
  )
  print('\n'.join(_lines(asked, plan)), flush=True)
  if plan_only:
    return f'planned only; wrote {workdir / "plan.json"}'
  compilation.prepare()
  with (
    records.held(workdir) as ours,
    meter.stop_signals() as stopping,
    tqdm.tqdm(
      total=sum(row['flops'] for row in plan) / 1e9,
      unit='GFLOP',
      desc='toys',
      bar_format='{desc}: {percentage:3.0f}% |{bar}|'
      ' {elapsed} < {remaining}{postfix}',
    ) as bar,
  ):
    if not ours:
      raise errors.UserError(
        f'--workdir={workdir}: another process is training there'
      )
    for (name, depth), row in zip(parts, plan, strict=True):
      path = file(workdir, name, depth)
      if path.exists():
        bar.total -= row['flops'] / 1e9
        continue
      bar.set_postfix_str(f'{name}, depth {depth}')

      def on_share(share: float, whole: float = row['flops']) -> None:
        bar.update(share * whole / 1e9)

      found = train(asked, name, depth, on_share, stopping)
      if found is None:
        raise errors.Interrupted(
          f'{workdir}: stopped; {name} at depth {depth} starts anew, what was '
          'before it is saved, and the same command goes on from there'
        )
      result, params = found
      kept = [i for i, m in enumerate(members(asked, name)) if m.number == 0]
      _save(
        path.with_suffix('.npz'),
        {key: np.asarray(leaf)[kept] for key, leaf in params.items()},
      )
      records.write_json(path, result)
  line = summary.write(asked, workdir, _results(asked, workdir))
  figures_toys.draw(records.read_own(workdir / 'summary.json'), workdir)
  return f'{line}\n{workdir / "summary.json"}'


def file(workdir: pathlib.Path, name: str, depth: int) -> pathlib.Path:
  """Returns where a depth of a study leaves its result."""
  return workdir / 'toys' / f'{name}_{depth}.json'


def members(asked: config_lib.ToysConfig, name: str) -> list[Member]:
  """Returns the students of each depth of a study, in their program's order."""
  study = asked.studies[name]
  return [
    Member(kind, number, temperature)
    for kind in study.teachers
    for number in range(asked.replicates)
    for temperature in study.temperatures or (None,)
  ]


def flops(asked: config_lib.ToysConfig, name: str, depth: int) -> float:
  """Returns a depth's FLOPs in training: students' steps and teachers' passes."""
  study = asked.studies[name]
  layer = 4 * asked.width * asked.hidden
  head = 2 * asked.width * asked.vocab * (study.head != 'none')
  students = len(members(asked, name)) * (
    3 * (layer * depth * study.stages + head) + head
  )
  teachers = layer * study.teacher_depth
  teachers *= asked.replicates * len(study.teachers)
  return float(study.steps) * asked.batch * (students + teachers)


def task(asked: config_lib.ToysConfig, name: str) -> toys.Task:
  """Returns what a study trains its students for."""
  study = asked.studies[name]
  return toys.Task(
    shape=toys.Shape(asked.width, asked.hidden, asked.vocab),
    head=study.head,
    stages=study.stages,
    steps=study.steps,
    decay=study.decay,
    decay_to=study.decay_to,
    batch=asked.batch,
    test_batches=asked.test_batches,
    test_batch=asked.test_batch,
  )


def rate(study: config_lib.Study, depth: int) -> float:
  """Returns the rate of students of a depth."""
  if not study.rate_depth:
    return study.rate
  return study.rate * math.sqrt(study.rate_depth / depth)


def teachers(asked: config_lib.ToysConfig, name: str) -> toys.Teachers:
  """Returns a study's teachers, by kind and number; all studies draw the same."""
  study = asked.studies[name]
  shape = task(asked, name).shape
  found = []
  for kind in study.teachers:
    for number in range(asked.replicates):
      keys = jax.random.split(_key(asked, kind, number, 0), 4)
      found.append(
        toys.Teachers(
          toys.teacher(
            keys[0], shape, study.teacher_depth, kind == 'tied', asked.gain
          ),
          toys.new_head(keys[1], shape),
          *keys[2:],
        )
      )
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)


def students(
  asked: config_lib.ToysConfig, name: str, depth: int
) -> toys.Params:
  """Returns untrained students [M, ...]; those of one teacher start alike."""
  study = asked.studies[name]
  shape = task(asked, name).shape
  found = [
    toys.student(
      _key(asked, member.teacher, member.number, 1),
      shape,
      depth,
      study.head == 'learned',
    )
    for member in members(asked, name)
  ]
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)


def checkpoints(steps: int, count: int) -> list[int]:
  """Returns the steps after which students are tested, the last one's too."""
  first = min(steps, max(1, round(steps / 128)))
  return sorted({round(step) for step in np.geomspace(first, steps, count)})


def train(
  asked: config_lib.ToysConfig,
  name: str,
  depth: int,
  on_share: Callable[[float], None] = lambda share: None,
  stopping: Callable[[], bool] = lambda: False,
) -> tuple[records.Row, toys.Params] | None:
  """Trains the students of one depth; returns their result and parameters.

  Args:
    asked: what to do.
    name: of the study.
    depth: of the students.
    on_share: called with each further share of the steps.
    stopping: whether to stop, which gives None.
  """
  study, how = asked.studies[name], task(asked, name)
  every = members(asked, name)
  known = teachers(asked, name)
  of = jnp.repeat(jnp.arange(len(known.head)), len(every) // len(known.head))
  cold = jnp.array([m.temperature or 1.0 for m in every], jnp.float32)
  state = toys.start(students(asked, name, depth))
  chunk = max(1, int(_CHUNK * study.steps / flops(asked, name, depth)))
  begin = time.perf_counter()
  program = toys.train.lower(
    how, known, toys.Members(of, cold), state, jnp.float32(0), 0, True
  ).compile()
  compiled = time.perf_counter()
  tests, done = [], 0
  ends = checkpoints(study.steps, asked.checkpoints)
  for end in ends:
    while done < end:
      steps = min(chunk, end - done)
      state, losses = program(
        known,
        toys.Members(of, cold),
        state,
        jnp.float32(rate(study, depth)),
        steps,
        done + steps == end,
      )
      jax.block_until_ready(state)
      done += steps
      on_share(steps / study.steps)
      if stopping():
        return None
    tests.append(np.asarray(losses, np.float64))
  tests_CxNxM = np.stack(tests)
  error_CxM = tests_CxNxM.std(axis=1, ddof=1) / math.sqrt(asked.test_batches)
  result = {
    'schema': records.SCHEMA,
    'study': name,
    'depth': depth,
    'rate': rate(study, depth),
    'members': [member._asdict() for member in every],
    'steps': ends,
    'loss': _plain(tests_CxNxM.mean(axis=1)),
    'error': _plain(error_CxM),
    'seconds': {
      'compile': compiled - begin,
      'train': time.perf_counter() - compiled,
    },
  }
  return result, state.params


def trained(
  asked: config_lib.ToysConfig,
  workdir: str | os.PathLike[str],
  name: str,
  depth: int,
) -> Iterator[tuple[Member, toys.Params]]:
  """Yields the kept students of a depth, those of the first teachers.

  Raises:
    UserError: if the file is not one of this config's.
  """
  path = file(pathlib.Path(workdir), name, depth).with_suffix('.npz')
  kept = [m for m in members(asked, name) if m.number == 0]
  shapes = {
    key: (len(kept), *leaf.shape[1:])
    for key, leaf in jax.eval_shape(
      lambda: students(asked, name, depth)
    ).items()
  }
  arrays = _load(path, shapes)
  for i, member in enumerate(kept):
    yield member, {key: jnp.asarray(leaf[i]) for key, leaf in arrays.items()}


def _save(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  content = io.BytesIO()
  np.savez(content, **arrays)  # type: ignore[arg-type]
  records.write_bytes(path, content.getvalue())


def _load(
  path: pathlib.Path, shapes: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
  """Returns the float32 arrays of a file, which must be these and no others."""
  size = sum(map(math.prod, shapes.values()))
  try:
    if size > _ARRAYS or path.stat().st_size > 4 * size + 2**16:
      raise ValueError('too large')
    with np.load(path, allow_pickle=False) as stored:
      arrays = {key: stored[key] for key in shapes}
  except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise errors.UserError(f'{path}: no students of toys ({error})') from None
  for key, shape in shapes.items():
    if arrays[key].shape != shape or arrays[key].dtype != np.float32:
      raise errors.UserError(
        f'{path}: {key} is {arrays[key].dtype} {arrays[key].shape}, not float32 '
        f'{shape}'
      )
  return arrays


def _results(
  asked: config_lib.ToysConfig, workdir: pathlib.Path
) -> dict[str, dict[int, records.Row]]:
  """Returns what each depth of each study gave."""
  return {
    name: {
      depth: records.read_own(file(workdir, name, depth))
      for depth in study.depths
    }
    for name, study in asked.studies.items()
  }


def _lines(
  asked: config_lib.ToysConfig, plan: list[records.Row]
) -> Iterator[str]:
  """Yields the plan as a person reads it."""
  yield f'{"study":<20}{"depths":>24}{"students":>10}{"steps":>8}{"FLOPs":>10}'
  for name, study in asked.studies.items():
    mine = [row for row in plan if row['study'] == name]
    yield (
      f'{name:<20}{", ".join(map(str, study.depths)):>24}'
      f'{sum(row["students"] for row in mine):>10}{study.steps:>8}'
      f'{sum(row["flops"] for row in mine):>10.2g}'
    )
  yield f'{sum(row["flops"] for row in plan):.3g} FLOPs in all'


def _key(
  asked: config_lib.ToysConfig, kind: str, number: int, use: int
) -> jax.Array:
  """Returns the key of a teacher (use 0) or of its students (1)."""
  key = jax.random.key(asked.seed)
  for part in (config_lib.KINDS.index(kind), number, use):
    key = jax.random.fold_in(key, part)
  return key


def _plain(values: np.ndarray) -> list[list[float | None]]:
  """Returns rows of numbers, None where there is none."""
  return [[float(v) if np.isfinite(v) else None for v in row] for row in values]

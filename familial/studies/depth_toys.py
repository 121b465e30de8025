"""The toys of the depth law: plans them, trains what is missing, sums up.

`toys/STUDY.json` holds what a study's students gave, and `toys/STUDY.npz` those of
the first teachers, trained. While it is under way `toys/STUDY.part.npz` has all
students with their moments, from now and then and from when it was stopped.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import math
import os
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from familial.analysis import toys
from familial.core import arrays as arrays_lib
from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.plots import toys as toys_lib
from familial.studies import depth_toys_cohort as cohort
from familial.studies import depth_toys_config as config_lib
from familial.studies import depth_toys_regimes as regimes
from familial.studies import depth_toys_summary as summary
from familial.training import compilation
from familial.training import progress

_CHUNK = 1e11  # FLOPs of a dispatch, seconds on CPU: a signal waits for its end
_SAVE_SECONDS = 300.0


def run(
  asked: config_lib.ToysConfig,
  workdir: str | os.PathLike[str],
  *,
  plan_only: bool = False,
  workers: int = 1,
  **unused: bool,
) -> str:
  """Trains all students, or goes on with that; returns the summary's table.

  Args:
    asked: what to do.
    workdir: where; everything is below it.
    plan_only: print the plan and stop.
    workers: 1: one program trains many at once.
    **unused: what other studies can leave of their runs, which toys have not.

  Raises:
    UserError: if the workdir is of another config, or more is asked.
    errors.Interrupted: on SIGTERM or SIGINT, with everything saved.
  """
  for name, wanted in unused.items():
    if wanted:
      raise errors.UserError(f'--{name}: not for toys, which have no runs')
  if workers > 1:
    raise errors.UserError(
      f'--workers={workers}: toys train in one process, many at once'
    )
  workdir = run_folder.open_folder(workdir, asked)
  plan: list[storage.Row] = [
    {'study': name, 'students': len(study.depths) * len(cohort.members(asked, name)),
     'flops': cohort.flops(asked, name)}
    for name, study in asked.studies.items()
  ]  # fmt: skip
  storage.write_json(
    workdir / 'plan.json', {'schema': storage.SCHEMA, 'studies': plan}
  )
  print('\n'.join(_lines(asked, plan)), flush=True)
  if plan_only:
    return f'planned only; wrote {workdir / "plan.json"}'
  compilation.prepare()
  with (
    storage.lock(workdir) as ours,
    progress.stop_signals() as stopping,
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
    for row in plan:
      name, whole = row['study'], row['flops'] / 1e9
      path = file(workdir, name)
      if path.exists():
        bar.total -= whole
        continue
      bar.set_postfix_str(name)

      def on_share(share: float, whole: float = whole) -> None:
        bar.update(share * whole)

      part = path.with_suffix('.part.npz')
      found = train(asked, name, part, on_share, stopping)
      if found is None:
        raise errors.Interrupted(
          f'{workdir}: stopped within {name}; everything is saved, and the same '
          'command goes on from there'
        )
      result, students = found
      named = _named(asked, name, students)
      kept = [
        i for i, m in enumerate(cohort.members(asked, name)) if m.number == 0
      ]
      arrays_lib.save(
        path.with_suffix('.npz'),
        {k: np.asarray(v)[kept] for k, v in named.items()},
      )
      storage.write_json(path, result)
      part.unlink(missing_ok=True)
  line = summary.write(
    asked,
    workdir,
    {name: storage.read_own(file(workdir, name)) for name in asked.studies},
    [
      {'study': name, **member._asdict(), **row}
      for name, study in asked.studies.items()
      if not study.one_layer
      for member, by_depth in trained(asked, workdir, name)
      for row in regimes.rows(by_depth, study.stages, asked.seed)
    ],
  )
  toys_lib.draw(storage.read_own(workdir / 'summary.json'), workdir)
  return f'{line}\n{workdir / "summary.json"}'


def file(workdir: pathlib.Path, name: str) -> pathlib.Path:
  """Returns where a study leaves its result."""
  return workdir / 'toys' / f'{name}.json'


def checkpoints(steps: int, count: int) -> list[int]:
  """Returns the steps after which students are tested, the last one's too."""
  first = min(steps, max(1, round(steps / 128)))
  return sorted({round(step) for step in np.geomspace(first, steps, count)})


def train(
  asked: config_lib.ToysConfig,
  name: str,
  part: pathlib.Path,
  on_share: Callable[[float], None] = lambda share: None,
  stopping: Callable[[], bool] = lambda: False,
) -> tuple[storage.Row, tuple[toys.Params, ...]] | None:
  """Trains a study's students; returns their result and parameters by depth.

  Args:
    asked: what to do.
    name: of the study.
    part: where training under way is saved, and goes on from if it is there.
    on_share: called with each further share of the steps.
    stopping: whether to save and stop, which gives None.

  Raises:
    UserError: if `part` is there and is not of this config.
  """
  study, how = asked.studies[name], cohort.task(asked, name)
  every = cohort.members(asked, name)
  known = cohort.teachers(asked, name)
  differ = cohort.assigned(known, every)
  rates = jnp.array(
    [cohort.rate(study, depth) for depth in study.depths], jnp.float32
  )
  state = toys.start(
    tuple(cohort.students(asked, name, depth) for depth in study.depths)
  )
  ends = checkpoints(study.steps, asked.checkpoints)
  tests = np.full(
    (len(ends), asked.test_batches, len(study.depths), len(every)), np.nan,
    np.float32,
  )  # fmt: skip
  before = 0.0
  if part.exists():
    state, tests, before = _resumed(part, (state, tests, np.float32(0)))
  done = int(state.step)
  on_share(done / study.steps)
  chunk = max(1, int(_CHUNK * study.steps / cohort.flops(asked, name)))
  begin = time.perf_counter()
  program = toys.train.lower(
    how, known, differ, state, rates, 0, True
  ).compile()
  compiled = saved = time.perf_counter()
  for number, end in enumerate(ends):
    while done < end:
      steps = min(chunk, end - done)
      state, losses = program(
        known, differ, state, rates, steps, done + steps == end
      )
      jax.block_until_ready(state)
      done += steps
      on_share(steps / study.steps)
      if done == end:
        tests[number] = losses
      now, stop = time.perf_counter(), stopping()
      if stop or now > saved + _SAVE_SECONDS:
        spent = np.float32(before + now - compiled)
        arrays_lib.save(part, _leaves((state, tests, spent)))
        saved = now
      if stop:
        return None
  tests_CxNxDxM = tests.astype(np.float64)
  error = tests_CxNxDxM.std(axis=1, ddof=1) / math.sqrt(asked.test_batches)
  result = {
    'schema': storage.SCHEMA,
    'study': name,
    'depths': list(study.depths),
    'rates': rates.tolist(),
    'members': [member._asdict() for member in every],
    'steps': ends,
    # By checkpoint, depth and member.
    'loss': _plain(tests_CxNxDxM.mean(axis=1)),
    'error': _plain(error),
    'seconds': {
      'compile': compiled - begin,
      'train': float(before) + time.perf_counter() - compiled,
    },
  }
  return result, state.params


def trained(
  asked: config_lib.ToysConfig, workdir: str | os.PathLike[str], name: str
) -> Iterator[tuple[cohort.Member, dict[int, toys.Params]]]:
  """Yields the kept members of a study, the first teachers', by depth.

  Raises:
    UserError: if the file is not one of this config's.
  """
  kept = [m for m in cohort.members(asked, name) if m.number == 0]
  depths = asked.studies[name].depths
  like = jax.eval_shape(
    lambda: _named(
      asked,
      name,
      [
        jax.tree.map(
          lambda leaf: leaf[: len(kept)], cohort.students(asked, name, d)
        )
        for d in depths
      ],
    )
  )
  arrays = arrays_lib.load(
    file(pathlib.Path(workdir), name).with_suffix('.npz'), like
  )
  for i, member in enumerate(kept):
    found: dict[int, toys.Params] = {depth: {} for depth in depths}
    for key, leaf in arrays.items():
      depth, leaf_name = key.split('_')
      found[int(depth)][leaf_name] = jnp.asarray(leaf[i])
    yield member, found


def _named(
  asked: config_lib.ToysConfig, name: str, students: Sequence[toys.Params]
) -> dict[str, Any]:
  """Returns the arrays of all depths by the names that they have in a file."""
  return {
    f'{depth}_{key}': leaf
    for depth, params in zip(asked.studies[name].depths, students, strict=True)
    for key, leaf in params.items()
  }


def _leaves(tree: Any) -> dict[str, Any]:
  return {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(tree))}


def _resumed(part: pathlib.Path, like: Any) -> Any:
  """Returns what was under way, in the form of what has not begun."""
  arrays = arrays_lib.load(part, _leaves(like))
  return jax.tree.unflatten(
    jax.tree.structure(like), [arrays[key] for key in _leaves(like)]
  )


def _lines(
  asked: config_lib.ToysConfig, plan: list[storage.Row]
) -> Iterator[str]:
  """Yields the plan as a person reads it."""
  yield f'{"study":<20}{"depths":>24}{"students":>10}{"steps":>8}{"FLOPs":>10}'
  for row, study in zip(plan, asked.studies.values(), strict=True):
    yield (
      f'{row["study"]:<20}{", ".join(map(str, study.depths)):>24}'
      f'{row["students"]:>10}{study.steps:>8}{row["flops"]:>10.2g}'
    )
  yield f'{sum(row["flops"] for row in plan):.3g} FLOPs in all'


def _plain(values: np.ndarray) -> list[list[list[float | None]]]:
  """Returns tables of numbers, None where there is none."""
  return [
    [[float(v) if np.isfinite(v) else None for v in row] for row in table]
    for table in values
  ]

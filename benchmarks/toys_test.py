"""The toys' students as one program against PyTorch, one after another, on CPU."""

from collections.abc import Callable
import os
import time

import jax
import numpy as np
import pytest

from benchmarks import clock
from experiments import depth_toys as experiment
from familial.analysis import toys
from familial.studies import depth_toys

pytestmark = pytest.mark.bench

_STEPS = 40
_COMPILED = 'state', 4  # torch.compile takes a minute for one


def test_seconds_of_the_study():
  torch = pytest.importorskip('torch')
  from benchmarks import toys_peer

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  asked = depth_toys.TOYS.read_config(experiment.get_config('cpu'))
  ours_in_all = theirs_in_all = 0.0
  for name, study in asked.studies.items():
    begin, members = (
      depth_toys.start(asked, name),
      depth_toys.members(asked, name),
    )
    task, known = begin.task, begin.teachers
    students = jax.tree.map(np.array, begin.state.params)  # Ours are donated.
    picked = len(members) - 1  # of the last teacher
    teacher = int(begin.assigned.teacher[picked])
    start = time.perf_counter()
    ours = _ours(begin)
    after = ours(2)
    compiling = time.perf_counter() - start
    contestants: dict[str, Callable[[], object]] = {
      'ours': lambda ours=ours: ours(_STEPS)
    }
    for at, depth in enumerate(study.depths):
      rate = study.rate_at(depth)
      for way in ('eager', 'compiled')[: 1 + ((name, depth) == _COMPILED)]:
        student = toys_peer.Student(
          task,
          students[at],
          picked,
          known,
          teacher,
          members[picked].temperature or 1.0,
          way == 'compiled',
        )
        for number in range(2):
          key = jax.random.fold_in(known.train[teacher], number)
          x = jax.random.normal(key, (task.batch, asked.width))
          student.step(torch.from_numpy(np.array(x)), rate)
        # The same student after the same steps: its states.
        one = {key: value[picked] for key, value in after[at].items()}
        mine = toys.last(one, x, task.stages)
        theirs = toys_peer.last(
          student._layers, torch.from_numpy(np.array(x)), task.stages
        )
        apart = np.linalg.norm(mine - theirs.detach().numpy())
        assert apart < 2e-5 * np.linalg.norm(mine), (name, depth)

        def run(student=student, task=task, rate=rate) -> None:
          for _ in range(_STEPS):
            student.step(torch.randn(task.batch, task.shape.width), rate)

        contestants[f'{way} {depth}'] = run
    seconds = clock.fastest(contestants, rounds=5)
    step = {way: value / _STEPS for way, value in seconds.items()}
    mine = compiling + step['ours'] * study.steps
    theirs = study.steps * sum(
      len(members) * step[f'eager {depth}'] for depth in study.depths
    )
    ours_in_all, theirs_in_all = ours_in_all + mine, theirs_in_all + theirs
    print(
      f'\n{name}: {len(members)} students of each of {study.depths}: '
      f'{step["ours"] * 1e3:.1f} ms a step of all and {compiling:.0f} s to '
      f'compile, {mine:.0f} s in all; PyTorch {theirs:.0f} s: '
      f'{theirs / mine:.1f} times'
    )
    if name == _COMPILED[0]:
      ways = [step[f'{way} {_COMPILED[1]}'] for way in ('compiled', 'eager')]
      print(
        f'  torch.compile at depth {_COMPILED[1]}: {ways[0] / ways[1]:.2f} of '
        "eager's time a step, compiling left out"
      )
  ratio = theirs_in_all / ours_in_all
  print(
    f'\nall studies: {ours_in_all:.0f} s against {theirs_in_all:.0f} s: '
    f'{ratio:.1f} times'
  )
  assert ratio > 3


def _ours(
  begin: depth_toys.Start,
) -> Callable[[int], tuple[toys.Params, ...]]:
  """Returns what takes all students of a group further by some steps."""
  task, teachers, assigned, state, rates = begin

  def advance(steps: int) -> tuple[toys.Params, ...]:
    nonlocal state
    state, _ = toys.train(task, teachers, assigned, state, rates, steps, False)
    return jax.tree.map(np.asarray, state.params)

  return advance

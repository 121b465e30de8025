"""The toys' students as one program against PyTorch, one after another, on CPU."""

from collections.abc import Callable
import importlib.util
import os
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from familial import config as config_lib
from familial.analysis import toys
from familial.studies import depth_toys
from tests.benchmarks import clock

pytestmark = pytest.mark.bench

_DEPTH = 4  # the middle one: this cut of the study has every kind of student
_STEPS = 40
_COMPILED = 'learned_head', 'state'  # torch.compile takes a minute for each


def test_seconds_of_the_study():
  torch = pytest.importorskip('torch')
  from tests.benchmarks import toys_peer

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  asked = _asked()
  whole = {'familial': 0.0, 'eager': 0.0}
  some = {'familial': 0.0, 'compiled': 0.0}
  for name, study in asked.studies.items():
    task = depth_toys.task(asked, name)
    members = depth_toys.members(asked, name)
    rate = depth_toys.rate(study, _DEPTH)
    known = depth_toys.teachers(asked, name)
    params = depth_toys.students(asked, name, _DEPTH)
    each = len(members) // len(known.head)
    picked = len(members) - 1  # of the last teacher
    start = time.perf_counter()
    ours = _ours(task, known, members, params, rate)
    after = ours(2)
    first = {'familial': time.perf_counter() - start}
    contestants: dict[str, Callable[[], object]] = {
      'familial': lambda ours=ours: ours(_STEPS)
    }
    for way in ('eager', 'compiled')[: 1 + (name in _COMPILED)]:
      start = time.perf_counter()
      student = toys_peer.Student(
        task,
        params,
        picked,
        known,
        picked // each,
        members[picked].temperature or 1.0,
        way == 'compiled',
      )
      for number in range(2):
        key = jax.random.fold_in(known.train[picked // each], number)
        x = jax.random.normal(key, (task.batch, asked.width))
        student.step(torch.from_numpy(np.array(x)), rate)
      first[way] = time.perf_counter() - start
      # The same student: its bias, after the same steps.
      np.testing.assert_allclose(
        after['bias'][picked],
        torch.stack([layer[1] for layer in student._layers]).detach(),
        atol=2e-5,
      )

      def run(student=student, task=task, rate=rate) -> None:
        for _ in range(_STEPS):
          student.step(torch.randn(task.batch, task.shape.width), rate)

      contestants[way] = run
    seconds = clock.fastest(contestants, rounds=6)
    print(f'\n{name}: {len(members)} students of depth {_DEPTH}')
    in_all = {}
    for way, value in seconds.items():
      step = value / _STEPS * (1 if way == 'familial' else len(members))
      compiling = max(0.0, first[way] - 2 * value / _STEPS)
      compiling = 0.0 if way == 'eager' else compiling
      in_all[way] = compiling + step * study.steps
      print(
        f'  {way:9s}{step * 1e3:8.2f} ms a step of all, {compiling:5.1f} s to '
        f'compile, {in_all[way]:7.1f} s in all'
      )
    whole['familial'] += in_all['familial']
    whole['eager'] += in_all['eager']
    if 'compiled' in in_all:
      some['familial'] += in_all['familial']
      some['compiled'] += in_all['compiled']
  ratio = whole['eager'] / whole['familial']
  print(
    f'\nall studies at depth {_DEPTH}: {whole["familial"]:.0f} s against '
    f'{whole["eager"]:.0f} s: {ratio:.1f} times; against torch.compile '
    f'({", ".join(_COMPILED)}): {some["compiled"] / some["familial"]:.1f} times'
  )
  assert ratio > 3


def _asked():
  path = pathlib.Path(__file__).parents[2] / 'experiments' / 'depth_toys.py'
  spec = importlib.util.spec_from_file_location('depth_toys', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return config_lib.depth_toys(module.get_config('cpu'))


def _ours(task, known, members, params, rate) -> Callable[[int], toys.Params]:
  """Returns what takes all students further by some steps."""
  each = len(members) // len(known.head)
  of = toys.Members(
    jnp.repeat(jnp.arange(len(known.head)), each),
    jnp.array([m.temperature or 1.0 for m in members], jnp.float32),
  )
  state = toys.start(jax.tree.map(jnp.copy, params))

  def advance(steps: int) -> toys.Params:
    nonlocal state
    state, _ = toys.train(
      task, known, of, state, jnp.float32(rate), steps, False
    )
    return jax.tree.map(np.asarray, state.params)

  return advance

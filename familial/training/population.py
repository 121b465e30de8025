"""Runs of one shape, trained together by one compiled program.

The members of a population differ in what a compiled step takes as numbers:
seed, rate, decay, length, loss weights; and in their exits, where the program
has those of all members and each gives the others' no weight. A dispatch takes
several steps of every member. One whose loss is not finite freezes, as one at
its end does, and the others go on.

On disk nothing tells a member from a run by itself: it has its own folder, rows
and checkpoints, and what was cut off goes on alone or in other company.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import functools
import os
import time
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from familial.core import errors
from familial.core import run_folder
from familial.data import batches as batches_lib
from familial.data import packing
from familial.model import config as model_config
from familial.model import transformer
from familial.training import config as train_config
from familial.training import meter as meter_lib
from familial.training import optimizer
from familial.training import profiling
from familial.training import run as job_lib
from familial.training import sharding
from familial.training import step as step_lib

Array = jax.Array
PyTree = Any
STEPS = 8  # Of a dispatch, at most; so many batches wait on the device.


class Members(NamedTuple):
  """What a population carries from step to step; every array has an axis K."""

  state: step_lib.State
  alive: Array


class _Dispatch(NamedTuple):
  """Steps that the device was given, to be looked at later."""

  before_K: np.ndarray
  alive_K: np.ndarray
  steps: int
  metrics: step_lib.Metrics


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def train(
  mesh: jax.sharding.Mesh,
  model: model_config.ModelConfig,
  trained: str,
  members: Members,
  batches: dict[str, Array],
  count: Array,
  h: optimizer.Hyper,
) -> tuple[Members, step_lib.Metrics]:
  """Returns the members after some steps, and what each step reported.

  A member takes no step past its end, nor once a loss of it was not finite.

  Args:
    mesh: over which the members are split.
    model: the `union` of theirs.
    trained: `all` or `exits`.
    members: K of them; donated.
    batches: as a step takes them, with axes [T, K] before its own.
    count: steps to take, 1..T.
    h: the members' numbers, each with an axis K.

  Returns:
    The members, and losses [T, K, G] and norms [T, K], 0 from `count` on.
  """

  def one(
    member: Members, batch: dict[str, Array], h: optimizer.Hyper
  ) -> tuple[Members, step_lib.Metrics]:
    state, metrics = step_lib.advance(model, trained, member.state, batch, h)
    alive = member.alive & jnp.isfinite(metrics.losses_G).all()
    goes = alive & (member.state.step < h.steps)
    kept = jax.tree.map(
      lambda new, old: jnp.where(goes, new, old), state, member.state
    )
    return Members(kept, alive), metrics

  def body(
    i: Array, carry: tuple[Members, step_lib.Metrics]
  ) -> tuple[Members, step_lib.Metrics]:
    members, reported = carry
    batch = jax.tree.map(lambda rows: rows[i], batches)
    members, metrics = step(members, batch, h)
    return members, jax.tree.map(
      lambda all_, new: all_.at[i].set(new), reported, metrics
    )

  step = jax.vmap(one, spmd_axis_name='member')
  steps, size = batches['inputs_BxL'].shape[:2]
  nothing = step_lib.Metrics(
    jnp.zeros((steps, size, model.granularity)), jnp.zeros((steps, size))
  )
  members, reported = jax.lax.fori_loop(0, count, body, (members, nothing))
  # As they came: the next dispatch is the same program.
  return sharding.members(members, mesh), reported


def run(
  configs: Sequence[train_config.RunConfig],
  folders: Sequence[str | os.PathLike[str]],
  corpus: packing.Corpus | None = None,
  *,
  model: model_config.ModelConfig | None = None,
  until: Sequence[int] | None = None,
  quiet: bool = False,
  tensorboard: bool = False,
  profile: bool = False,
  on_steps: Callable[[list[int]], None] = lambda steps: None,
) -> list[str]:
  """Trains runs to their ends; returns `finished` or `diverged` for each.

  Or as far as `until`, and returns `running` where that is not the end.

  Args:
    configs: of runs that agree in the `common` part of their models, in what of
      it is trained, in their data and in their batch size.
    folders: of each; made, or gone on with if it is that config's.
    corpus: where it is loaded already.
    model: the union of these and others' models; what was cut off among those
      goes on to the bit, whoever of them is left. By default these alone.
    until: the step of each to pause at, evaluated and saved; None for its end.
    quiet: no progress bar.
    tensorboard: write event files too.
    profile: write a trace of a few dispatches too, to the first one's folder.
    on_steps: called after each dispatch with the members' steps.

  Raises:
    errors.Interrupted: on SIGTERM or SIGINT, once every state is saved.
    UserError: if a folder or `init_from` is another model's, or this host
      cannot train one.
  """
  ended = [
    job_lib.begin(config, folder)
    for config, folder in zip(configs, folders, strict=True)
  ]
  left = [k for k, status in enumerate(ended) if status not in run_folder.DONE]
  if not left:
    return ended
  corpus = corpus or packing.load(configs[0].data)
  with contextlib.ExitStack() as stack:
    jobs = [
      stack.enter_context(
        job_lib.Job(
          configs[k],
          folders[k],
          corpus,
          tensorboard,
          None if until is None else until[k],
        )
      )
      for k in left
    ]
    stopping = stack.enter_context(meter_lib.stop_signals())
    meter = stack.enter_context(meter_lib.Meter(jobs, quiet))
    trace = stack.enter_context(profiling.Trace(jobs[0].folder, profile))
    model = model or model_config.union([config.model for config in configs])
    _train(jobs, model, meter, trace, stopping, on_steps)
    interrupted = stopping()
  if interrupted:
    names = ', '.join(str(folders[k]) for k in left)
    raise errors.Interrupted(
      f'{names}: stopped and saved; the same command goes on from there'
    )
  return [run_folder.status(folder) for folder in folders]


def _train(
  jobs: list[job_lib.Job],
  model: model_config.ModelConfig,
  meter: meter_lib.Meter,
  trace: profiling.Trace,
  stopping: Callable[[], bool],
  on_steps: Callable[[list[int]], None],
) -> None:
  """Takes jobs to their ends, or to where a signal stops them."""
  first = jobs[0].config.train
  own = [
    [model.exits.index(layer) for layer in job.config.model.exits]
    for job in jobs
  ]
  states = [
    Members(_convert(job.state(), job.config.model, model), jnp.bool_(True))
    for job in jobs
  ]
  numbers = [_spread(job.hyper, own[k], model) for k, job in enumerate(jobs)]
  if len(jobs) == 1:
    # XLA drops an axis of one and sums in another order: with a member that
    # does nothing, the last one left is the same to the bit as among others.
    states.append(states[0]._replace(alive=jnp.bool_(False)))
    numbers *= 2
  mesh = sharding.population(len(states), first.batch_size)
  members = sharding.members(_stack(states), mesh)
  h = sharding.members(_stack(numbers), mesh)
  feed = _Feed(jobs, len(states))
  step_K = np.array([job.start for job in jobs])
  alive_K = np.array([job.start < job.until for job in jobs])
  pending: _Dispatch | None = None

  def take(done: _Dispatch) -> None:
    """Looks at what a dispatch reported; ends the members that diverged."""
    losses_TxKxG = np.asarray(done.metrics.losses_G)[: done.steps]
    norms_TxK = np.asarray(done.metrics.gradient_norm)
    latest = {}
    for k in np.flatnonzero(done.alive_K & alive_K):
      losses_TxG = losses_TxKxG[:, k, own[k]]
      [bad] = np.nonzero(~np.isfinite(losses_TxG).all(axis=1))
      if len(bad):
        jobs[k].diverge(int(done.before_K[k] + bad[0] + 1))
        alive_K[k] = False
      last = done.steps - 1
      latest[jobs[k]] = (
        int(done.before_K[k] + done.steps),
        float(losses_TxG[last, -1]),
        float(norms_TxK[last, k]),
      )
    meter.update(done.steps, latest)

  saved = time.monotonic()
  while alive_K.any():
    count = min(
      STEPS,
      *(
        min(s for s in jobs[k].evaluations if s > step_K[k]) - step_K[k]
        for k in np.flatnonzero(alive_K)
      ),
    )
    batches = sharding.members_batches(feed.take(alive_K, count), mesh)
    trace.before()
    with jax.set_mesh(mesh):
      members, metrics = train(
        mesh, model, first.trained, members, batches, np.int32(count), h
      )
    # One dispatch late: the device computes this one while the host looks at
    # the last one and cuts batches for the next.
    if pending is not None:
      take(pending)
    pending = _Dispatch(step_K.copy(), alive_K.copy(), count, metrics)
    step_K += count * alive_K
    stop = stopping()
    late = time.monotonic() - saved > first.checkpoint_seconds
    due = [
      k
      for k in np.flatnonzero(alive_K)
      if stop or late or step_K[k] in jobs[k].evaluations
    ]
    if due:
      take(pending)
      pending = None
      trace.end()
      for k in filter(alive_K.__getitem__, due):
        job, step = jobs[k], int(step_K[k])
        state = job.place(_member(members.state, k, model, job.config.model))
        if not job.keep(state, step):
          job.diverge(step)
          alive_K[k] = False
        elif step == job.until:
          alive_K[k] = False
      saved = time.monotonic()
      meter.pause()
    on_steps(step_K.tolist())
    if stop:
      return


class _Feed:
  """The members' batches; those of one seed and beginning are cut once."""

  def __init__(self, jobs: Sequence[job_lib.Job], size: int):
    self._size = size
    self._keys = [
      (job.config.train.seed, job.source.first, job.start) for job in jobs
    ]
    self._streams: dict[tuple[int, ...], Iterator[batches_lib.Batch]] = {
      key: batches_lib.iterate(job.source, job.start)
      for key, job in zip(self._keys, jobs, strict=True)
    }

  def take(self, alive_K: np.ndarray, count: int) -> batches_lib.Batch:
    """Returns the next steps' batches [T, K, ..]; zeros where none are due."""
    wanted = {self._keys[k] for k in np.flatnonzero(alive_K)}
    cut = {
      key: [next(self._streams[key]) for _ in range(count)] for key in wanted
    }
    like = next(iter(cut.values()))[0]
    taken = {
      name: np.zeros((STEPS, self._size, *rows.shape), rows.dtype)
      for name, rows in like.items()
    }
    for k in np.flatnonzero(alive_K):
      for t, batch in enumerate(cut[self._keys[k]]):
        for name, rows in batch.items():
          taken[name][t, k] = rows
    return taken


def _stack(trees: Sequence[PyTree]) -> PyTree:
  """Returns trees as one, on the host, with an axis K before every array's."""
  return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _spread(
  h: optimizer.Hyper, own: list[int], model: model_config.ModelConfig
) -> optimizer.Hyper:
  """Returns a member's numbers with weight 0 at the exits not its own."""

  def spread(weights_G: np.ndarray) -> np.ndarray:
    all_G = np.zeros(model.granularity, np.float32)
    all_G[own] = weights_G
    return all_G

  return h._replace(
    exit_weights_G=spread(h.exit_weights_G),
    exit_weights_end_G=spread(h.exit_weights_end_G),
  )


@functools.partial(jax.jit, static_argnums=(1, 2))
def _convert(
  state: step_lib.State,
  was: model_config.ModelConfig,
  now: model_config.ModelConfig,
) -> step_lib.State:
  """Returns a state with the exits of another model of the same shape.

  An exit that it did not have is a norm of gain 0, and stays that where it has
  no weight.
  """
  if was.exits == now.exits:
    return state

  def convert(params: transformer.Params) -> transformer.Params:
    exits = {
      f'exit_{place}': (
        params[f'exit_{was.exits.index(layer) + 1}']
        if layer in was.exits
        else jax.tree.map(jnp.zeros_like, params['exit_1'])
      )
      for place, layer in enumerate(now.exits, start=1)
    }
    rest = {
      name: leaf
      for name, leaf in params.items()
      if name in ('embedding', 'unembedding')
    }
    layers = transformer.trunk(params, was.granularity)
    return rest | transformer.cut(layers, now.exits) | exits

  def is_params(tree: PyTree) -> bool:
    return isinstance(tree, dict) and 'embedding' in tree

  return jax.tree.map(
    lambda tree: convert(tree) if is_params(tree) else tree,
    state,
    is_leaf=is_params,
  )


@functools.partial(jax.jit, static_argnums=(2, 3))
def _member(
  state: step_lib.State,
  k: Array,
  model: model_config.ModelConfig,
  own: model_config.ModelConfig,
) -> step_lib.State:
  """Returns one member's state, with its own exits alone."""
  return _convert(jax.tree.map(lambda leaf: leaf[k], state), model, own)

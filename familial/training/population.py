"""Runs of one shape, trained together by one compiled program.

The members of a population differ in the numbers that a compiled step takes as
arguments (seed, rate, decay, length, loss weights) and in their exits: the
program has the exits of all members, and each member gives the others' exits no
weight. A dispatch takes several steps of every member. A member whose loss is not
finite or that has reached its end is frozen, and the others continue.

Each member writes its own run folder, which does not differ from that of a run
trained alone; an interrupted member resumes alone or in another population.
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
from familial.training import optimizer
from familial.training import progress
from familial.training import run as run_lib
from familial.training import sharding
from familial.training import step as step_lib

Array = jax.Array
PyTree = Any
STEPS = 8  # Largest number of steps of a dispatch.


class Members(NamedTuple):
  """The state of a population; every array has a leading axis K."""

  state: step_lib.State
  alive: Array


class _Dispatch(NamedTuple):
  """Dispatched steps whose metrics have not been read yet.

  Attributes:
    before_K: each member's step before the dispatch.
    alive_K: the members that were trained.
    steps: number of steps.
    metrics: metrics with axes [T, K] before their own.
  """

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
  """Returns the members after some steps, and the metrics of each step.

  A member takes no step past its end, and none after a loss that is not finite.

  Args:
    mesh: mesh over which the members are split.
    model: the `union` of their models.
    trained: `all` or `exits`.
    members: K members; donated.
    batches: arrays of a batch with axes [T, K] before their own.
    count: steps to take, 1..T.
    h: arguments of the members' steps, each with an axis K.

  Returns:
    The members, and losses [T, K, G] and norms [T, K], 0 from `count` on.
  """

  def one(
    member: Members, batch: dict[str, Array], h: optimizer.Hyper
  ) -> tuple[Members, step_lib.Metrics]:
    state, metrics = step_lib.advance(model, trained, member.state, batch, h)
    alive = member.alive & jnp.isfinite(metrics.losses_G).all()
    trains = alive & (member.state.step < h.steps)
    state = jax.tree.map(
      lambda new, old: jnp.where(trains, new, old), state, member.state
    )
    return Members(state, alive), metrics

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
  zeros = step_lib.Metrics(
    jnp.zeros((steps, size, model.granularity)), jnp.zeros((steps, size))
  )
  members, reported = jax.lax.fori_loop(0, count, body, (members, zeros))
  # Sharded as the inputs, so that the next dispatch is the same program.
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
  """Trains runs together and returns their statuses.

  Args:
    configs: configs that agree in the `common` part of their models, in
      `trained`, in their data and in their batch size.
    folders: folder of each run; created, or continued if it has that config.
    corpus: corpus of the runs if it is loaded already.
    model: union of the models of a larger population, of which these runs are
      the unfinished ones: they continue to the bit. By default that of these
      runs alone.
    until: the step of each to pause at, evaluated and saved; None for the ends.
    quiet: whether to show no progress bar.
    tensorboard: whether to write event files too.
    profile: whether to write a trace of a few dispatches to the first folder.
    on_steps: called after each dispatch with the members' steps.

  Returns:
    For each run `finished` or `diverged`; `running` after a pause.

  Raises:
    errors.Interrupted: on SIGTERM or SIGINT, once every state is saved.
    UserError: if a folder or `init_from` belongs to another model, or this host
      cannot train one of the runs.
  """
  statuses = [
    run_lib.begin(config, folder)
    for config, folder in zip(configs, folders, strict=True)
  ]
  left = [
    k for k, status in enumerate(statuses) if status not in run_folder.DONE
  ]
  if not left:
    return statuses
  corpus = corpus or packing.load(configs[0].data)
  with contextlib.ExitStack() as stack:
    runs = [
      stack.enter_context(
        run_lib.Run(
          configs[k],
          folders[k],
          corpus,
          tensorboard,
          None if until is None else until[k],
        )
      )
      for k in left
    ]
    stopping = stack.enter_context(progress.stop_signals(quiet))
    reporter = stack.enter_context(progress.Reporter(runs, quiet, profile))
    model = model or model_config.union([config.model for config in configs])
    _train(runs, model, reporter, stopping, on_steps)
    interrupted = stopping()
  if interrupted:
    names = ', '.join(str(folders[k]) for k in left)
    raise errors.Interrupted(
      f'{names}: stopped and saved; the same command goes on from there'
    )
  return [run_folder.status(folder) for folder in folders]


def _train(
  runs: list[run_lib.Run],
  model: model_config.ModelConfig,
  reporter: progress.Reporter,
  stopping: Callable[[], bool],
  on_steps: Callable[[list[int]], None],
) -> None:
  """Trains runs to their ends, or until a signal stops them."""
  first = runs[0].config.train
  own = [
    [model.exits.index(layer) for layer in run.config.model.exits]
    for run in runs
  ]
  states = [
    Members(_convert(run.state(), run.config.model, model), jnp.bool_(True))
    for run in runs
  ]
  hypers = [_spread(run.hyper, own[k], model) for k, run in enumerate(runs)]
  if len(runs) == 1:
    # XLA drops an axis of size 1 and then sums in another order. Beside a frozen
    # copy, a single run is the same to the bit as in a population.
    states.append(states[0]._replace(alive=jnp.bool_(False)))
    hypers *= 2
  mesh = sharding.population(len(states), first.batch_size)
  members = sharding.members(_stack(states), mesh)
  h = sharding.members(_stack(hypers), mesh)
  feed = _Feed(runs, len(states))
  step_K = np.array([run.start for run in runs])
  alive_K = np.array([run.start < run.until for run in runs])
  pending: _Dispatch | None = None

  def report(done: _Dispatch) -> None:
    """Reads the metrics of a dispatch; ends the members that diverged."""
    losses_TxKxG = np.asarray(done.metrics.losses_G)[: done.steps]
    norms_TxK = np.asarray(done.metrics.gradient_norm)
    observed = {}
    for k in np.flatnonzero(done.alive_K & alive_K):
      losses_TxG = losses_TxKxG[:, k, own[k]]
      before = int(done.before_K[k])
      [bad] = np.nonzero(~np.isfinite(losses_TxG).all(axis=1))
      if len(bad):
        runs[k].diverge(before + int(bad[0]) + 1)
        alive_K[k] = False
      observed[runs[k]] = [
        progress.Observation(before + t + 1, float(losses_G[-1]), float(norm))
        for t, (losses_G, norm) in enumerate(
          zip(losses_TxG, norms_TxK[:, k], strict=False)
        )
      ]
    reporter.update(done.steps, observed)

  saved = time.monotonic()
  while alive_K.any():
    count = min(
      STEPS,
      *(
        min(s for s in runs[k].evaluations if s > step_K[k]) - step_K[k]
        for k in np.flatnonzero(alive_K)
      ),
    )
    batches = sharding.members_batches(feed.take(alive_K, count), mesh)
    reporter.before_dispatch()
    with jax.set_mesh(mesh):
      members, metrics = train(
        mesh, model, first.trained, members, batches, np.int32(count), h
      )
    # One dispatch late: the device computes this dispatch while the host reads the
    # last one and cuts batches for the next.
    if pending is not None:
      report(pending)
    pending = _Dispatch(step_K.copy(), alive_K.copy(), count, metrics)
    step_K += count * alive_K
    stop = stopping()
    save = time.monotonic() - saved > first.checkpoint_seconds
    due = [
      k
      for k in np.flatnonzero(alive_K)
      if stop or save or step_K[k] in runs[k].evaluations
    ]
    if due:
      report(pending)
      pending = None
      reporter.pause()
      for k in filter(alive_K.__getitem__, due):
        run, step = runs[k], int(step_K[k])
        state = run.place(_member(members.state, k, model, run.config.model))
        if not run.save(state, step):
          run.diverge(step)
          alive_K[k] = False
        elif step == run.until:
          alive_K[k] = False
      saved = time.monotonic()
    on_steps(step_K.tolist())
    if stop:
      return


class _Feed:
  """The members' batches; equal batches are cut once."""

  def __init__(self, runs: Sequence[run_lib.Run], size: int):
    self._size = size
    self._keys = [
      (run.config.train.seed, run.source.first, run.start) for run in runs
    ]
    self._streams: dict[tuple[int, ...], Iterator[batches_lib.Batch]] = {
      key: batches_lib.iterate(run.source, run.start)
      for key, run in zip(self._keys, runs, strict=True)
    }

  def take(self, alive_K: np.ndarray, count: int) -> batches_lib.Batch:
    """Returns the batches of the next steps, [T, K, ..]; zeros for none."""
    keys = {self._keys[k] for k in np.flatnonzero(alive_K)}
    cut = {
      key: [next(self._streams[key]) for _ in range(count)] for key in keys
    }
    like = next(iter(cut.values()))[0]
    batches = {
      name: np.zeros((STEPS, self._size, *rows.shape), rows.dtype)
      for name, rows in like.items()
    }
    for k in np.flatnonzero(alive_K):
      for t, batch in enumerate(cut[self._keys[k]]):
        for name, rows in batch.items():
          batches[name][t, k] = rows
    return batches


def _stack(trees: Sequence[PyTree]) -> PyTree:
  """Returns trees as one tree on the host, with a leading axis K."""
  return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _spread(
  h: optimizer.Hyper, own: list[int], model: model_config.ModelConfig
) -> optimizer.Hyper:
  """Returns a member's step arguments with weight 0 for the others' exits."""

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

  An exit that it did not have gets a norm with gain 0, which stays 0 while its
  loss has no weight.
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
  """Returns the state of one member, with its own exits only."""
  return _convert(jax.tree.map(lambda leaf: leaf[k], state), model, own)

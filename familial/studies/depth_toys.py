"""Toy residual networks: how the loss of students falls with their depth.

Students of several depths learn from teachers of many random layers, each its own
(`independent`) or all one (`tied`). An exponent of depth is minus the slope of log
test loss on log depth, by least squares over all depths, for each teacher with its
own student, inputs and test; its value is their mean, its interval Student's over
them. What all teachers share (depths, steps) is not in the interval.

`toys/GROUP.json` holds the result of a group of students and `toys/GROUP.npz`
those of the first teachers, trained. While a group is training,
`toys/GROUP.part.npz` holds all students with their moments, saved from time to
time and when the study is stopped.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import itertools
import math
import os
import pathlib
import time
from typing import Annotated
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from familial.analysis import middle
from familial.analysis import regimes as regimes_lib
from familial.analysis import toys
from familial.analysis import trajectories
from familial.core import arrays as arrays_lib
from familial.core import errors
from familial.core import run_folder
from familial.core import schema
from familial.core import storage
from familial.core import text
from familial.core.estimate import Estimate
from familial.laws import fit_record
from familial.studies import study as study_lib
from familial.studies import sweep
from familial.training import compilation
from familial.training import progress

KINDS = ('independent', 'tied')
HEADS = ('none', 'shared', 'learned')
_DISPATCH_FLOPS = (
  1e11  # seconds on CPU: a signal waits for the end of a dispatch
)
_SAVE_SECONDS = 300.0
_INPUTS = 2048  # on which the states of students are read
_FLOOR_SHARES = np.concatenate([[0.0], np.linspace(0.01, 0.99, 99)])


@dataclasses.dataclass(frozen=True)
class Group:
  """Students of one kind at several depths.

  Attributes:
    depths: depths of the students, at least three different ones.
    teacher_depth: depth of the teachers.
    steps: training steps.
    rate: Adam's learning rate.
    rate_depth: if l0 > 0, a student of depth l has rate * sqrt(l0 / l); 0 for one
      rate at all depths.
    decay: final share of the steps over which the rate falls linearly; 0 for a
      constant rate.
    decay_to: share of the rate that is left at the end.
    teachers: kinds of teachers, `independent` or `tied`.
    head: loss of the students: `none` (mean squared error of the last state), or
      KL divergence through the teacher's head (`shared`) or the student's own
      (`learned`).
    temperatures: of the heads; () without one.
    stages: evaluations of a student's layer: 1 (Euler's step) or 2 (midpoint
      rule).
    one_layer: replace a student of l layers by a single layer with l times the
      hidden units: the control for depth itself.
  """

  depths: tuple[schema.Count, ...]
  teacher_depth: schema.Count
  steps: schema.Count
  rate: schema.Positive
  rate_depth: schema.Index = 0
  decay: schema.Fraction = 0.2
  decay_to: schema.Fraction = 0.1
  teachers: Annotated[
    tuple[Annotated[str, schema.one_of(*KINDS)], ...], schema.NOT_EMPTY
  ] = KINDS
  head: Annotated[str, schema.one_of(*HEADS)] = 'none'
  temperatures: tuple[schema.Positive, ...] = ()
  stages: Annotated[int, schema.within(1, 2)] = 1
  one_layer: bool = False

  def check(self, key: str) -> None:
    """Raises a UserError for settings that are not allowed."""
    schema.check(self, key)
    errors.require(
      len(set(self.depths)) >= 3,
      f'{key}.depths',
      self.depths,
      'three different depths or more',
    )
    errors.require(
      bool(self.temperatures) == (self.head != 'none'),
      f'{key}.temperatures',
      self.temperatures,
      f'left out with head none, and given with another; head is {self.head!r}',
    )

  def rate_at(self, depth: int) -> float:
    """Returns the learning rate of students of a depth."""
    if not self.rate_depth:
      return self.rate
    return self.rate * math.sqrt(self.rate_depth / depth)


@dataclasses.dataclass(frozen=True)
class Config:
  """A study of toy networks.

  Attributes:
    title: title of the report.
    studies: groups of students by name.
    width: width D of the states.
    hidden: hidden units F of each layer.
    vocab: vocabulary V of the heads.
    gain: gain of the teachers' outer weights; see `toys.teacher`.
    batch: inputs per step.
    test_batches: number of test batches, the same ones every time.
    test_batch: inputs per test batch.
    replicates: number of teachers of each kind, each with its own student, inputs
      and test.
    checkpoints: number of tests during training, evenly spaced in log steps.
    seed: seed of everything drawn.
  """

  title: str
  studies: Annotated[dict[str, Group], schema.NOT_EMPTY]
  width: schema.Count = 32
  hidden: schema.Count = 128
  vocab: schema.Count = 128
  gain: schema.Positive = 1.0
  batch: schema.Count = 1024
  test_batches: schema.Count = 10
  test_batch: schema.Count = 1024
  replicates: schema.Count = 3
  checkpoints: schema.Count = 8
  seed: schema.Index = 0

  def __post_init__(self) -> None:
    schema.check(self)
    for name, group in self.studies.items():
      group.check(f'studies.{name}')


@dataclasses.dataclass(frozen=True)
class OfCurve:
  """The curve that a record is about.

  Attributes:
    study: name of the group.
    teacher: kind of the teachers.
    temperature: of the head; None without one.
  """

  study: str
  teacher: str
  temperature: float | None


@dataclasses.dataclass(frozen=True)
class Curve(OfCurve):
  """How one group's loss falls with depth, for a kind of teacher and temperature.

  Attributes:
    head: of the students.
    stages: evaluations of a layer.
    one_layer: whether students are single layers.
    steps: of the training.
    teacher_depth: depth of the teachers.
    depths: of the students.
    exponent: minus the slope of log loss on log depth; None if unknown.
    shallow: exponent of the shallower half of the depths.
    deep: exponent of the deeper half.
    curvature: second derivative of log loss in log depth; 0 for a power law.
    floor: exponent a of the fit c / l^a + L0.
    floor_share: mean of L0 over the deepest students' loss.
    averaging: exponent of 1/l - 1/n, what averaging n independent layers leaves;
      None where depths reach the teacher's.
    bent: whether the curve is no power law: it bends by more than 1 beyond doubt,
      or its deeper half rises.
  """

  head: str
  stages: int
  one_layer: bool
  steps: int
  teacher_depth: int
  depths: tuple[int, ...]
  exponent: Estimate | None
  shallow: Estimate | None
  deep: Estimate | None
  curvature: Estimate | None
  floor: Estimate | None
  floor_share: float | None
  averaging: float | None
  bent: bool


@dataclasses.dataclass(frozen=True)
class Exponent(OfCurve):
  """The exponent of a curve after some of the steps."""

  steps: int
  exponent: Estimate | None


@dataclasses.dataclass(frozen=True)
class ByTeacher(OfCurve):
  """One teacher's value of a quantity of a curve, a pair or a step."""

  quantity: str
  number: int
  value: float | None


@dataclasses.dataclass(frozen=True)
class Loss(OfCurve):
  """Test loss of one student after some steps.

  `error` is the standard error over test batches, of the last step alone.
  """

  number: int
  depth: int
  steps: int
  loss: float | None
  error: float | None


@dataclasses.dataclass(frozen=True)
class Pair(OfCurve):
  """Two groups of the same teachers, heads and steps.

  Attributes:
    study: name of the first group.
    base: name of the other.
    equal: what is equal between them: `cost`, `depth` or `units`.
    depths: depths of the first that are compared.
    exponent: of the first over these depths.
    base_exponent: of the other.
    difference: of the two exponents.
    log_ratio: mean log of the first's loss over the other's.
  """

  base: str
  equal: str
  depths: tuple[int, ...]
  exponent: Estimate | None
  base_exponent: Estimate | None
  difference: Estimate | None
  log_ratio: Estimate | None


@dataclasses.dataclass(frozen=True)
class Regime(OfCurve):
  """Which regime the states of trained students show; see `analysis.regimes`."""

  number: int
  depths: tuple[int, ...]
  regime: str
  strength: float
  agreement: float | None
  scores: dict[str, float]
  notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Evidence(regimes_lib.Evidence, OfCurve):
  """One statistic behind a regime; `deepest` is the number of networks."""

  number: int
  deepest: int


@text.brief
@dataclasses.dataclass(frozen=True)
class Tables:
  """Tables of a study of toys."""

  curves: tuple[Curve, ...]
  pairs: tuple[Pair, ...]
  regimes: tuple[Regime, ...]
  evidence: tuple[Evidence, ...]
  evolution: tuple[Exponent, ...]
  losses: tuple[Loss, ...]
  by_teacher: tuple[ByTeacher, ...]


class Member(NamedTuple):
  """A student of each depth of a group: its teacher and its temperature."""

  teacher: str
  number: int
  temperature: float | None


def members(config: Config, name: str) -> list[Member]:
  """Returns the students of each depth of a group, in order."""
  group = config.studies[name]
  return [
    Member(kind, number, temperature)
    for kind in group.teachers
    for number in range(config.replicates)
    for temperature in group.temperatures or (None,)
  ]


def flops(config: Config, name: str) -> float:
  """Returns a group's training FLOPs: students' steps and teachers' passes."""
  group = config.studies[name]
  layer = 4 * config.width * config.hidden
  head = 2 * config.width * config.vocab * (group.head != 'none')
  count = len(members(config, name))
  students = (
    3
    * count
    * sum(layer * depth * group.stages + head for depth in group.depths)
  )
  teachers = layer * group.teacher_depth
  teachers *= config.replicates * len(group.teachers)
  return (
    float(group.steps) * config.batch * (students + teachers + count * head)
  )


class Start(NamedTuple):
  """Arguments of `toys.train` for a group.

  Attributes:
    task: of all students.
    teachers: by kind and number; all groups draw the same.
    assigned: each student's teacher and temperature.
    state: untrained students of each depth; those of one teacher start alike.
    rates: learning rates by depth.
  """

  task: toys.Task
  teachers: toys.Teachers
  assigned: toys.Members
  state: toys.State
  rates: jax.Array


def start(config: Config, name: str) -> Start:
  """Returns the arguments of `toys.train` for a group."""
  group, every = config.studies[name], members(config, name)
  shape = toys.Shape(config.width, config.hidden, config.vocab)
  task = study_lib.record_of(
    toys.Task, {**vars(config), **vars(group)}, shape=shape
  )

  def teacher(kind: str, number: int) -> toys.Teachers:
    keys = jax.random.split(_key(config, kind, number, 0), 4)
    mlps = toys.teacher(
      keys[0], shape, group.teacher_depth, kind == 'tied', config.gain
    )
    return toys.Teachers(mlps, toys.new_head(keys[1], shape), *keys[2:])

  def students(depth: int) -> toys.Params:
    wide = shape
    if group.one_layer:
      wide, depth = shape._replace(hidden=depth * shape.hidden), 1
    return _stacked(
      toys.student(
        _key(config, member.teacher, member.number, 1),
        wide,
        depth,
        group.head == 'learned',
      )
      for member in every
    )

  taught = list(dict.fromkeys((m.teacher, m.number) for m in every))
  return Start(
    task,
    _stacked(teacher(*who) for who in taught),
    toys.Members(
      jnp.array([taught.index((m.teacher, m.number)) for m in every]),
      jnp.array([m.temperature or 1.0 for m in every], jnp.float32),
    ),
    toys.start(tuple(students(depth) for depth in group.depths)),
    jnp.array([group.rate_at(d) for d in group.depths], jnp.float32),
  )


def _stacked(trees: Iterable[Any]) -> Any:
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _key(config: Config, kind: str, number: int, use: int) -> jax.Array:
  """Returns the key of a teacher (use 0) or of its students (use 1)."""
  key = jax.random.key(config.seed)
  for part in (KINDS.index(kind), number, use):
    key = jax.random.fold_in(key, part)
  return key


def checkpoints(steps: int, count: int) -> list[int]:
  """Returns the steps after which students are tested, the last included."""
  first = min(steps, max(1, round(steps / 128)))
  return sorted({round(step) for step in np.geomspace(first, steps, count)})


def train(
  config: Config,
  name: str,
  part: pathlib.Path,
  on_share: Callable[[float], None] = lambda share: None,
  stopping: Callable[[], bool] = lambda: False,
) -> tuple[storage.Row, tuple[toys.Params, ...]] | None:
  """Trains a group of students; returns their result and parameters by depth.

  Args:
    config: of the study.
    name: of the group.
    part: where training under way is saved, and resumed from.
    on_share: called with each further share of the steps.
    stopping: whether to save and stop, which returns None.

  Raises:
    UserError: if `part` exists and is not of this config.
  """
  group, every = config.studies[name], members(config, name)
  task, teachers, assigned, state, rates = start(config, name)
  ends = checkpoints(group.steps, config.checkpoints)
  shape = (len(ends), config.test_batches, len(group.depths), len(every))
  tests = np.full(shape, np.nan, np.float32)
  before = 0.0
  if part.exists():
    state, tests, before = _resumed(part, (state, tests, np.float32(0)))
  done = int(state.step)
  on_share(done / group.steps)
  chunk = max(1, int(_DISPATCH_FLOPS * group.steps / flops(config, name)))
  begin = time.perf_counter()
  program = toys.train.lower(
    task, teachers, assigned, state, rates, 0, True
  ).compile()
  compiled = saved = time.perf_counter()
  for number, end in enumerate(ends):
    while done < end:
      steps = min(chunk, end - done)
      state, losses = program(
        teachers, assigned, state, rates, steps, done + steps == end
      )
      jax.block_until_ready(state)
      done += steps
      on_share(steps / group.steps)
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
  error = tests_CxNxDxM.std(axis=1, ddof=1) / math.sqrt(config.test_batches)
  result = {
    'schema': storage.SCHEMA,
    'study': name,
    'depths': list(group.depths),
    'rates': rates.tolist(),
    'members': [member._asdict() for member in every],
    'steps': ends,
    # By checkpoint, depth and member.
    'loss': fit_record.plain(tests_CxNxDxM.mean(axis=1)),
    'error': fit_record.plain(error),
    'seconds': {
      'compile': compiled - begin,
      'train': float(before) + time.perf_counter() - compiled,
    },
  }
  return result, state.params


def trained(
  config: Config, workdir: str | os.PathLike[str], name: str
) -> Iterator[tuple[Member, dict[int, toys.Params]]]:
  """Yields the kept students of a group, those of the first teachers, by depth.

  Raises:
    UserError: if the file is not of this config.
  """
  depths, kept = config.studies[name].depths, _first(config, name)
  like = jax.eval_shape(
    lambda: _named(depths, start(config, name).state.params, kept)
  )
  arrays = arrays_lib.load(_students(pathlib.Path(workdir), name), like)
  for i, place in enumerate(kept):
    found: dict[int, toys.Params] = {depth: {} for depth in depths}
    for key, leaf in arrays.items():
      depth, leaf_name = key.split('_')
      found[int(depth)][leaf_name] = jnp.asarray(leaf[i])
    yield members(config, name)[place], found


def _first(config: Config, name: str) -> list[int]:
  """Returns the places of the students of the first teachers."""
  every = members(config, name)
  return [i for i, member in enumerate(every) if member.number == 0]


def _file(workdir: pathlib.Path, name: str) -> pathlib.Path:
  return workdir / 'toys' / f'{name}.json'


def _students(workdir: pathlib.Path, name: str) -> pathlib.Path:
  return _file(workdir, name).with_suffix('.npz')


def _named(
  depths: Sequence[int], students: Sequence[toys.Params], some: Sequence[int]
) -> dict[str, Any]:
  """Returns the arrays of some students by their names in a file."""
  return {
    f'{depth}_{key}': leaf[np.array(some)]
    for depth, params in zip(depths, students, strict=True)
    for key, leaf in params.items()
  }


def _leaves(tree: Any) -> dict[str, Any]:
  return {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(tree))}


def _resumed(part: pathlib.Path, like: Any) -> Any:
  """Returns a saved state in the structure of a fresh one."""
  arrays = arrays_lib.load(part, _leaves(like))
  return jax.tree.unflatten(
    jax.tree.structure(like), [arrays[key] for key in _leaves(like)]
  )


class DepthToys(study_lib.Study[Config, Tables]):
  """The study of toy networks."""

  kind = 'depth_toys'
  config_class = Config
  tables_class = Tables
  needs_finished = False

  def run(
    self,
    config: Config,
    workdir: str | os.PathLike[str],
    options: study_lib.Options = study_lib.Options(),
  ) -> study_lib.Outcome:
    """Trains all groups, or resumes; all students of a group are one program."""
    for key in ('tensorboard', 'profile'):
      if getattr(options, key):
        raise errors.UserError(f'--{key}: not for toys, which have no runs')
    errors.require(
      options.workers == 1,
      '--workers',
      options.workers,
      '1 for toys: one process trains many at once',
    )
    workdir = pathlib.Path(workdir)
    # Groups without a result may change, and others may be added.
    begun = {path.name.partition('.')[0] for path in workdir.glob('toys/*.*')}
    free = ['title', *(f'studies.{name}' for name in {*config.studies} - begun)]
    if begun or not run_folder.is_of(workdir, config):
      run_folder.check_folder(workdir, config, free)
    storage.check_writable(workdir)
    plan: list[dict[str, Any]] = [
      {
        'study': name,
        'students': len(group.depths) * len(members(config, name)),
        'flops': flops(config, name),
      }
      for name, group in config.studies.items()
    ]
    run_folder.write_config(workdir, config)
    storage.write_json(
      workdir / study_lib.PLAN,
      {
        'schema': storage.SCHEMA,
        'study': self.kind,
        'title': config.title,
        'studies': plan,
      },
    )
    print(_plan_text(config, plan), flush=True)
    if options.plan_only:
      return study_lib.Outcome(
        f'planned only; wrote {workdir / study_lib.PLAN}', planned_only=True
      )
    self._train(config, workdir, {row['study']: row['flops'] for row in plan})
    summary = self.summarise(config, study_lib.read(workdir))
    study_lib.write_summary(workdir, summary)
    return study_lib.Outcome(summary.summary_line, total=len(plan))

  def _train(
    self, config: Config, workdir: pathlib.Path, cost: Mapping[str, float]
  ) -> None:
    """Trains the groups without a result."""
    compilation.prepare()
    with (
      storage.lock(workdir) as locked,
      progress.stop_signals() as stopping,
      sweep.flops_bar('toys', sum(cost.values())) as bar,
    ):
      if not locked:
        raise errors.UserError(
          f'--workdir={workdir}: another process is training there'
        )
      for name, whole in cost.items():
        path = _file(workdir, name)
        if path.exists():
          bar.total -= whole / 1e9
          continue
        bar.set_postfix_str(name)

        def on_share(share: float, whole: float = whole) -> None:
          bar.update(min(share * whole / 1e9, bar.total - bar.n))

        part = path.with_suffix('.part.npz')
        found = train(config, name, part, on_share, stopping)
        if found is None:
          raise errors.Interrupted(
            f'{workdir}: stopped within {name}; everything is saved, and the '
            'same command goes on from there'
          )
        result, students = found
        named = _named(
          config.studies[name].depths, students, _first(config, name)
        )
        arrays_lib.save(path.with_suffix('.npz'), named)
        storage.write_json(path, result)
        part.unlink(missing_ok=True)

  def summarise(
    self,
    config: Config,
    results: study_lib.Results,
    notes: Iterable[str] = (),
  ) -> study_lib.Summary[Tables]:
    """Returns the summary of a study's folder, with the time of compilation."""
    summary = super().summarise(config, results, notes)
    compiled = sum(row['compile'] for row in _seconds(config, results))
    machine = {**summary.machine, 'compile_seconds': f'{compiled:.1f}'}
    return dataclasses.replace(summary, machine=machine)

  def cost(
    self, config: Config, results: study_lib.Results, tables: Tables
  ) -> study_lib.Cost:
    """Returns the cost of all groups."""
    seconds = _seconds(config, results)
    return study_lib.Cost(
      flops=sum(flops(config, name) for name in config.studies),
      seconds=sum(row['compile'] + row['train'] for row in seconds),
      finished=len(seconds),
      diverged=0,
      missing=0,
    )

  def flags(
    self, results: study_lib.Results, tables: Tables, cost: study_lib.Cost
  ) -> Iterator[str]:
    """Yields the curves that are no power laws."""
    for curve in tables.curves:
      if curve.bent:
        yield f'{curve.study}, {curve.teacher}: not a power law of depth'
    lost = {
      curve.study: None
      for curve in tables.curves
      if not curve.one_layer
      and not _students(results.folder, curve.study).exists()
    }
    if lost:
      yield f'students were not kept, and have no regime: {text.some([*lost])}'

  def analyse(
    self, config: Config, results: study_lib.Results
  ) -> tuple[str, Tables]:
    """Returns exponents of depth, pairs of groups, and regimes of the states."""
    found = _Found()
    for name, group in config.studies.items():
      path = _file(results.folder, name)
      found.add(name, group, storage.read_own(path))
      if not group.one_layer and _students(results.folder, name).exists():
        for member, by_depth in trained(config, results.folder, name):
          found.classify(name, member, by_depth, group.stages, config.seed)
    tables = found.tables()
    exponents = '; '.join(
      f'{curve.study}, {curve.teacher}'
      + (f', T = {curve.temperature:g}' if curve.temperature else '')
      + f': {curve.exponent}'
      for curve in tables.curves
    )
    return f'exponent of depth, 95 % over teachers: {exponents}', tables


def _seconds(
  config: Config, results: study_lib.Results
) -> list[dict[str, float]]:
  """Returns the times of each group's compilation and training."""
  return [
    storage.read_own(_file(results.folder, name))['seconds']
    for name in config.studies
  ]


def _plan_text(config: Config, plan: Sequence[Mapping[str, Any]]) -> str:
  rows = [
    (
      row['study'],
      ', '.join(map(str, config.studies[row['study']].depths)),
      str(row['students']),
      str(config.studies[row['study']].steps),
      f'{row["flops"]:.2g}',
    )
    for row in plan
  ]
  head = ('study', 'depths', 'students', 'steps', 'FLOPs')
  total = sum(row['flops'] for row in plan)
  return f'{text.table(head, rows)}\n{total:.3g} FLOPs in all'


@dataclasses.dataclass
class _Found:
  """Rows of the tables as groups are added."""

  curves: list[Curve] = dataclasses.field(default_factory=list)
  final: list[np.ndarray] = dataclasses.field(default_factory=list)
  evolution: list[Exponent] = dataclasses.field(default_factory=list)
  losses: list[Loss] = dataclasses.field(default_factory=list)
  by_teacher: list[ByTeacher] = dataclasses.field(default_factory=list)
  regimes: list[Regime] = dataclasses.field(default_factory=list)
  evidence: list[Evidence] = dataclasses.field(default_factory=list)

  def tables(self) -> Tables:
    """Returns the tables, with the pairs of groups."""
    pairs = tuple(self._pairs())
    names = {field.name for field in dataclasses.fields(Tables)} - {'pairs'}
    return Tables(
      pairs=pairs, **{name: tuple(getattr(self, name)) for name in names}
    )

  def add(self, name: str, group: Group, result: Mapping[str, Any]) -> None:
    """Adds the curves of a group, one for each kind of teacher and temperature."""
    order = np.argsort(group.depths)
    depths = tuple(group.depths[i] for i in order)
    losses_CxLxM, errors_CxLxM = (
      np.array(result[key], np.float64)[:, order] for key in ('loss', 'error')
    )
    for kind in group.teachers:
      for temperature in group.temperatures or (None,):
        of = (name, kind, temperature)
        chosen = [
          i
          for i, member in enumerate(result['members'])
          if (member['teacher'], member['temperature']) == of[1:]
        ]
        loss_CxTxL = losses_CxLxM[..., chosen].transpose(0, 2, 1)
        error_TxL = errors_CxLxM[-1][:, chosen].T
        quantities, share = exponents(depths, loss_CxTxL[-1])
        known = {
          q: self._mean(of, q, values) for q, values in quantities.items()
        }
        self.final.append(loss_CxTxL[-1])
        self.curves.append(
          study_lib.record_of(
            Curve,
            group,
            study=name,
            teacher=kind,
            temperature=temperature,
            depths=depths,
            **known,
            floor_share=share,
            averaging=averaging(depths, group.teacher_depth),
            bent=_bent(known['curvature'], known['deep']),
          )
        )
        for steps, loss_TxL in zip(result['steps'], loss_CxTxL, strict=True):
          values, _ = exponents(depths, loss_TxL)
          mean = self._mean(of, f'exponent after {steps}', values['exponent'])
          self.evolution.append(Exponent(*of, steps, mean))
          last = steps == result['steps'][-1]
          self.losses += [
            Loss(
              *of,
              number,
              depth,
              steps,
              fit_record.plain(loss_TxL[number, place]),
              fit_record.plain(error_TxL[number, place]) if last else None,
            )
            for number in range(len(loss_TxL))
            for place, depth in enumerate(depths)
          ]

  def _mean(
    self,
    of: tuple[str, str, float | None],
    quantity: str,
    values: Sequence[float] | np.ndarray,
  ) -> Estimate | None:
    """Keeps each teacher's value; returns their mean, None if there is none."""
    self.by_teacher += [
      ByTeacher(*of, quantity, number, fit_record.plain(value))
      for number, value in enumerate(values)
    ]
    known = [float(value) for value in values if math.isfinite(value)]
    return Estimate.of(known) if known else None

  def classify(
    self,
    name: str,
    member: Member,
    by_depth: Mapping[int, toys.Params],
    stages: int,
    seed: int,
  ) -> None:
    """Adds the regime of one teacher's students: of all depths, and the deepest.

    The exponent of the loss is left out of the evidence, so that the two can be
    compared. Nothing is added where all depths are below `middle.LEAST_DEPTH`.
    """
    depths = sorted(by_depth)
    if depths[-1] < middle.LEAST_DEPTH:
      return
    width = by_depth[depths[0]]['in'].shape[1]
    x_BxD = jax.random.normal(jax.random.key(seed), (_INPUTS, width))
    every = [
      trajectories.of_states(toys.states(by_depth[depth], x_BxD, stages))
      for depth in depths
    ]
    of = {'study': name, **member._asdict()}
    for networks in (every, every[-1:]):
      answer = regimes_lib.classify(networks)
      self.regimes.append(study_lib.record_of(Regime, answer, **of))
      self.evidence += [
        study_lib.record_of(Evidence, each, **of, deepest=len(networks))
        for each in answer.evidence
      ]

  def _pairs(self) -> Iterator[Pair]:
    """Yields layers of two stages beside those of one, and layers beside a single
    one with as many units, of the same teachers, heads and steps."""
    same = ('teacher', 'temperature', 'head', 'teacher_depth', 'steps')
    every = list(zip(self.curves, self.final, strict=True))
    for (this, losses), (base, base_losses) in itertools.permutations(every, 2):
      if any(getattr(this, key) != getattr(base, key) for key in same):
        continue
      kinds = [(c.stages, c.one_layer) for c in (this, base)]
      if kinds == [(2, False), (1, False)]:
        yield self._pair(this, losses, base, base_losses, 'cost', 2)
        yield self._pair(this, losses, base, base_losses, 'depth', 1)
      elif kinds == [(1, False), (1, True)]:
        yield self._pair(this, losses, base, base_losses, 'units', 1)

  def _pair(
    self,
    this: Curve,
    losses: np.ndarray,
    base: Curve,
    base_losses: np.ndarray,
    equal: str,
    cost: int,
  ) -> Pair:
    """Returns two curves over the depths that both have.

    `cost` layers of the base count as one.
    """
    depths = tuple(d for d in this.depths if cost * d in base.depths)
    logs_TxL = [
      np.log(table[:, np.isin(curve.depths, np.multiply(layers, depths))])
      for curve, table, layers in (
        (this, losses, 1),
        (base, base_losses, cost),
      )
    ]
    slopes = [
      np.array([_slope(np.log(depths), log_L) for log_L in log_TxL])
      for log_TxL in logs_TxL
    ]
    of = (this.study, this.teacher, this.temperature)
    between = f'of {this.study} and {base.study} at equal {equal}'
    quantities = {
      'exponent': slopes[0],
      'base_exponent': slopes[1],
      'difference': slopes[0] - slopes[1],
      'log_ratio': (logs_TxL[0] - logs_TxL[1]).mean(axis=1),
    }
    means: dict[str, Any] = {
      name: self._mean(of, f'{name.replace("_", " ")} {between}', values)
      for name, values in quantities.items()
    }
    return Pair(*of, base.study, equal, depths, **means)


def exponents(
  depths: Sequence[int], loss_TxL: np.ndarray
) -> tuple[dict[str, list[float]], float | None]:
  """Returns each teacher's exponents, and the mean share of the floor.

  Args:
    depths: of the students [L].
    loss_TxL: test losses of each teacher's students; NaN where there is none.

  Returns:
    `exponent`, `shallow`, `deep`, `curvature` and `floor`; see `Curve`.
  """
  x = np.log(depths)
  half = (len(x) + 1) // 2
  with np.errstate(invalid='ignore', divide='ignore'):
    y_TxL = np.log(loss_TxL)
  known = [np.isfinite(y) for y in y_TxL]
  floors = np.array(
    [_with_floor(x[k], y[k]) for k, y in zip(known, y_TxL, strict=True)]
  )
  return {
    'exponent': [_slope(x, y) for y in y_TxL],
    'shallow': [_slope(x[:half], y[:half]) for y in y_TxL],
    'deep': [_slope(x[-half:], y[-half:]) for y in y_TxL],
    'curvature': [
      float(2 * np.polyfit(x[k], y[k], 2)[0]) if k.sum() > 2 else math.nan
      for k, y in zip(known, y_TxL, strict=True)
    ],
    'floor': floors[:, 0].tolist(),
  }, fit_record.plain(np.mean(floors[:, 1]))


def averaging(depths: Sequence[int], teacher_depth: int) -> float | None:
  """Returns the exponent of what averaging leaves: 1 / l - 1 / n.

  A student of l layers, each of which replaces n / l independent layers of the
  teacher, keeps none of their scatter at l = n, so over depths near n the
  exponent is above 1. None where depths reach n.
  """
  if max(depths) >= teacher_depth:
    return None
  left = [1 / depth - 1 / teacher_depth for depth in depths]
  return float(-np.polyfit(np.log(depths), np.log(left), 1)[0])


def _bent(curvature: Estimate | None, deep: Estimate | None) -> bool:
  bends = (
    curvature is not None
    and curvature.sign != 'n.s.'
    and abs(curvature.value) > 1.0
  )
  return bends or (deep is not None and deep.value < 0)


def _with_floor(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
  """Returns a of c / l^a + L0 and L0 over the least loss.

  For each share a line is fitted to the log of what lies above the floor, weighted
  so that to first order log losses are fitted; the share of least error wins.
  """
  if len(x) < 4:
    return math.nan, math.nan
  loss, best = np.exp(y), (math.inf, math.nan, math.nan)
  for share in _FLOOR_SHARES:
    floor = share * loss.min()
    above = loss - floor
    slope, level = np.polyfit(x, np.log(above), 1, w=above / loss)
    wrong = np.sum((y - np.log(np.exp(level + slope * x) + floor)) ** 2)
    if wrong < best[0]:
      best = (float(wrong), float(-slope), float(share))
  return best[1:]


def _slope(x: np.ndarray, y: np.ndarray) -> float:
  """Returns minus the slope of a line through the finite points."""
  some = np.isfinite(y)
  if some.sum() < 2:
    return math.nan
  return float(-np.polyfit(x[some], y[some], 1)[0])


TOYS = DepthToys()

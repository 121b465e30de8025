"""What the toys of the depth law ask for: teachers, students, their training."""

import dataclasses
import math
from typing import Any

from familial.core import errors

KINDS = ('independent', 'tied')
HEADS = ('none', 'shared', 'learned')


@dataclasses.dataclass(frozen=True)
class Study:
  """One kind of students, at several depths.

  Attributes:
    depths: of the students.
    teacher_depth: of the teachers.
    teachers: kinds: layers of their own (`independent`) or one copy (`tied`).
    head: `none` (mean squared error of the last state), or KL divergence with the
      teacher's head (`shared`) or the student's own (`learned`).
    temperatures: of the heads; () without one.
    stages: of a student's layer: 1 (Euler's step) or 2 (the midpoint rule).
    one_layer: whether a student of l layers is one of a single layer instead, with
      l times the hidden units: the control of what depth itself does.
    rate: Adam's.
    rate_depth: with a depth l here, a student of depth l has rate * sqrt(this /
      l); 0 for one rate at all depths.
    decay: share of the steps, the last ones, over which the rate falls linearly;
      0 for a constant one.
    decay_to: what is left of it in the end.
    steps: of a training.
  """

  depths: tuple[int, ...]
  teacher_depth: int
  steps: int
  rate: float
  rate_depth: int = 0
  decay: float = 0.2
  decay_to: float = 0.1
  teachers: tuple[str, ...] = KINDS
  head: str = 'none'
  temperatures: tuple[float, ...] = ()
  stages: int = 1
  one_layer: bool = False


@dataclasses.dataclass(frozen=True)
class ToysConfig:
  """Studies of toy networks.

  Attributes:
    title: heads the report.
    studies: by name.
    width: D.
    hidden: F, of each layer's MLP.
    vocab: V, of the heads.
    gain: of the teachers' outer weights: see `toys.teacher`.
    batch: inputs of a step.
    test_batches: of the test, the same ones every time.
    test_batch: inputs of each.
    replicates: teachers of each kind, each with a student, inputs and a test of
      its own.
    checkpoints: tests of a training, evenly spaced in the log of its steps.
    seed: of everything drawn.
  """

  title: str
  studies: dict[str, Study]
  width: int = 32
  hidden: int = 128
  vocab: int = 128
  gain: float = 1.0
  batch: int = 1024
  test_batches: int = 10
  test_batch: int = 1024
  replicates: int = 3
  checkpoints: int = 8
  seed: int = 0

  def __post_init__(self) -> None:
    if not self.studies:
      raise errors.UserError('studies: is empty; it needs at least one')
    for key in (
      'width', 'hidden', 'vocab', 'batch', 'test_batches', 'test_batch',
      'replicates', 'checkpoints',
    ):  # fmt: skip
      _least(key, getattr(self, key), 1)
    _least('seed', self.seed, 0)
    if not 0 < self.gain < math.inf:
      raise errors.UserError(f'gain: {self.gain} must be positive')
    for name, study in self.studies.items():
      _check(f'studies.{name}', study)


def _check(where: str, study: Study) -> None:
  for key in ('teacher_depth', 'steps'):
    _least(f'{where}.{key}', getattr(study, key), 1)
  _least(f'{where}.rate_depth', study.rate_depth, 0)
  if not 0 < study.rate < math.inf:
    raise errors.UserError(f'{where}.rate: {study.rate} must be positive')
  for key in ('decay', 'decay_to'):
    if not 0 <= getattr(study, key) <= 1:
      raise errors.UserError(
        f'{where}.{key}: {getattr(study, key)} must be within 0 to 1'
      )
  if len(set(study.depths)) < 3 or min(study.depths) < 1:
    raise errors.UserError(
      f'{where}.depths: {study.depths} must be three depths or more, each at '
      'least 1'
    )
  if study.stages not in (1, 2):
    raise errors.UserError(f'{where}.stages: {study.stages} is not 1 or 2')
  _among(f'{where}.head', study.head, HEADS)
  if not study.teachers:
    raise errors.UserError(f'{where}.teachers: is empty; it needs at least one')
  for kind in study.teachers:
    _among(f'{where}.teachers', kind, KINDS)
  if bool(study.temperatures) != (study.head != 'none'):
    raise errors.UserError(
      f'{where}.temperatures: {study.temperatures} with head={study.head!r}; a '
      'head needs at least one, and none has any without'
    )
  for temperature in study.temperatures:
    if not 0 < temperature < math.inf:
      raise errors.UserError(
        f'{where}.temperatures: {temperature} must be positive'
      )


def _least(key: str, value: int, least: int) -> None:
  if value < least:
    raise errors.UserError(f'{key}: {value} must be at least {least}')


def _among(key: str, value: Any, allowed: tuple[str, ...]) -> None:
  if value not in allowed:
    raise errors.UserError(
      f'{key}: {value!r} is not one of {", ".join(allowed)}'
      f'{errors.nearest(value, allowed)}'
    )

"""The students of a study of toys and their teachers: how many, and from what keys."""

from collections.abc import Sequence
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from familial.analysis import toys
from familial.studies import depth_toys_config as config_lib


class Member(NamedTuple):
  """A student of each depth of a study: its teacher and its temperature."""

  teacher: str
  number: int
  temperature: float | None


def members(asked: config_lib.ToysConfig, name: str) -> list[Member]:
  """Returns the students of each depth of a study, in their order."""
  study = asked.studies[name]
  return [
    Member(kind, number, temperature)
    for kind in study.teachers
    for number in range(asked.replicates)
    for temperature in study.temperatures or (None,)
  ]


def flops(asked: config_lib.ToysConfig, name: str) -> float:
  """Returns a study's FLOPs in training: students' steps and teachers' passes."""
  study = asked.studies[name]
  layer = 4 * asked.width * asked.hidden
  head = 2 * asked.width * asked.vocab * (study.head != 'none')
  count = len(members(asked, name))
  students = (
    3
    * count
    * sum(layer * depth * study.stages + head for depth in study.depths)
  )
  teachers = layer * study.teacher_depth
  teachers *= asked.replicates * len(study.teachers)
  return float(study.steps) * asked.batch * (students + teachers + count * head)


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


def assigned(known: toys.Teachers, every: Sequence[Member]) -> toys.Members:
  """Returns each student's teacher and temperature; both come in one order."""
  each = len(every) // len(known.head)
  return toys.Members(
    jnp.repeat(jnp.arange(len(known.head)), each),
    jnp.array([m.temperature or 1.0 for m in every], jnp.float32),
  )


def students(
  asked: config_lib.ToysConfig, name: str, depth: int
) -> toys.Params:
  """Returns untrained students [M, ...]; those of one teacher start alike."""
  study = asked.studies[name]
  shape = task(asked, name).shape
  if study.one_layer:
    shape, depth = shape._replace(hidden=depth * shape.hidden), 1
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


def _key(
  asked: config_lib.ToysConfig, kind: str, number: int, use: int
) -> jax.Array:
  """Returns the key of a teacher (use 0) or of its students (1)."""
  key = jax.random.key(asked.seed)
  for part in (config_lib.KINDS.index(kind), number, use):
    key = jax.random.fold_in(key, part)
  return key

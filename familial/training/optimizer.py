"""AdamW with one base rate for every width, and its schedule.

With D the width and D0 `base_width`, matrices inside the layers are initialised
with variance 1 / fan-in and take the rate base_lr x D0 / D (their fan-ins grow
with D); embeddings, unembeddings and gains take base_lr; logits are scaled by
D0 / D. An update then changes activations equally at every width (the rates of
muP, arXiv 2203.03466, table 8). `rate_width` replaces D in the rates alone, for
comparisons. Decay is decoupled from the rate: each matrix shrinks by base_lr x
schedule x weight_decay per step. Gains are never decayed.

Every number is an argument of the compiled step, not a constant in it, so that
runs of one shape share one program.
"""

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from familial.model import config as model_config
from familial.training import config as train_config

Array = jax.Array
PyTree = Any
_SCHEDULES = {name: i for i, name in enumerate(train_config.SCHEDULES)}


class Hyper(NamedTuple):
  """The settings of a run that its compiled step takes as arguments."""

  steps: Any
  schedule: Any
  warmup_steps: Any
  decay_fraction: Any
  final_lr: Any
  base_lr: Any
  rate_width: Any
  beta1: Any
  beta2: Any
  eps: Any
  weight_decay: Any
  clip: Any
  exit_weights_G: Any
  exit_weights_end_G: Any


def hyper(config: train_config.TrainConfig, exits: tuple[int, ...]) -> Hyper:
  """Returns a run's step arguments as float32 arrays (int32 for steps)."""
  f32, i32 = np.float32, np.int32
  return Hyper(
    steps=i32(config.steps),
    schedule=i32(_SCHEDULES[config.schedule]),
    warmup_steps=i32(config.warmup_steps),
    decay_fraction=f32(config.decay_fraction),
    final_lr=f32(config.final_lr),
    base_lr=f32(config.base_lr),
    rate_width=f32(config.rate_width),
    beta1=f32(config.beta1),
    beta2=f32(config.beta2),
    eps=f32(config.eps),
    weight_decay=f32(config.weight_decay),
    clip=f32(config.clip or np.inf),
    exit_weights_G=np.array(config.exit_weights(exits), f32),
    exit_weights_end_G=np.array(config.exit_weights(exits, end=True), f32),
  )


def schedule(step: Any, h: Hyper, xp: Any = jnp) -> Any:
  """Returns the rate of step 0, 1, ... as a share of its maximum.

  Warm-up reaches 1 at step `warmup_steps`; both decays reach `final_lr` at
  `steps`, one step after the last.

  Args:
    step: number of the step.
    h: arguments of the run's step.
    xp: `jax.numpy`, or `numpy` on the host.
  """
  step = xp.float32(step)
  warm = xp.minimum(1.0, (step + 1) / (h.warmup_steps + 1))
  length = xp.maximum(h.steps - h.warmup_steps, 1)
  progress = xp.clip((step - h.warmup_steps) / length, 0.0, 1.0)
  cosine = 0.5 * (1 + xp.cos(xp.pi * progress))
  left = xp.clip((h.steps - step) / (h.decay_fraction * h.steps), 0.0, 1.0)
  decay = xp.stack([xp.ones_like(cosine), cosine, left])[h.schedule]
  return warm * (h.final_lr + (1 - h.final_lr) * decay)


def same_steps(
  was: train_config.TrainConfig,
  now: train_config.TrainConfig,
  exits: tuple[int, ...],
  count: int,
) -> bool:
  """Whether the first steps of two runs have equal rates and exit weights.

  Args:
    was: a run, of which the other differs in `train_config.LATER` alone.
    now: the other run.
    exits: the layer of each exit.
    count: number of steps.
  """
  steps = np.arange(count, dtype=np.float32)
  found = []
  for config in (was, now):
    h = hyper(config, exits)
    weights_TxG = exit_weights(steps[:, None], h, np)
    found.append((schedule(steps, h, np), weights_TxG))
  return count <= now.steps and all(
    np.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(*found, strict=True)
  )


def adamw(
  h: Hyper, model: model_config.ModelConfig
) -> optax.GradientTransformation:
  """Returns AdamW with clipping, rates by width and a mask for the decay."""
  width = jnp.where(h.rate_width > 0, h.rate_width, model.width)
  return optax.chain(
    optax.clip_by_global_norm(h.clip),
    optax.scale_by_adam(b1=h.beta1, b2=h.beta2, eps=h.eps),
    _scale_by_width(model.base_width / width),
    optax.add_decayed_weights(h.weight_decay, mask=_is_decayed),
    optax.scale_by_schedule(lambda step: -h.base_lr * schedule(step, h)),
  )


def exit_weights(step: Any, h: Hyper, xp: Any = jnp) -> Any:
  """Returns the weights [G] of the exits' losses at a step."""
  progress = xp.float32(step) / h.steps
  return (1 - progress) * h.exit_weights_G + progress * h.exit_weights_end_G


def _scale_by_width(factor: Array) -> optax.GradientTransformation:
  """Scales the updates of the matrices inside layers."""

  def scale(path: tuple[Any, ...], update: Array) -> Array:
    return update * factor if _name(path) == 'kernel' else update

  return optax.stateless(
    lambda updates, params: jax.tree.map_with_path(scale, updates)
  )


def _is_decayed(params: PyTree) -> PyTree:
  return jax.tree.map_with_path(lambda path, _: _name(path) != 'gain', params)


def _name(path: tuple[Any, ...]) -> str:
  return str(path[-1].key)

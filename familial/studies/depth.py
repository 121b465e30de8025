"""The study of width and depth: a full grid of shapes, and the law of its loss."""

from collections.abc import Iterator
import dataclasses
import functools
import os
from typing import Any

from familial.core import errors
from familial.model import config as model_config
from familial.studies import cells as cells_lib
from familial.studies import depth_config
from familial.studies import depth_summary
from familial.studies import plan as plan_lib
from familial.studies import running
from familial.training import config as train_config

Cells = running.Cells
DepthConfig = depth_config.DepthConfig


def run(study: DepthConfig, workdir: str | os.PathLike[str], **how: Any) -> str:
  """Runs a study to its page, or goes on with one: see `running.run`."""
  kind = running.Kind(
    build=build,
    plan=functools.partial(plan_lib.make, 'depth'),
    text=plan_lib.text,
    affordable=lambda study, cells, speed, workers: cells,
    summarise=depth_summary.write,
    free=('fit', 'first_tokens', 'cutoffs', 'layout'),
  )
  return running.run(kind, study, workdir, **how)


def build(study: DepthConfig) -> Cells:
  """Returns the runs: the grid, then its corners with other seeds and rates."""
  return list(_all(study))


def _all(study: DepthConfig) -> Iterator[train_config.RunConfig]:
  for width in study.widths:
    for depth in study.depths:
      yield cell(study, 'grid', width, depth)
  for width in (min(study.widths), max(study.widths)):
    for depth in (min(study.depths), max(study.depths)):
      for seed in study.seeds[1:]:
        yield cell(study, 'seed', width, depth, f'_seed{seed}', seed=seed)
      for rate in study.rates:
        yield cell(study, 'rate', width, depth, f'_lr{rate:g}', base_lr=rate)


def cell(
  study: Any,
  arm: str,
  width: int,
  depth: int,
  suffix: str = '',
  exits: int = 1,
  **changes: Any,
) -> train_config.RunConfig:
  """Returns a run of so many tokens.

  Args:
    study: that has `tokens`, `head_width`, `seeds` and `warmup`.
    arm: of the run.
    width: of the model.
    depth: likewise.
    suffix: of the run's name.
    exits: G, evenly spaced.
    **changes: of its TrainConfig.
  """
  name = f'w{width}_d{depth}{suffix}'
  try:
    if 'batch_size' not in study.train:
      raise errors.UserError('train.batch_size: is missing')
    model = cells_lib.model(
      study,
      (width, depth, width // study.head_width),
      model_config.even_exits(depth, exits),
    )
    batch_tokens = study.train['batch_size'] * study.data.seq_len
    steps = round(study.tokens / batch_tokens)
    if steps < 1:
      raise errors.UserError(
        f'tokens: {study.tokens} are below one step, {batch_tokens}'
      )
    made = train_config.RunConfig(
      cell=name,
      arm=arm,
      budget=0.0,
      model=model,
      data=study.data,
      train=cells_lib.make(
        train_config.TrainConfig,
        'train',
        depth_config.RUN_KEYS,
        {
          'seed': study.seeds[0],
          **study.train,
          **changes,
          'steps': steps,
          'warmup_steps': round(study.warmup * steps),
        },
        study.train,
      ),
      layout=study.layout,
    )
    return dataclasses.replace(made, budget=cells_lib.cost(made))
  except errors.UserError as error:
    raise errors.UserError(f'cell {name}: {error}') from None

"""The study of what layers do in models with exits and without."""

from collections.abc import Iterator
import functools
import os
from typing import Any

from familial.studies import depth
from familial.studies import depth_regimes_config
from familial.studies import depth_regimes_summary
from familial.studies import plan as plan_lib
from familial.studies import running
from familial.training import config as train_config

Cells = running.Cells
RegimesConfig = depth_regimes_config.RegimesConfig


def run(
  study: RegimesConfig, workdir: str | os.PathLike[str], **how: Any
) -> str:
  """Runs a study to its page, or goes on with one: see `running.run`."""
  kind = running.Kind(
    build=build,
    plan=functools.partial(plan_lib.make, 'depth_regimes'),
    text=plan_lib.text,
    affordable=lambda study, cells, speed, workers: cells,
    summarise=depth_regimes_summary.write,
    free=('layout',),
  )
  return running.run(kind, study, workdir, **how)


def build(study: RegimesConfig) -> Cells:
  """Returns the runs, those of a shape together."""
  return list(_all(study))


def _all(study: RegimesConfig) -> Iterator[train_config.RunConfig]:
  for layers in study.depths:
    for exits in study.granularities:
      for seed in study.seeds:
        yield depth.cell(
          study,
          'exits' if exits > 1 else 'dense',
          study.width,
          layers,
          f'_g{exits}_seed{seed}',
          exits,
          seed=seed,
        )

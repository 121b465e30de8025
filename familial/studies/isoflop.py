"""The IsoFLOP study of familial models: its cells, their plan, their law."""

from collections.abc import Iterator
import dataclasses
import math
import os
from typing import Any

from familial.laws import forms
from familial.laws import power_analysis
from familial.model import flops as flops_lib
from familial.studies import cells as cells_lib
from familial.studies import config as study_config
from familial.studies import plan as plan_lib
from familial.studies import running
from familial.studies import summary

Cells = running.Cells


def run(
  study: study_config.StudyConfig, workdir: str | os.PathLike[str], **how: Any
) -> str:
  """Runs a study to its page, or goes on with one: see `running.run`."""
  kind = running.Kind(
    build=cells_lib.build,
    plan=plan,
    text=text,
    affordable=_affordable,
    summarise=summary.write,
    free=('fit', 'layout'),
  )
  return running.run(kind, study, workdir, **how)


def plan(
  study: study_config.StudyConfig,
  cells: Cells,
  corpus: Any,
  speed: plan_lib.Speed,
  workers: int,
) -> dict[str, Any]:
  """Returns the plan with the interval that gamma would get."""
  made = plan_lib.make('isoflop', study, cells, corpus, speed, workers)
  return {**made, 'power': _power(study, cells)}


def text(made: dict[str, Any]) -> str:
  """Returns a plan as a person reads it."""
  return plan_lib.text(made, list(_hopes(made['power'])))


def _hopes(power: dict[str, Any] | None) -> Iterator[str]:
  if power:
    width = power['gamma_half_width']
    half_width = 'anything' if width is None else f'{width:.4f}'
    yield (
      f'gamma, if it is {power["law"]["gamma"]:g} and runs scatter by '
      f'{power["noise"]:.1%} about the law: +- {half_width} '
      f'(95 %), apart from 0 in {power["share_excluding_zero"]:.0%} of '
      'simulated studies'
    )


def _affordable(
  study: study_config.StudyConfig,
  cells: Cells,
  speed: plan_lib.Speed,
  workers: int,
) -> Cells:
  seconds = study.grid.seconds
  return plan_lib.within(seconds, cells, speed, workers) if seconds else cells


def _power(
  study: study_config.StudyConfig, cells: Cells
) -> dict[str, Any] | None:
  """Returns the interval that gamma would get, or None without two Gs."""
  planned = [cell for cell in cells if cell.arm in ('grid', 'seed')]
  if len({cell.model.granularity for cell in planned}) < 2:
    return None
  law = dataclasses.asdict(study.assumed)
  noise = law.pop('noise')
  found = power_analysis.simulate(
    forms.get('familial_total'),
    {
      'N': [flops_lib.params_full(cell.model) for cell in planned],
      'D': [
        cell.train.steps * cell.train.batch_size * cell.data.seq_len
        for cell in planned
      ],
      'G': [cell.model.granularity for cell in planned],
    },
    [cell.cell for cell in planned],
    law,
    noise,
    delta=study.fit.delta,
  )
  wide = not math.isfinite(found.half_width)
  return {
    'gamma_half_width': None if wide else found.half_width,
    'share_excluding_zero': found.share_excluding_zero,
    'noise': noise,
    'law': law,
    'runs': found.runs,
    'simulations': found.simulations,
  }

"""The page of `familial plan`."""

from collections.abc import Mapping
import pathlib
from typing import Any

from familial.planning import summary
from familial.plots import planning
from familial.report import render


def write(folder: pathlib.Path, plan: Mapping[str, Any]) -> pathlib.Path:
  """Writes `index.html` with its figure; returns its path.

  Args:
    folder: of the plan.
    plan: as `pod.make` returns it.
  """
  layouts = [summary.layout_row(row) for row in plan['layouts']]
  runs = [summary.run_row(row) for row in plan['cells']]
  return render.write(
    folder,
    'plan',
    figures='',
    title=f'{plan["title"]}: plan for {plan["topology"]}',
    plan=plan,
    chip=summary.chip(plan),
    headline=summary.headline(plan),
    growth=list(summary.growth(plan)),
    measured=summary.measured(plan),
    chart=planning.limits(plan),
    layouts=layouts,
    layout_columns={name: name for name in layouts[0]},
    runs=runs,
    run_columns={name: name for name in runs[0]},
  )

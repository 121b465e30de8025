"""The study of families: the same sizes by exits, by growth and one by one."""

from collections.abc import Iterator
import os
from typing import Any

from familial.expansion import ledger
from familial.studies import families_cells
from familial.studies import families_config
from familial.studies import families_summary
from familial.studies import plan as plan_lib
from familial.studies import running

Cells = running.Cells


def run(
  study: families_config.FamiliesConfig,
  workdir: str | os.PathLike[str],
  **how: Any,
) -> str:
  """Runs a study to its page, or goes on with one: see `running.run`."""
  kind = running.Kind(
    build=families_cells.build,
    plan=plan,
    text=text,
    affordable=lambda study, cells, speed, workers: cells,
    summarise=families_summary.write,
    free=('layout',),
  )
  return running.run(kind, study, workdir, **how)


def plan(
  study: families_config.FamiliesConfig,
  cells: Cells,
  corpus: Any,
  speed: plan_lib.Speed,
  workers: int,
) -> dict[str, Any]:
  """Returns the plan with the ledger of every family."""
  made = plan_lib.make('families', study, cells, corpus, speed, workers)
  return {**made, 'equal': study.equal, 'ledger': list(ledger_rows(study))}


def text(made: dict[str, Any]) -> str:
  """Returns a plan as a person reads it, its ledger last."""
  return plan_lib.text(made, list(_lines(made['ledger'])))


def ledger_rows(
  study: families_config.FamiliesConfig,
) -> Iterator[dict[str, Any]]:
  """Yields each family's stages; seeds cost the same."""
  for place, family in families_cells.families(study).items():
    if place.seed != study.seeds[0]:
      continue
    grown = study.ways[place.way].kind == 'chain'
    yield {
      'way': place.way,
      'kind': study.ways[place.way].kind,
      'budget': place.budget,
      'flops': sum(stage.flops for stage in family.stages),
      'saving': ledger.saving(family.stages) if grown else None,
      'stages': [
        {
          'cell': run.cell,
          'width': stage.model.width,
          'depth': stage.model.depth,
          'exits': list(stage.model.exits),
          'budget': stage.budget,
          'steps': stage.steps,
          'tokens': stage.tokens,
          'flops': stage.flops,
          'total': stage.total,
        }
        for run, stage in zip(family.runs, family.stages, strict=True)
      ],
    }


def _lines(rows: list[dict[str, Any]]) -> Iterator[str]:
  yield ''
  yield (
    f'{"way":<18}{"C":>9}{"size":>6}{"tokens":>10}{"steps":>7}{"FLOPs":>10}'
    f'{"in all":>10}{"budget":>10}{"off by":>9}'
  )
  for row in rows:
    for number, stage in enumerate(row['stages'], start=1):
      yield (
        f'{row["way"]:<18}{row["budget"]:>9.2g}{number:>6}{stage["tokens"]:>10}'
        f'{stage["steps"]:>7}{stage["flops"]:>10.3g}{stage["total"]:>10.3g}'
        f'{stage["budget"]:>10.3g}{ledger.steps_off(stage):>+6.2f} st'
      )
    saved = row['saving']
    least = '' if saved is None else f', {saved:.1%} less than its sizes alone'
    yield f'{row["way"]}: {row["flops"]:.3g} FLOPs in all{least}'

"""The page of `familial evaluate`."""

import dataclasses
import pathlib

from familial.plots import evaluation as plots
from familial.report import render
from familial.serving import benchmark
from familial.serving import evaluate


def write(
  evaluation: evaluate.Evaluation,
  decoding: benchmark.Decoding | None,
  folder: pathlib.Path,
) -> pathlib.Path:
  """Writes `index.html` and the figures beside `evaluation.json`.

  Args:
    evaluation: of the exits.
    decoding: speed of each mode of generating; None if it was not measured.
    folder: of the result.
  """
  chosen = {**evaluation.chosen}
  if evaluation.oracle:
    chosen['oracle'] = evaluation.oracle
  return render.write(
    folder,
    'evaluation',
    figures='',
    title=f'{evaluation.run} at step {evaluation.step}',
    evaluation=evaluation,
    decoding=decoding,
    chosen=[
      {'confidence': name, **dataclasses.asdict(outcome)}
      for name, outcome in chosen.items()
    ],
    plots=plots,
    links=sorted(path.name for path in folder.glob('*.json')),
  )

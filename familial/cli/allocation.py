"""`familial allocate`."""

from __future__ import annotations

import dataclasses
from typing import Annotated
from typing import Any

from etils import epy

from familial.cli import command
from familial.cli import output_folder
from familial.cli import studies
from familial.cli.command import REPEATED
from familial.cli.command import Command
from familial.cli.command import ConfigFile
from familial.cli.command import Folder
from familial.cli.command import Repeated
from familial.core import errors
from familial.core import schema

# Imported when a command runs, not when its flags are read.
with epy.lazy_imports():
  from familial.allocation import comparison
  from familial.allocation import config as config_lib
  from familial.allocation import curves
  from familial.report import replay_page
  from familial.studies import registry
  from familial.training import compilation

# Flags that --config takes too; the others are of a --table, and in a config
# they are keys.
_OF_BOTH = ('out', 'config', 'draw', 'overwrite')
LIVE = 'allocation'  # kind of the study that trains its candidates


@dataclasses.dataclass(frozen=True)
class Allocate:
  """Flags of `familial allocate`.

  Attributes:
    out: folder of the result.
    config: instead of --table: experiments/allocation_live.py, whose candidates
      are trained, or experiments/allocation.py, which replays; the flags of a
      table are keys of it.
    table: learning curves: CSV, JSONL, Parquet, or a folder of this project's
      runs.
    columns: column mapping, 'flops=C,loss=val_loss,params=N'; may be repeated.
    wide: pattern of the columns of a table that has one for each run, as wandb
      exports it: 'loss=* - val_loss', where * stands for the run.
    curve: columns whose values identify a curve, run by default. Numeric ones
      describe the candidates to surrogates.
    policy: policy to compare: uniform, sh, sh_lmc, sh_ensemble_power_law,
      sh_ensemble_exponential, sh_ensemble_mmf, law or oracle; may be repeated. sh
      and oracle are always included.
    budget: FLOPs of an allocation; may be repeated.
    candidates: number of candidates of a draw; 0 for all curves.
    draws: number of random draws of the candidates.
    eta: Successive Halving factor: 1/eta of the candidates survive each round.
    maximize: the curves are of accuracies, shares or percentages: the highest is
      best. What is replayed and drawn is the error, 1 - accuracy.
    loss: loss of this project's runs.
    form: law fitted to the trained candidates; none for no law.
    where: condition on the rows that the law is fitted to, as 'tokens>=1e9'; may
      be repeated.
    seed: seed of the draws and the surrogates.
    label: name of the loss on axes and tooltips; loss by default, or error with
      --maximize.
    unit: of the loss on figures; nats per token by default, where it is called loss.
    draw: write a page with figures too.
    overwrite: replace another result in the folder.
  """

  out: Folder
  config: Annotated[Any, ConfigFile()] = None
  table: str | None = None
  columns: Repeated = ()
  wide: Repeated = ()
  curve: tuple[str, ...] = ()
  policy: Repeated = ('sh_ensemble_power_law',)
  budget: Annotated[tuple[float, ...], REPEATED] = ()
  candidates: int = 0
  draws: int = 100
  eta: int = 2
  maximize: bool = False
  loss: Annotated[str, schema.one_of('mean', 'final')] = 'final'
  form: str = 'chinchilla'
  where: Repeated = ()
  seed: schema.Index = 0
  label: str = ''
  unit: str = ''
  draw: bool = True
  overwrite: bool = False
  given: frozenset[str] = frozenset()


def _allocate(asked: Allocate) -> str:
  if (asked.config is None) == (asked.table is None):
    raise errors.UserError(
      '--table or --config: one of them is needed; a table of curves is'
      ' replayed, and the candidates of a config are trained'
    )
  compilation.prepare()
  if asked.config is None:
    return _replay(_of_table(asked), asked)
  for flag in [field.name for field in dataclasses.fields(asked)]:
    if flag in asked.given and flag not in _OF_BOTH:
      raise errors.UserError(
        f'--{flag}: of a --table; in a config it is a key, --config.KEY=...'
      )
  study = registry.of_config(asked.config)
  if study is not None and study.kind == LIVE:
    if not asked.draw:
      raise errors.UserError(
        '--nodraw: of a replay; a live allocation always has its page'
      )
    if asked.overwrite:
      raise errors.UserError(
        '--overwrite: of a replay; a live allocation goes on in its folder'
      )
    return studies.run_study(study, asked.config, asked.out)
  if 'cells' not in asked.config:
    raise errors.UserError(
      '--config: this is not an allocation, which has cells (a replay) or is of '
      'kind allocation (live), such as experiments/allocation_live.py'
    )
  return _replay(config_lib.read(asked.config), asked)


def _replay(config: config_lib.ReplayConfig, asked: Allocate) -> str:
  with output_folder.claimed(asked.out, 'allocate', asked) as out:
    result, cells = comparison.run(config, out)
    path = out / comparison.RESULT
    if asked.draw:
      examples = [(cell.grid, cell.allocations) for cell in cells]
      label = asked.label or ('error' if config.maximize else '')
      path = replay_page.write(result, examples, out, label, asked.unit)
  return f'{result.summary_line} -> {path}'


def _of_table(asked: Allocate) -> config_lib.ReplayConfig:
  """Returns the replay that the flags ask for."""
  assert asked.table is not None
  if not asked.budget:
    raise errors.UserError('--budget: is missing; FLOPs of an allocation')
  columns = dict(command.mapping(asked.columns))
  wide = dict(command.mapping(asked.wide, 'wide'))
  candidates = asked.candidates
  if not candidates:
    pool = curves.read(
      asked.table, columns, asked.curve, asked.loss, wide,
      maximize=asked.maximize,
    )  # fmt: skip
    candidates = len(pool.curves)
  return command.fill(
    config_lib.ReplayConfig,
    asked,
    title='Replayed allocation',
    cells=tuple((candidates, budget) for budget in asked.budget),
    columns=columns,
    wide=wide,
    policies=asked.policy,
    law=config_lib.Law('' if asked.form == 'none' else asked.form, asked.where),
  )


COMMANDS = {'allocate': Command(Allocate, _allocate)}

"""`familial allocate`."""

import pathlib

from absl import flags

from familial.cli import command
from familial.core import errors

_OF_TABLES = (
  'columns',
  'curve',
  'policy',
  'budget',
  'candidates',
  'draws',
  'eta',
  'loss',
  'form',
  'where',
  'seed',
)


def _define(values: flags.FlagValues) -> None:
  from ml_collections import config_flags

  config_flags.DEFINE_config_file(
    'config',
    None,
    'Instead of --table: experiments/allocation_live.py, whose candidates are '
    'trained, or experiments/allocation.py, which replays. The flags below then '
    'are keys of it.',
    lock_config=True,
    flag_values=values,
  )
  flags.DEFINE_string(
    'table',
    None,
    "Learning curves: CSV, JSONL, Parquet, or a folder of this project's runs.",
    flag_values=values,
  )
  flags.DEFINE_multi_string(
    'columns',
    [],
    "Column mapping, 'flops=C,loss=val_loss,params=N'; may be repeated.",
    flag_values=values,
  )
  flags.DEFINE_list(
    'curve',
    [],
    'Columns whose values tell curves apart; by default run. Those that are '
    'numbers describe the candidates to surrogates.',
    flag_values=values,
  )
  flags.DEFINE_multi_string(
    'policy',
    ['sh_ensemble_power_law'],
    'uniform, sh, sh_lmc, sh_ensemble_power_law, sh_ensemble_exponential, '
    'sh_ensemble_mmf, law or oracle; may be repeated. sh and oracle are always '
    'beside it.',
    flag_values=values,
  )
  flags.DEFINE_multi_float(
    'budget', [], 'FLOPs of an allocation; may be repeated.', flag_values=values
  )
  flags.DEFINE_integer(
    'candidates', 0, 'Of a draw; 0 for all curves.', flag_values=values
  )
  flags.DEFINE_integer(
    'draws', 100, 'Random choices of the candidates.', flag_values=values
  )
  flags.DEFINE_integer(
    'eta', 2, 'One in so many survives a round.', flag_values=values
  )
  flags.DEFINE_enum(
    'loss',
    'final',
    ['mean', 'final'],
    "Which loss of this project's runs.",
    flag_values=values,
  )
  flags.DEFINE_string(
    'form', 'chinchilla', 'Law fitted to what was trained.', flag_values=values
  )
  flags.DEFINE_multi_string(
    'where',
    [],
    "Condition of rows that the law is fitted to, as 'tokens>=1e9'; may be "
    'repeated.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'seed', 0, 'Of draws and surrogates.', lower_bound=0, flag_values=values
  )
  flags.DEFINE_bool(
    'draw', True, 'Write a page with figures too.', flag_values=values
  )
  command.define_folder('out', 'Folder of the result.', values)


def _allocate(values: flags.FlagValues) -> str:
  if (values.config is None) == (values.table is None):
    raise errors.UserError(
      '--table or --config: one of them is needed; a table of curves is'
      ' replayed, and the candidates of a config are trained'
    )
  from familial.allocation import config as allocation_config
  from familial.training import compilation

  compilation.prepare()
  if values.config is not None:
    for flag in _OF_TABLES:
      if values[flag].present:
        raise errors.UserError(
          f'--{flag}: of a --table; in a config it is a key, --config.KEY=...'
        )
    if not {'cells', 'horizon'} & set(values.config):
      raise errors.UserError(
        '--config: this is no allocation, which has cells (a replay) or a horizon'
        ' (live), such as experiments/allocation_live.py'
      )
  if values.config is not None and 'horizon' in values.config:
    if not values.draw:
      raise errors.UserError(
        '--nodraw: of a replay; live, the page is the study'
      )
    from familial.studies import allocation
    from familial.studies import templates

    return allocation.run(templates.allocation(values.config), values.out)
  from familial.allocation import comparison

  config = (
    _replay(values)
    if values.config is None
    else allocation_config.read(values.config)
  )
  out = pathlib.Path(values.out)
  result, cells = comparison.run(config, out)
  path = out / comparison.RESULT
  if values.draw:
    from familial.report import replay_page

    examples = [(cell.grid, cell.allocations) for cell in cells]
    path = replay_page.write(result.record(), examples, out)
  return f'{result.summary_line} -> {path}'


def _replay(values: flags.FlagValues):  # type: ignore[no-untyped-def]
  """The replay that the flags ask for."""
  from familial.allocation import config
  from familial.allocation import curves

  if not values.budget:
    raise errors.UserError('--budget: is missing; FLOPs of an allocation')
  columns = command.mapping(','.join(values.columns))
  candidates = values.candidates
  if not candidates:
    pool = curves.read(values.table, columns, values.curve, values.loss)
    candidates = len(pool.curves)
  return config.ReplayConfig(
    title='Replayed allocation',
    cells=tuple((candidates, budget) for budget in values.budget),
    table=values.table,
    columns=columns,
    curve=tuple(values.curve),
    loss=values.loss,
    policies=tuple(values.policy),
    eta=values.eta,
    draws=values.draws,
    law=config.Law(values.form, tuple(values.where)),
    seed=values.seed,
  )


COMMANDS = {
  'allocate': command.Command(
    'a law from a fraction of the runs: replay known curves, or train',
    _define,
    _allocate,
  ),
}

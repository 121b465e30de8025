"""`familial fit`."""

from absl import flags

from familial.cli import command
from familial.core import errors


def _define_fit(values: flags.FlagValues) -> None:
  flags.DEFINE_string(
    'table',
    None,
    "CSV or JSONL of runs, or a folder of this project's runs.",
    required=True,
    flag_values=values,
  )
  flags.DEFINE_multi_string(
    'columns',
    [],
    'Column mapping of a foreign table, '
    "'params=Model Size,flops=Training FLOP,loss=loss'; may be repeated.",
    flag_values=values,
  )
  flags.DEFINE_multi_string(
    'form',
    ['familial_total'],
    'Law to fit; may be repeated. A name, columns joined by * and + '
    '(width*depth+tokens), or FILE.py:FUNCTION.',
    flag_values=values,
  )
  flags.DEFINE_enum(
    'loss',
    'final',
    ['mean', 'final', 'exit'],
    'Which loss of a familial run.',
    flag_values=values,
  )
  flags.DEFINE_enum(
    'rows', 'last', ['last', 'all'], 'Evaluations used.', flag_values=values
  )
  flags.DEFINE_string(
    'cluster',
    'run',
    'Column whose equal values are resampled together, or row.',
    flag_values=values,
  )
  flags.DEFINE_multi_string(
    'where',
    [],
    "Condition of rows that are used, as 'tokens>=1e9'; may be repeated.",
    flag_values=values,
  )
  flags.DEFINE_multi_string(
    'hold_out',
    [],
    "Condition of rows that are predicted, not fitted, as 'flops>1e21'; may be "
    'repeated.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'drop_highest',
    0,
    'Rows of highest loss left out.',
    lower_bound=0,
    flag_values=values,
  )
  flags.DEFINE_list(
    'scan',
    [],
    'Numbers of rows of highest loss, as 0,10,20,40: scan.json has the fit '
    'without each of them.',
    flag_values=values,
  )
  flags.DEFINE_float(
    'delta',
    1e-3,
    'Of the Huber loss on log loss; inf for least squares.',
    flag_values=values,
  )
  flags.DEFINE_float(
    'asymmetry',
    1.0,
    'Weight of a row that the law overpredicts, over one it underpredicts.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'starts', 256, 'Of the multi-start.', lower_bound=1, flag_values=values
  )
  flags.DEFINE_enum(
    'sampling',
    'grid',
    ['grid', 'latin'],
    'Of the starts: points of a grid, or Latin hypercubes over its range.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'resamples',
    1000,
    'Of the bootstrap.',
    lower_bound=2,
    flag_values=values,
  )
  flags.DEFINE_integer(
    'bootstrap_starts',
    0,
    'Of a multi-start for each resample; 0 for a start at the optimum.',
    lower_bound=0,
    flag_values=values,
  )
  flags.DEFINE_list(
    'compute',
    [],
    'FLOPs at which the optimal N and D are derived; by default the largest of '
    'the table.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'seed',
    0,
    'Of the starts and the bootstrap.',
    lower_bound=0,
    flag_values=values,
  )
  flags.DEFINE_bool(
    'draw', True, 'Write figures beside fit.json.', flag_values=values
  )
  command.define_folder('out', 'Folder of the result.', values)


def _fit(values: flags.FlagValues) -> str:
  from familial.laws import fitting
  from familial.laws import forms
  from familial.laws import result
  from familial.laws import table
  from familial.training import compilation

  compilation.prepare()
  needs = [c for name in values.form for c in forms.get(name).columns]
  rows = table.read(
    values.table,
    command.mapping(','.join(values.columns)),
    loss=values.loss,
    rows_used=values.rows,
    cluster=values.cluster,
    needs=needs,
  )
  for condition in values.where:
    rows = rows.take(rows.where(condition), where=list(values.where))
  return fitting.run(
    rows.drop_highest(values.drop_highest),
    values.form,
    values.out,
    result.Options(
      delta=values.delta,
      asymmetry=values.asymmetry,
      starts=values.starts,
      sampling=values.sampling,
      resamples=values.resamples,
      bootstrap_starts=values.bootstrap_starts,
      compute=_numbers('compute', values.compute),
      seed=values.seed,
    ),
    loss_definition=values.loss,
    hold_out=values.hold_out,
    scan=command.integers('scan', values.scan),
    draw=values.draw,
  )


def _numbers(flag: str, texts: list[str]) -> tuple[float, ...]:
  try:
    numbers = tuple(map(float, texts))
  except ValueError:
    numbers = (0.0,)
  if not all(0 < number < float('inf') for number in numbers):
    raise errors.UserError(
      f'--{flag}={",".join(texts)!r}: numbers above 0, joined by commas'
    )
  return numbers


COMMANDS = {
  'fit': command.Command(
    'a law from a table of runs, with intervals', _define_fit, _fit
  ),
}

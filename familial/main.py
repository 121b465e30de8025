"""The `familial` command: subcommands and flags, no logic."""

from collections.abc import Callable
import dataclasses
import pathlib
import re
import sys
import traceback

from absl import flags

from familial import errors

_SINGLE = 'experiments/single.py'


@dataclasses.dataclass(frozen=True)
class Command:
  """A subcommand.

  Attributes:
    help: one line.
    define: declares its flags.
    run: takes the parsed flags, returns the summary line.
  """

  help: str
  define: Callable[[flags.FlagValues], None]
  run: Callable[[flags.FlagValues], str]


def main() -> None:
  """Runs the command of `sys.argv` and exits with its status."""
  sys.exit(_main(sys.argv))


def _main(argv: list[str]) -> int:
  name = argv[1] if len(argv) > 1 else '--help'
  if name in ('--help', '-h', 'help', '--helpshort', '--helpfull'):
    print(_usage())
    return 0
  try:
    if name not in COMMANDS:
      raise errors.UserError(
        f'{name}: not a command; one of '
        f'{", ".join(COMMANDS)}'
        f'{errors.nearest(name, COMMANDS)}'
      )
    command = COMMANDS[name]
    if {'--help', '-h'} & set(argv[2:]):
      values = flags.FlagValues()
      command.define(values)
      print(f'familial {name}: {command.help}\n{values.get_help()}')
      return 0
    values, rest = _parse(command, argv[:1] + argv[2:])
    if rest:
      raise errors.UserError(f'{rest[0]}: familial {name} takes flags only')
    print(command.run(values))
    return 0
  except errors.UserError as error:
    print(f'familial: {error}', file=sys.stderr)
    return 2
  except errors.Incomplete as error:
    print(f'familial: {error}', file=sys.stderr)
    return 1
  except errors.Interrupted as error:
    print(f'familial: {error}', file=sys.stderr)
    return 130
  except KeyboardInterrupt:
    print('familial: interrupted', file=sys.stderr)
    return 130
  except OSError as error:
    print(
      f'familial: {error.filename or ""}: {error.strerror or error}',
      file=sys.stderr,
    )
    return 2


def _parse(
  command: Command, argv: list[str]
) -> tuple[flags.FlagValues, list[str]]:
  """Parses flags and loads the config: what goes wrong in either is one line."""
  values = flags.FlagValues()
  try:
    command.define(values)  # Reads overrides of the default config already.
    rest = values(argv)[1:]
    if 'config' in values:
      values.config.lock()  # Runs the config file, if nothing has yet.
    return values, rest
  except Exception as error:  # A config file is anyone's code.
    if not _of_config(error):
      raise errors.UserError(_one_line(str(error))) from None
    text = re.sub(r'\\n|[\\\'"]', ' ', str(error.args[0]))
    text = ' '.join(text.split())
    raise errors.UserError(f'--config: unknown key {text}') from None


def _of_config(error: Exception) -> bool:
  """Whether a ConfigDict raised it, for a key that it lacks."""
  if not isinstance(error, (AttributeError, KeyError)):
    return False
  frames = traceback.extract_tb(error.__traceback__)
  return 'ml_collections' in pathlib.Path(frames[-1].filename).parts


def _one_line(text: str) -> str:
  """Returns an error's text without the traceback that absl puts into it."""
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  if any(line.startswith('Traceback') for line in lines):
    lines = lines[-1:]
  return ' '.join(lines)


def _usage() -> str:
  width = max(map(len, COMMANDS))
  lines = [
    f'  {name:<{width}}  {command.help}' for name, command in COMMANDS.items()
  ]
  return (
    'usage: familial COMMAND [--flags]\n\n'
    + '\n'.join(lines)
    + '\n\nfamilial COMMAND --help lists its flags.'
  )


def _define_config(values: flags.FlagValues, default: str) -> None:
  from ml_collections import config_flags

  config_flags.DEFINE_config_file(
    'config',
    default,
    'Python file with a get_config(arg), as FILE.py or FILE.py:VARIANT; single '
    'values are overridden by --config.key=value.',
    lock_config=True,
    flag_values=values,
  )


def _define_workdir(values: flags.FlagValues) -> None:
  _define_folder(
    'workdir', 'Folder of the study or run; made if missing.', values
  )


def _define_folder(name: str, text: str, values: flags.FlagValues) -> None:
  flags.DEFINE_string(name, None, text, required=True, flag_values=values)
  flags.register_validator(
    name,
    lambda folder: folder != '',  # As of a shell's variable that is not set.
    message='it must name a folder',
    flag_values=values,
  )


def _define_run(values: flags.FlagValues) -> None:
  _define_config(values, 'experiments/quickstart.py')
  _define_workdir(values)
  flags.DEFINE_integer(
    'workers',
    1,
    'Processes that train cells side by side on this host, '
    'each on its share of the cores.',
    lower_bound=1,
    flag_values=values,
  )
  flags.DEFINE_bool(
    'plan_only', False, 'Stop after the plan.', flag_values=values
  )
  _define_tensorboard(values)


def _define_train(values: flags.FlagValues) -> None:
  _define_config(values, _SINGLE)
  _define_workdir(values)
  _define_tensorboard(values)


def _define_tensorboard(values: flags.FlagValues) -> None:
  flags.DEFINE_bool(
    'tensorboard',
    False,
    "Write TensorBoard events too; needs the extra 'tensorboard'.",
    flag_values=values,
  )


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
  _define_folder('out', 'Folder of the result.', values)


def _run(values: flags.FlagValues) -> str:
  from familial import config
  from familial.studies import isoflop

  return isoflop.run(
    config.study(values.config),
    values.workdir,
    workers=values.workers,
    plan_only=values.plan_only,
    tensorboard=values.tensorboard,
  )


def _train(values: flags.FlagValues) -> str:
  from familial import config
  from familial import records
  from familial.training import loop

  if 'grid' in values.config:
    raise errors.UserError(
      "--config: this is a study's, for familial run; familial train takes one "
      f"run's, such as {_SINGLE}"
    )
  run = config.run(values.config)
  with records.held(values.workdir) as mine:
    if not mine:
      raise errors.UserError(
        f'--workdir={values.workdir}: another process is training there'
      )
    loop.run(run, values.workdir, tensorboard=values.tensorboard)
  return f'{values.workdir}: {records.outcome(values.workdir)}'


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
    _mapping(','.join(values.columns)),
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


def _mapping(text: str) -> dict[str, str]:
  """Returns {'params': 'Model Size'} for 'params=Model Size'."""
  mapping: dict[str, str] = {}
  for pair in text.split(','):
    ours, _, theirs = (part.strip() for part in pair.partition('='))
    if ours in mapping:
      raise errors.UserError(f'--columns: {ours!r} is mapped twice')
    if ours and theirs:
      mapping[ours] = theirs
    elif pair.strip():
      raise errors.UserError(
        f"--columns: {pair!r} is not of the form 'ours=theirs'"
      )
  return mapping


def _report(values: flags.FlagValues) -> str:
  from familial.report import page

  return f'wrote {page.write(values.workdir)}'


COMMANDS: dict[str, Command] = {
  'run': Command(
    'a whole study: plan, train, fit, report; resumable', _define_run, _run
  ),
  'train': Command('one run', _define_train, _train),
  'fit': Command(
    'a law from a table of runs, with intervals', _define_fit, _fit
  ),
  'report': Command(
    'figures and one HTML page of a study', _define_workdir, _report
  ),
}

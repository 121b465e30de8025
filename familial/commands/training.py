"""`familial run`, `train`, `plan` and `report`."""

import contextlib

from absl import flags

from familial import errors
from familial.commands import command

_SINGLE = 'experiments/single.py'


def _define_run(values: flags.FlagValues) -> None:
  command.define_config(values, 'experiments/quickstart.py')
  command.define_workdir(values)
  _define_workers(
    'Processes that train cells side by side on this host, '
    'each on its share of the cores.',
    values,
  )
  flags.DEFINE_bool(
    'plan_only', False, 'Stop after the plan.', flag_values=values
  )
  _define_beside(values)


def _define_train(values: flags.FlagValues) -> None:
  command.define_config(values, _SINGLE)
  command.define_workdir(values)
  _define_beside(values)


def _define_plan(values: flags.FlagValues) -> None:
  command.define_config(values, 'experiments/familial_law.py:paper')
  flags.DEFINE_string(
    'topology',
    None,
    'What to plan for: TPUs such as v5p:4x4x8, which need not be here (extra '
    "'tpu'), or `here`, the devices of this host. The plan looks for a layout "
    'and for remat itself, whatever the config has.',
    required=True,
    flag_values=values,
  )
  flags.DEFINE_string(
    'out',
    None,
    'Folder of the plan; by default runs/plan_CONFIG_TOPOLOGY. Programs '
    'compiled for it before are not compiled again.',
    flag_values=values,
  )
  _define_workers('Processes that compile side by side.', values)


def _define_workers(text: str, values: flags.FlagValues) -> None:
  flags.DEFINE_integer('workers', 1, text, lower_bound=1, flag_values=values)


def _define_beside(values: flags.FlagValues) -> None:
  flags.DEFINE_bool(
    'tensorboard',
    False,
    "Write TensorBoard events too; needs the extra 'tensorboard'.",
    flag_values=values,
  )
  flags.DEFINE_bool(
    'profile',
    False,
    "Write a profiler's trace of a few steps, once a start, to the run's folder "
    'profile.',
    flag_values=values,
  )


def _run(values: flags.FlagValues) -> str:
  from familial import config
  from familial.studies import allocation
  from familial.studies import depth
  from familial.studies import depth_regimes
  from familial.studies import families
  from familial.studies import isoflop

  if 'studies' in values.config:
    return _run_toys(values)
  how = {
    name: values[name].value
    for name in ('workers', 'plan_only', 'tensorboard', 'profile')
  }
  if 'ways' in values.config:
    return families.run(config.families(values.config), values.workdir, **how)
  if 'cells' in values.config:
    raise errors.UserError(
      '--config: this is a replay, for familial allocate --config'
    )
  if 'horizon' in values.config:
    live = config.allocation(values.config)
    return allocation.run(live, values.workdir, **how)
  if 'widths' in values.config:
    return depth.run(config.depth(values.config), values.workdir, **how)
  if 'probe_tokens' in values.config:
    return depth_regimes.run(
      config.regimes(values.config), values.workdir, **how
    )
  return isoflop.run(config.study(values.config), values.workdir, **how)


def _run_toys(values: flags.FlagValues) -> str:
  from familial import config
  from familial.studies import depth_toys

  for name in ('tensorboard', 'profile'):
    if values[name].value:
      raise errors.UserError(f'--{name}: not for toys, which have no runs')
  if values.workers > 1:
    raise errors.UserError(
      f'--workers={values.workers}: toys train in one process, many at once'
    )
  toys = config.depth_toys(values.config)
  return depth_toys.run(toys, values.workdir, plan_only=values.plan_only)


def _train(values: flags.FlagValues) -> str:
  from familial import config
  from familial import records
  from familial.training import loop
  from familial.training import processes

  studies = {'grid', 'ways', 'horizon', 'widths', 'probe_tokens', 'studies'}
  if studies & set(values.config):
    raise errors.UserError(
      "--config: this is a study's, for familial run; familial train takes one "
      f"run's, such as {_SINGLE}"
    )
  run = config.run(values.config)
  with processes.joined(), contextlib.ExitStack() as stack:
    # Process 0 holds the folder for all of a run.
    lock = records.held(values.workdir)
    if not processes.by_first(lambda: stack.enter_context(lock)):
      raise errors.UserError(
        f'--workdir={values.workdir}: another process is training there'
      )
    loop.run(
      run,
      values.workdir,
      tensorboard=values.tensorboard,
      profile=values.profile,
    )
    outcome = records.outcome(values.workdir)
  return f'{values.workdir}: {outcome}'


def _plan(values: flags.FlagValues) -> str:
  import pathlib

  from ml_collections import config_flags

  from familial import config
  from familial.planning import page
  from familial.planning import pod
  from familial.planning import summary
  from familial.studies import allocation
  from familial.studies import cells as cells_lib
  from familial.studies import depth
  from familial.studies import depth_regimes
  from familial.studies import families_cells

  if 'studies' in values.config:
    raise errors.UserError(
      '--config: toys are not planned for a pod; familial run --plan_only says '
      'what they cost'
    )
  if 'grid' in values.config:
    study = config.study(values.config)
    title, cells = study.title, cells_lib.build(study)
  elif 'ways' in values.config:
    families = config.families(values.config)
    title, cells = families.title, families_cells.build(families)
  elif 'horizon' in values.config:
    live = config.allocation(values.config)
    title, cells = live.title, allocation.build(live)
  elif 'widths' in values.config:
    shapes = config.depth(values.config)
    title, cells = shapes.title, depth.build(shapes)
  elif 'probe_tokens' in values.config:
    layers = config.regimes(values.config)
    title, cells = layers.title, depth_regimes.build(layers)
  else:
    title, cells = 'One run', [config.run(values.config)]
  config_file = pathlib.Path(config_flags.get_config_filename(values['config']))
  name = f'{config_file.name.replace(".py", "")}_{values.topology}'
  folder = pathlib.Path(values.out or f'runs/plan_{name.replace(":", "_")}')
  plan = pod.make(title, cells, values.topology, folder, values.workers)
  print(summary.text(plan), flush=True)
  return f'{summary.headline(plan)}; wrote {page.write(folder, plan)}'


def _report(values: flags.FlagValues) -> str:
  from familial.report import page

  return f'wrote {page.write(values.workdir)}'


COMMANDS = {
  'run': command.Command(
    'a whole study: plan, train, fit, report; resumable', _define_run, _run
  ),
  'train': command.Command('one run', _define_train, _train),
  'plan': command.Command(
    'compile for a pod ahead of time: fits? how fast at best? how long?',
    _define_plan,
    _plan,
  ),
  'report': command.Command(
    'figures and one HTML page of a study', command.define_workdir, _report
  ),
}

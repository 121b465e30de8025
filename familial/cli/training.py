"""`familial run`, `train`, `plan` and `report`."""

import contextlib

from absl import flags

from familial.cli import command
from familial.core import errors

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
  from familial.core import storage
  from familial.report import page
  from familial.studies import registry
  from familial.studies import study as study_lib

  study = registry.of_config(values.config)
  if study is None:
    raise errors.UserError(
      '--config: this is not a study; a run is for familial train, and a replay '
      'for familial allocate'
    )
  outcome = study.run(
    study.read_config(values.config),
    values.workdir,
    study_lib.Options(
      values.workers, values.tensorboard, values.profile, values.plan_only
    ),
  )
  if outcome.planned_only:
    return outcome.line
  with storage.lock(values.workdir, wait=True):
    path = page.write(values.workdir)
  line = f'{outcome.line}\n{path}'
  if outcome.failed:
    print(line)
    raise errors.Incomplete(
      f'{len(outcome.failed)} of {outcome.total} cells failed; the same command '
      'tries them again'
    )
  return line


def _train(values: flags.FlagValues) -> str:
  from familial.core import run_folder
  from familial.core import storage
  from familial.training import config as train_config
  from familial.training import loop
  from familial.training import processes

  if 'kind' in values.config:
    raise errors.UserError(
      "--config: this is a study's, for familial run; familial train takes one "
      f"run's, such as {_SINGLE}"
    )
  run = train_config.read(values.config)
  with processes.joined(), contextlib.ExitStack() as stack:
    # Process 0 holds the folder for all of a run.
    lock = storage.lock(values.workdir)
    if not processes.broadcast_from_0(lambda: stack.enter_context(lock)):
      raise errors.UserError(
        f'--workdir={values.workdir}: another process is training there'
      )
    loop.run(
      run,
      values.workdir,
      tensorboard=values.tensorboard,
      profile=values.profile,
    )
    outcome = run_folder.outcome(values.workdir)
  return f'{values.workdir}: {outcome}'


def _plan(values: flags.FlagValues) -> str:
  import pathlib

  from ml_collections import config_flags

  from familial.planning import pod
  from familial.planning import summary
  from familial.report import plan_page
  from familial.studies import execution
  from familial.studies import registry
  from familial.training import config as train_config

  study = registry.of_config(values.config)
  if study is None:
    title, runs = 'One run', [train_config.read(values.config)]
  elif not isinstance(study, execution.TrainedStudy):
    raise errors.UserError(
      f'--config: a study of kind {study.kind} is not planned for a pod; '
      'familial run --plan_only says what it costs'
    )
  else:
    config = study.read_config(values.config)
    title, runs = config.title, study.runs(config)
  config_file = pathlib.Path(config_flags.get_config_filename(values['config']))
  name = f'{config_file.name.replace(".py", "")}_{values.topology}'
  folder = pathlib.Path(values.out or f'runs/plan_{name.replace(":", "_")}')
  plan = pod.make(title, runs, values.topology, folder, values.workers)
  print(summary.text(plan), flush=True)
  return f'{summary.headline(plan)}; wrote {plan_page.write(folder, plan)}'


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

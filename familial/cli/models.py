"""`familial export`, `import` and `expand`: models made of other models."""

from typing import Any

from absl import flags

from familial.cli import command


def _define_export(values: flags.FlagValues) -> None:
  command.define_checkpoint(values)
  flags.DEFINE_integer(
    'exit', 0, 'Which, from 1; 0 for the last.', flag_values=values
  )
  flags.DEFINE_enum(
    'format',
    'familial',
    ['familial', 'hugging_face', 'segments'],
    "A model of this project's, Hugging Face files, or one folder for each "
    'segment up to the exit, to be served.',
    flag_values=values,
  )
  command.define_folder('out', 'Folder of the result.', values)


def _define_import(values: flags.FlagValues) -> None:
  command.define_folder(
    'from', 'Folder of Hugging Face files of a Llama-like model.', values
  )
  flags.DEFINE_list(
    'exits',
    [],
    'Layers after which exits are added, as 8,16; the last layer always has '
    'one.',
    flag_values=values,
  )
  flags.DEFINE_enum(
    'exit_kind',
    'head',
    ['head', 'separate', 'branch'],
    'Of the exits added.',
    flag_values=values,
  )
  command.define_folder('out', 'Folder of the result.', values)


def _define_expand(values: flags.FlagValues) -> None:
  command.define_checkpoint(values)
  command.define_config(
    values,
    None,
    'to',
    'Its model, growth and train.seed are read; data, layout and the rest of '
    "train stay the checkpoint's.",
  )
  command.define_folder('out', 'Folder of the result.', values)


def _export(values: flags.FlagValues) -> str:
  from familial.convert import export
  from familial.convert import load

  model = load.load(values.checkpoint, values.step)
  exit_ = values.exit or model.config.model.granularity
  write = {
    'familial': export.to_familial,
    'hugging_face': export.to_hugging_face,
    'segments': export.to_segments,
  }[values.format]
  write(model, exit_, values.out)
  what = 'segments up to exit' if values.format == 'segments' else 'exit'
  return f'wrote {what} {exit_} of {model.folder} to {values.out}'


def _import(values: flags.FlagValues) -> str:
  from familial.convert import hugging_face

  return hugging_face.from_hugging_face(
    str(values['from'].value),
    command.integers('exits', values.exits),
    values.exit_kind,
    values.out,
  )


def _expand(values: flags.FlagValues) -> str:
  from familial.convert import expand
  from familial.training import config as train_config

  return expand.expand(
    values.checkpoint, train_config.read(values.to), values.out, values.step
  )


COMMANDS: dict[str, Any] = {
  'export': command.Command(
    'one exit as a model of its own, or segments to serve',
    _define_export,
    _export,
  ),
  'import': command.Command(
    'a Llama-like model of Hugging Face, with exits added',
    _define_import,
    _import,
  ),
  'expand': command.Command(
    'a trained model grown into a larger one', _define_expand, _expand
  ),
}

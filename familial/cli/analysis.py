"""`familial probe` and `familial depth`."""

from typing import Any

from absl import flags

from familial.cli import command
from familial.core import errors


def _define_probe(values: flags.FlagValues) -> None:
  flags.DEFINE_multi_string(
    'checkpoint',
    None,
    'Run, export or import, one of its checkpoints, or Hugging Face files of a '
    'Llama-like model; repeated, models of several depths.',
    required=True,
    flag_values=values,
  )
  command.define_step(values)
  command.define_folder(
    'out', 'Folder of the result; of several, a folder each in it.', values
  )
  for name, text in (
    ('tokens', "Held-out tokens; 0 for as many as the run's own evaluations."),
    ('batch', "Windows of a pass; 0 for those of the run's evaluations."),
    ('context', 'Positions of a window; 0 for those it was trained with.'),
  ):
    flags.DEFINE_integer(name, 0, text, lower_bound=0, flag_values=values)


def _probe(values: flags.FlagValues) -> str:
  from familial.analysis import probe
  from familial.training import compilation

  if '' in values.checkpoint:  # As of a shell's variable that is not set.
    raise errors.UserError("--checkpoint='': it must name a folder")
  compilation.prepare()
  found = []
  for number, folder in enumerate(values.checkpoint, start=1):
    found.append(
      probe.of_checkpoint(
        folder, values.step, values.tokens, values.batch, values.context
      )
    )
    if len(values.checkpoint) > 1:
      print(
        f'{number} of {len(values.checkpoint)}: {probe.text(found[-1])}',
        flush=True,
      )
  return probe.write(found, values.out)


def _define_depth(values: flags.FlagValues) -> None:
  for kind, text in (
    ('law', 'Folder of a study of width and depth.'),
    ('regimes', 'Folder of a study of layers and exits.'),
    ('toys', "Folder of the toys' study."),
  ):
    flags.DEFINE_string(kind, '', text, flag_values=values)
  command.define_folder('out', 'Folder of the page.', values)


def _depth(values: flags.FlagValues) -> str:
  from familial.report import depth_story

  return depth_story.write(
    {kind: str(values[kind].value) for kind in depth_story.KINDS}, values.out
  )


COMMANDS: dict[str, Any] = {
  'probe': command.Command(
    'what the layers of a model do, and in which regime',
    _define_probe,
    _probe,
  ),
  'depth': command.Command(
    'one page of the studies of depth, and whether they agree',
    _define_depth,
    _depth,
  ),
}

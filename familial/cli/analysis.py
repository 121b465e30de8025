"""`familial probe` and `familial depth`."""

from __future__ import annotations

import dataclasses
from typing import Annotated
from typing import Any

from etils import epy

from familial.cli import command
from familial.cli import output_folder
from familial.cli.command import Command
from familial.cli.command import Folder
from familial.cli.command import Folders
from familial.core import schema
from familial.core import storage

# Imported when a command runs, not when its flags are read.
with epy.lazy_imports():
  from familial.analysis import probe
  from familial.report import depth_story
  from familial.report import probe_page
  from familial.training import compilation


@dataclasses.dataclass(frozen=True)
class Probe:
  """Flags of `familial probe`.

  Attributes:
    checkpoint: run, export or import, one of its checkpoints, or Hugging Face
      files of a Llama-like model; may be repeated, for models of several depths.
    out: folder of the result; for several models, a folder for each in it.
    step: checkpoint of a run: last, best, or a number of steps.
    tokens: held-out tokens; 0 for as many as the run's own evaluations.
    batch: windows of a pass; 0 for those of the run's evaluations.
    context: positions of a window; 0 for those it was trained with.
    data: keys of the text in place of the run's, such as --data.path where it was
      moved.
    overwrite: replace another result in the folder.
  """

  checkpoint: Folders
  out: Folder
  step: str = 'last'
  tokens: schema.Index = 0
  batch: schema.Index = 0
  context: schema.Index = 0
  data: Annotated[dict[str, Any], command.TEXT] = dataclasses.field(
    default_factory=dict
  )
  overwrite: bool = False


def _probe(given: Probe) -> str:
  storage.check_writable(given.out)
  compilation.prepare()
  with output_folder.claimed(given.out, 'probe', given):
    probes = []
    for number, folder in enumerate(given.checkpoint, start=1):
      probes.append(
        probe.of_checkpoint(
          folder,
          given.step,
          given.tokens,
          given.batch,
          given.context,
          given.data,
        )
      )
      if len(given.checkpoint) > 1:
        line = probe_page.line(probes[-1])
        print(f'{number} of {len(given.checkpoint)}: {line}', flush=True)
    return probe_page.write(probes, given.out)


@dataclasses.dataclass(frozen=True)
class Depth:
  """Flags of `familial depth`.

  Attributes:
    out: folder of the page.
    law: folder of a study of width and depth.
    regimes: folder of a study of layers and exits.
    toys: folder of the toys' study.
  """

  out: Folder
  law: str = ''
  regimes: str = ''
  toys: str = ''


def _depth(given: Depth) -> str:
  folders = {kind: getattr(given, kind) for kind in depth_story.KINDS}
  return depth_story.write(folders, given.out)


COMMANDS = {'probe': Command(Probe, _probe), 'depth': Command(Depth, _depth)}

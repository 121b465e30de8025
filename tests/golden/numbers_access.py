"""The package as the golden tests see it: commands, and a few functions.

Whatever the golden tests need beyond the commands and the files that they leave
is imported here and nowhere else in this folder, so that modules can move without
a change of the tests. No function here computes: it calls the package.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import pathlib
import sys
from typing import Any
from unittest import mock

import jax.numpy as jnp
import numpy as np

from familial.cli import main
from familial.convert import load
from familial.convert import segments
from familial.core import storage
from familial.data import packing
from familial.laws import selection
from familial.model import transformer
from familial.plots import theme
from familial.relay import generate as relay_generate
from familial.relay import server
from familial.serving import generate
from familial.serving import sampling
from familial.studies import depth_toys
from familial.studies import families
from familial.studies import registry
from familial.studies import study as study_lib
from familial.training import config as train_config
from familial.training import loop
from familial.training import population

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENTS = ROOT / 'experiments'
RESULTS = EXPERIMENTS / 'results'
SCHEMA_1 = ROOT / 'tests' / 'data' / 'schema_1'
GOLDEN = ROOT / 'tests' / 'data' / 'golden'
# A growing folder's rows, as training leaves them.
ROWS = 'metrics.jsonl'


def command(*arguments: Any) -> tuple[int, str, str]:
  """Runs a `familial` command; returns its status, stdout and stderr."""
  argv = ['familial', *map(str, arguments)]
  out, err = io.StringIO(), io.StringIO()
  # A process loads one config; a second would inherit the first's names.
  sys.modules.pop('config_config', None)
  sys.modules.pop('to_config', None)
  status: Any = 0
  with (
    mock.patch.object(sys, 'argv', argv),
    contextlib.redirect_stdout(out),
    contextlib.redirect_stderr(err),
  ):
    try:
      main.main()
    except SystemExit as exit_:
      status = exit_.code or 0
  return status, out.getvalue(), err.getvalue()


@contextlib.contextmanager
def coarse_figures():
  """Writes specifications of figures without drawing them."""
  with mock.patch.object(
    theme, 'save', lambda chart, path: theme.specification(chart)
  ):
    yield


def read_json(path: pathlib.Path) -> Any:
  return json.loads(path.read_text('utf-8'))


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the rows of a JSONL file."""
  return [json.loads(line) for line in path.read_text('utf-8').splitlines()]


def losses(run: pathlib.Path) -> list[list[float]]:
  """Returns a run's held-out losses by evaluation and exit."""
  by_step: dict[int, list[float]] = {}
  for row in read_rows(run / ROWS):
    by_step.setdefault(row['step'], []).append(row['loss'])
  return list(by_step.values())


def train(config: Mapping[str, Any], folder: pathlib.Path) -> list[list[float]]:
  """Trains one run; returns its losses by evaluation and exit.

  Args:
    config: sections `data`, `model`, `train` and `growth`, as a config file has
      them.
    folder: of the run.
  """
  loop.run(train_config.read(config), folder, quiet=True)
  return losses(folder)


def train_population(
  configs: Sequence[Mapping[str, Any]], folders: Sequence[pathlib.Path]
) -> list[list[list[float]]]:
  """Trains runs together; returns the losses of each."""
  runs = [train_config.read(config) for config in configs]
  corpus = packing.load(runs[0].data)
  population.run(runs, folders, corpus, quiet=True)
  return [losses(folder) for folder in folders]


def logits(folder: pathlib.Path, tokens: Sequence[int]) -> np.ndarray:
  """Returns the logits of a stored model's exits [G, L, V] for one sequence."""
  model = load.load(folder)
  found = transformer.logits(
    model.params, model.config.model, jnp.array([tokens], jnp.int32)
  )
  return np.stack([np.asarray(each)[0] for each in found])


def decode(
  folder: pathlib.Path,
  prompts: Sequence[str],
  mode: str,
  *,
  max_tokens: int,
  exit_: int = 0,
  draft_exit: int = 1,
  threshold: float = 0.9,
  confidence: str = 'max_prob',
  fill: str = 'defer',
  temperature: float = 0.0,
  top_k: int = 0,
  seed: int = 0,
) -> dict[str, list[list[int]]]:
  """Returns the tokens after each prompt, and the exit that gave each."""
  policy = sampling.Policy(
    sampling.Sampling(temperature, top_k, 1.0, seed),
    confidence,
    threshold,
    fill,
  )
  model = load.load(folder)
  outcome: generate.Generation
  if mode == 'relay':
    outcome = _relayed(model, prompts, policy, max_tokens)
  else:
    options = generate.Options(mode, exit_, draft_exit, 3, max_tokens, policy)
    outcome = generate.run(model, prompts, options)
  return {
    'tokens': [list(map(int, each.generated)) for each in outcome.completions],
    'exits': [list(map(int, each.exits)) for each in outcome.completions],
  }


def _relayed(
  model: load.Model,
  prompts: Sequence[str],
  policy: sampling.Policy,
  max_tokens: int,
) -> relay_generate.Relayed:
  with contextlib.ExitStack() as stack:
    servers = []
    for segment in segments.split(
      model.params, model.config.model, model.context
    ):
      relay = server.Relay(segment, len(prompts), model.context)
      port = stack.enter_context(server.serve(relay, 0))
      servers.append(f'127.0.0.1:{port}')
    return relay_generate.run(
      model.tokenizer, servers, prompts, policy, max_tokens
    )


def segment_of(folder: pathlib.Path) -> dict[str, Any]:
  """Returns what a folder of one segment says that it is."""
  segment = segments.load(folder)
  return {
    'exits': list(segment.exits),
    'index': segment.index,
    'context': segment.context,
  }


# What experiment each folder of results is of, and the variant.
RESULTS_OF = {
  'familial_law_cpu': ('familial_law', 'cpu'),
  'three_families_cpu': ('three_families', 'cpu'),
  'expansion_cpu': ('expansion', 'cpu'),
  'expansion_operators': ('expansion', 'operators'),
  'depth_law_cpu': ('depth_law', 'cpu'),
  'depth_toys_cpu': ('depth_toys', 'cpu'),
  'allocation_live_cpu': ('allocation_live', 'cpu'),
}


def config_of(experiment: str, variant: str) -> Any:
  """Returns what an experiment's `get_config` gives for a variant."""
  path = EXPERIMENTS / f'{experiment}.py'
  spec = importlib.util.spec_from_file_location(experiment, path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(variant)


def summary_of_results(name: str, workdir: pathlib.Path) -> dict[str, Any]:
  """Computes the summary of `experiments/results/NAME` once more.

  Laws that lie beside the rows are read, the others are fitted. What needs models
  or whole curves, which are not kept there, is left out: see `summary_test`.

  Args:
    name: of the results.
    workdir: an empty folder; gets a study's folder as far as the results give it.
  """
  results = RESULTS / name
  config = config_of(*RESULTS_OF[name])
  study = registry.of_config(config)
  assert study is not None
  if name == 'depth_toys_cpu':
    return _toys(study.read_config(config), read_json(results / 'summary.json'))
  if name == 'allocation_live_cpu':
    # Its laws and replays need whole curves.
    config.full, config.law.form = False, ''
  workdir.mkdir(exist_ok=True)
  for kept in ('plan.json', 'rounds.jsonl', 'fits'):
    if (results / kept).exists():
      os.symlink(results / kept, workdir / kept)
  rows = read_rows(results / 'rows.jsonl')
  for row in rows:
    run = workdir / 'cells' / row['run']
    run.mkdir(parents=True, exist_ok=True)
    storage.append(run / ROWS, [row])
  read = study.read_config(config)
  inherited = _inherited(study, read, rows)
  for run_name, values in inherited.items():
    storage.write_json(workdir / 'cells' / run_name / 'lineage.json', values)
  return _summarised(study, read, workdir)


def summary_of_study(workdir: pathlib.Path) -> dict[str, Any]:
  """Computes the summary of a study's folder once more.

  Laws that lie in it are read; where there are none they are fitted.
  """
  study = registry.of_plan(read_json(workdir / 'plan.json'))
  config = read_json(workdir / 'config.json')
  config.pop('schema')
  read = study.read_config(config)
  if study.kind == 'depth_toys':
    # Its students are not kept.
    with mock.patch.object(depth_toys, 'trained', lambda *_: iter(())):
      return _summarised(study, read, workdir)
  return _summarised(study, read, workdir)


def _summarised(
  study: study_lib.Study[Any, Any], config: Any, workdir: pathlib.Path
) -> dict[str, Any]:
  results = study_lib.read(workdir)
  with contextlib.ExitStack() as stack:
    if (workdir / 'fits').exists():
      stack.enter_context(mock.patch.object(selection, 'compare'))
    # Needs the models, which are not kept.
    stack.enter_context(
      mock.patch.object(families, '_agreement', lambda *_: ())
    )
    if hasattr(study, 'fit'):
      list(study.fit(config, results))
    summary = study.summarise(config, study_lib.read(workdir))
  return json.loads(json.dumps(dataclasses.asdict(summary)))


def _inherited(
  study: study_lib.Study[Any, Any],
  config: Any,
  rows: Sequence[Mapping[str, Any]],
) -> dict[str, dict[str, float]]:
  """Returns each run's lineage: what the runs that it starts from had spent."""
  ends = {row['run']: row for row in rows}
  if study.kind == 'families':
    parents = {
      run.cell: run.train.init_from.removeprefix('../')
      for run in families.FAMILIES.runs(config)
    }
  else:
    # A frozen trunk is that of the grid's dense run of the same shape.
    parents = {
      run: run.partition('_frozen_')[0].rpartition('_g')[0] + '_g1'
      if row['arm'] == 'frozen'
      else ''
      for run, row in ends.items()
    }
  found: dict[str, dict[str, float]] = {}

  def lineage(run: str) -> dict[str, float]:
    parent = parents[run]
    if run not in found:
      seq_len = config.data.seq_len
      found[run] = {
        'inherited_flops': ends[parent]['flops'] if parent else 0.0,
        'inherited_windows': (
          lineage(parent)['inherited_windows']
          + ends[parent]['tokens'] // seq_len
          if parent
          else 0
        ),
      }
    return found[run]

  for run in ends:
    lineage(run)
  return found


def _toys(
  config: depth_toys.Config, recorded: Mapping[str, Any]
) -> dict[str, Any]:
  """The toys' tables from the losses of each group's students.

  Where the students' files are not kept, they are taken from the recorded
  summary, which repeats them.
  """
  found = depth_toys._Found()
  for name, group in config.studies.items():
    found.add(name, group, _toys_result(name, config, recorded['tables']))
  return json.loads(json.dumps(dataclasses.asdict(found.tables())))


def _toys_result(
  name: str, config: depth_toys.Config, tables: Mapping[str, Any]
) -> dict[str, Any]:
  members = depth_toys.members(config, name)
  group = config.studies[name]
  rows = [row for row in tables['losses'] if row['study'] == name]
  steps = sorted({row['steps'] for row in rows})
  shape = (len(steps), len(group.depths), len(members))
  loss, error = np.full(shape, np.nan), np.full(shape, np.nan)
  for row in rows:
    at = (
      steps.index(row['steps']),
      group.depths.index(row['depth']),
      members.index(
        depth_toys.Member(row['teacher'], row['number'], row['temperature'])
      ),
    )
    loss[at] = np.nan if row['loss'] is None else row['loss']
    error[at] = np.nan if row['error'] is None else row['error']
  return {
    'loss': loss.tolist(),
    'error': error.tolist(),
    'steps': steps,
    'members': [member._asdict() for member in members],
  }

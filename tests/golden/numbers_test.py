"""Numbers that no change of the code may change, recorded from fixed seeds.

Losses of short runs, logits and greedy tokens of stored models, laws fitted to
the rows of a published study. To 1e-6 relative; tokens exactly. `record`
records them anew, for a change that is meant to change them and says so. Summaries
of studies are in `summaries_test`.

Resuming is tested elsewhere, exactly, and is no part of this record:

  a run killed or signalled goes on to the same bytes: training/loop_test
  members of a population, together, alone, paused: training/population_test
  torn rows, damaged and foreign checkpoints: training/damage_test
  several processes: training/processes_test, training/sharding_test
  sweeps: studies/sweep_test; whole studies: faults/kill_test
  disks that are full or read-only: faults/disk_test
"""

import contextlib

import jax.numpy as jnp
import numpy as np
import pytest

from familial.convert import load
from familial.convert import segments
from familial.core import run_folder
from familial.core import storage
from familial.data import packing
from familial.model import transformer
from familial.relay import generate as relay_generate
from familial.relay import server
from familial.serving import generate
from familial.serving import sampling
from familial.training import config as train_config
from familial.training import loop
from familial.training import population
from tests.golden import keys
from tests.golden import record

SHAPE = {
  'vocab_size': 256, 'width': 8, 'depth': 2, 'heads': 2, 'kv_heads': 1,
  'mlp_width': 16, 'exits': (1, 2), 'base_width': 16,
}  # fmt: skip
TRAIN = {
  'steps': 8, 'batch_size': 4, 'base_lr': 0.02, 'warmup_steps': 2,
  'evaluations': 2, 'eval_tokens': 256, 'eval_batch_size': 8,
}  # fmt: skip
RUNS = {
  'dense': {'model': {'exits': (2,)}},
  'familial': {'train': {'weighting': 'final_one', 'weighting_end': 'linear'}},
  'separate': {'model': {'exit_kind': 'separate', 'tied': False}},
  'branch': {
    'model': {'exit_kind': 'branch', 'branch_unembedding': 'own'},
    'data': {'document_mask': True},
  },
}
KINDS = ('separate', 'branch')
PROMPTS = ('the exit', 'early ones', '3: a layer')
TOKENS = 12  # after each prompt
# The mode of each decoding, its exit, and (confidence, threshold, fill).
MODES = {
  'exit': ('exit', 0),
  'exit_1': ('exit', 1),
  'drawn': ('exit', 0),
  'defer': ('confidence', 0, 'max_prob', 0.6, 'defer'),
  'propagate': ('confidence', 0, 'max_prob', 0.6, 'propagate'),
  'gap': ('confidence', 0, 'gap', 0.5, 'defer'),
  'entropy': ('confidence', 0, 'entropy', 0.7, 'defer'),
  'speculative': ('speculative', 0),
  'relay': ('relay', 0, 'max_prob', 0.6, 'defer'),
}
MORE_MODES = ('exit_1', 'drawn', 'gap', 'entropy', 'propagate', 'relay')
FITS = {
  'final/familial_total': (),
  'mean/familial_total': (),
  'exit/familial_total': (),
  'dense/chinchilla': ('--where=exits==1',),
}
LAW_ROWS = record.RESULTS / 'familial_law_cpu' / 'rows.jsonl'


def config(**sections):
  """A run's config: each argument updates a section."""
  base = {
    'data': {
      'corpus': 'text_files', 'path': str(record.SCHEMA_1 / 'text'),
      'heldout_percent': 20, 'seq_len': 16,
    },
    'model': SHAPE, 'train': TRAIN,
  }  # fmt: skip
  names = base.keys() | sections.keys()
  return {
    name: {**base.get(name, {}), **sections.get(name, {})} for name in names
  }


def train(run, folder):
  """Trains one run; returns its losses by evaluation and exit."""
  loop.run(train_config.read(run), folder, quiet=True)
  keys.check('run/config.json', folder / 'config.json')
  for name in ('lineage.json', run_folder.ROWS):
    keys.check(name, folder / name)
  return losses(folder)


def losses(folder):
  """Returns a run's held-out losses by evaluation and exit."""
  by_step = {}
  for row in storage.read_rows(folder / run_folder.ROWS):
    by_step.setdefault(row['step'], []).append(row['loss'])
  return list(by_step.values())


@pytest.fixture(scope='module')
def parent(tmp_path_factory):
  """The folder of the dense run, and its losses."""
  folder = tmp_path_factory.mktemp('runs') / 'dense'
  return folder, train(config(**RUNS['dense']), folder)


@pytest.mark.slow
def test_a_dense_run(parent):
  record.check_entry('runs', 'dense', parent[1])


@pytest.mark.slow
def test_what_grows_from_a_run(parent, tmp_path):
  folder, _ = parent
  grown = config(
    model={'width': 16, 'heads': 4, 'kv_heads': 2, 'mlp_width': 32, 'depth': 4,
           'exits': (2, 4)},
    train={'init_from': str(folder)},
    growth={'width': 'replicate', 'depth': 'identity'},
  )  # fmt: skip
  record.check_entry('runs', 'grown', train(grown, tmp_path / 'grown'))


@pytest.mark.parametrize(
  'name',
  ['familial', *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS)],
)
def test_a_run(tmp_path, name):
  record.check_entry('runs', name, train(config(**RUNS[name]), tmp_path / name))


def test_a_population(tmp_path):
  changes = [
    {},
    {'train': {'seed': 1, 'steps': 6, 'schedule': 'wsd'}},
    {'model': {'exits': (2,)}, 'train': {'base_lr': 0.01, 'clip': 0.0}},
  ]
  members = [train_config.read(config(**change)) for change in changes]
  folders = [tmp_path / str(number) for number in range(len(members))]
  corpus = packing.load(members[0].data)
  population.run(members, folders, corpus, quiet=True)
  record.check_entry('runs', 'population', list(map(losses, folders)))


def logits(folder):
  """Returns the logits [G, L, V] of a stored model for one sequence."""
  model = load.load(folder)
  tokens = jnp.array([list(b'\0the exit of a layer')], jnp.int32)
  found = transformer.logits(model.params, model.config.model, tokens)
  return np.stack(found)[:, 0]


def test_logits_of_a_run_and_of_its_exports():
  run, export = (logits(record.SCHEMA_1 / name) for name in ('run', 'export'))
  np.testing.assert_allclose(export[-1], run[1], rtol=1e-5, atol=1e-5)
  record.check_entry(
    'serving', 'logits', run[:, (0, 7, 19), 97:123:5].tolist(), 1e-5
  )
  record.check_entry(
    'serving', 'export', export[-1, (0, 7, 19), 97:123:5].tolist(), 1e-5
  )


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=pytest.mark.slow) if name in MORE_MODES else name
    for name in MODES
  ],
)
def test_decodings(name):
  mode, exit_, *confidence = MODES[name]
  drawn = (0.8, 5, 1.0, 3) if name == 'drawn' else (0.0, 0, 1.0, 0)
  policy = sampling.Policy(sampling.Sampling(*drawn), *confidence)
  model = load.load(record.SCHEMA_1 / 'run')
  if mode == 'relay':
    outcome = relayed(model, policy)
  else:
    options = generate.Options(mode, exit_, 1, 3, TOKENS, policy)
    outcome = generate.run(model, PROMPTS, options)
  found = {
    'tokens': [list(map(int, each.generated)) for each in outcome.completions],
    'exits': [list(map(int, each.exits)) for each in outcome.completions],
  }
  record.check_entry('serving', name, found)


def relayed(model, policy):
  """Generates through a relay of one server for each segment."""
  parts = segments.split(model.params, model.config.model, model.context)
  with contextlib.ExitStack() as stack:
    servers = []
    for part in parts:
      relay = server.Relay(part, len(PROMPTS), model.context)
      port = stack.enter_context(server.serve(relay, 0))
      servers.append(f'127.0.0.1:{port}')
    return relay_generate.run(model.tokenizer, servers, PROMPTS, policy, TOKENS)


@pytest.mark.parametrize(
  ('name', 'which', 'starts', 'resamples'),
  [
    *(
      pytest.param(name, 'whole', 512, 2000, marks=pytest.mark.slow)
      for name in FITS
    ),
    ('mean/familial_total', 'few', 32, 100),
  ],
)
def test_laws_of_a_published_study(
  familial, tmp_path, name, which, starts, resamples
):
  loss, form = name.split('/')
  loss = 'exit' if loss == 'dense' else loss
  status, _, err = familial(
    'fit', f'--table={LAW_ROWS}', f'--loss={loss}', f'--form={form}',
    f'--starts={starts}', f'--resamples={resamples}', '--nodraw',
    f'--out={tmp_path}', *FITS[name],
  )  # fmt: skip
  assert status == 0, err
  keys.check('fit.json', tmp_path / 'fit.json')
  fit = storage.read_json(tmp_path / 'fit.json')
  kept = ('rows', 'params', 'objective', 'bootstrap', 'aic', 'sd', 'identified')
  record.check_entry('fits', f'{name}/{which}', {key: fit[key] for key in kept})

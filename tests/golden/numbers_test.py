"""Numbers that no change of the code may change, recorded from fixed seeds.

Losses of short runs, logits and greedy tokens of stored models, laws fitted to
the rows of a published study. To 1e-6 relative; tokens exactly. `RECORD=1
pytest tests/golden` records them anew, for a change that is meant to change them
and says so. Summaries of studies are in `summaries_test`.

Resuming is tested elsewhere, exactly, and is no part of this record:

  a run killed or signalled goes on to the same bytes: training/loop_test
  members of a population, together, alone, paused: training/population_test
  torn rows, damaged and foreign checkpoints: training/damage_test
  several processes: training/processes_test, training/sharding_test
  sweeps: studies/sweep_test; whole studies: faults/kill_test
  disks that are full or read-only: faults/disk_test
"""

import numpy as np
import pytest

from tests.golden import numbers_access as access

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
MODES = {
  'exit': {'mode': 'exit'},
  'exit_1': {'mode': 'exit', 'exit_': 1},
  'drawn': {'mode': 'exit', 'temperature': 0.8, 'top_k': 5, 'seed': 3},
  'defer': {'mode': 'confidence', 'threshold': 0.6},
  'propagate': {'mode': 'confidence', 'threshold': 0.6, 'fill': 'propagate'},
  'gap': {'mode': 'confidence', 'threshold': 0.5, 'confidence': 'gap'},
  'entropy': {'mode': 'confidence', 'threshold': 0.7, 'confidence': 'entropy'},
  'speculative': {'mode': 'speculative'},
  'relay': {'mode': 'relay', 'threshold': 0.6},
}
MORE_MODES = ('exit_1', 'drawn', 'gap', 'entropy', 'propagate', 'relay')
FITS = {
  'final/familial_total': (),
  'mean/familial_total': (),
  'exit/familial_total': (),
  'dense/chinchilla': ('--where=exits==1',),
}
LAW_ROWS = access.RESULTS / 'familial_law_cpu' / 'rows.jsonl'


def config(**sections):
  """A run's config: each argument updates a section."""
  base = {
    'data': {
      'corpus': 'text_files', 'path': str(access.SCHEMA_1 / 'text'),
      'heldout_percent': 20, 'seq_len': 16,
    },
    'model': SHAPE, 'train': TRAIN,
  }  # fmt: skip
  names = base.keys() | sections.keys()
  return {
    name: {**base.get(name, {}), **sections.get(name, {})} for name in names
  }


@pytest.fixture(scope='module')
def parent(tmp_path_factory):
  """The folder of the dense run, and its losses."""
  folder = tmp_path_factory.mktemp('runs') / 'dense'
  return folder, access.train(config(**RUNS['dense']), folder)


@pytest.mark.slow
def test_a_dense_run(golden, parent):
  golden('runs', 'dense', parent[1])


@pytest.mark.slow
def test_what_grows_from_a_run(golden, parent, tmp_path):
  folder, _ = parent
  grown = config(
    model={'width': 16, 'heads': 4, 'kv_heads': 2, 'mlp_width': 32, 'depth': 4,
           'exits': (2, 4)},
    train={'init_from': str(folder)},
    growth={'width': 'replicate', 'depth': 'identity'},
  )  # fmt: skip
  golden('runs', 'grown', access.train(grown, tmp_path / 'grown'))


@pytest.mark.parametrize(
  'name',
  ['familial', *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS)],
)
def test_a_run(golden, tmp_path, name):
  golden('runs', name, access.train(config(**RUNS[name]), tmp_path / name))


def test_a_population(golden, tmp_path):
  members = [
    config(),
    config(train={'seed': 1, 'steps': 6, 'schedule': 'wsd'}),
    config(model={'exits': (2,)}, train={'base_lr': 0.01, 'clip': 0.0}),
  ]
  folders = [tmp_path / str(number) for number in range(len(members))]
  golden('runs', 'population', access.train_population(members, folders))


def test_logits_of_a_run_and_of_its_exports(golden):
  tokens = list(b'\0the exit of a layer')
  run = access.logits(access.SCHEMA_1 / 'run', tokens)
  export = access.logits(access.SCHEMA_1 / 'export', tokens)
  np.testing.assert_allclose(export[-1], run[1], rtol=1e-5, atol=1e-5)
  golden('serving', 'logits', run[:, (0, 7, 19), 97:123:5].tolist(), 1e-5)
  golden('serving', 'export', export[-1, (0, 7, 19), 97:123:5].tolist(), 1e-5)


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=pytest.mark.slow) if name in MORE_MODES else name
    for name in MODES
  ],
)
def test_decodings(golden, name):
  found = access.decode(
    access.SCHEMA_1 / 'run', PROMPTS, **MODES[name], max_tokens=12
  )
  golden('serving', name, found)


@pytest.mark.slow
@pytest.mark.parametrize('name', FITS)
def test_laws_of_a_published_study(golden, tmp_path, name):
  _fit(golden, tmp_path, name, 'whole', starts=512, resamples=2000)


def test_a_law_of_a_published_study_from_few_starts(golden, tmp_path):
  name = 'mean/familial_total'
  _fit(golden, tmp_path, name, 'few', starts=32, resamples=100)


def _fit(golden, folder, name, which, *, starts, resamples):
  loss, form = name.split('/')
  loss = 'exit' if loss == 'dense' else loss
  status, _, err = access.command(
    'fit', f'--table={LAW_ROWS}', f'--loss={loss}', f'--form={form}',
    f'--starts={starts}', f'--resamples={resamples}', '--nodraw',
    f'--out={folder}', *FITS[name],
  )  # fmt: skip
  assert status == 0, err
  fit = access.read_json(folder / 'fit.json')
  kept = ('rows', 'params', 'objective', 'bootstrap', 'aic', 'sd', 'identified')
  golden('fits', f'{name}/{which}', {key: fit[key] for key in kept})

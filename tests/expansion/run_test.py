"""A grown model as a run: where it starts, what it records, how it goes on."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest

from familial.cli import main as main_lib
from familial.convert import export
from familial.convert import load
from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.data import batches
from familial.expansion import config as growth_config
from familial.expansion import maps
from familial.model import flops as flops_lib
from familial.training import evaluation
from familial.training import loop
from familial.training import run as run_lib
from familial.training import warm_start
from tests.training import runs

BOTH = growth_config.GrowthConfig(
  width='replicate', split='uneven', depth='identity', state='carry', exact=True
)


@pytest.fixture(scope='module')
def parent(run_config, corpus, tmp_path_factory):
  """A small family, trained for a few steps; (config, folder)."""
  config = run_config(steps=8, evaluations=1, warmup_steps=2)
  folder = tmp_path_factory.mktemp('grow') / 'small'
  assert loop.run(config, folder, corpus, quiet=True) == 'finished'
  return config, folder


@pytest.fixture
def larger(parent):
  """Twice as wide and deeper, the old exits kept; changes are to sections."""
  config, folder = parent
  wider = {'width': 32, 'heads': 8, 'kv_heads': 2, 'mlp_width': 50}
  deeper = {'depth': 3, 'exits': (1, 2, 3)}

  def make(growth=BOTH, model=(), **train):
    return dataclasses.replace(
      config,
      model=dataclasses.replace(
        config.model, **{**wider, **deeper, **dict(model)}
      ),
      growth=growth,
      train=dataclasses.replace(
        config.train, **{'init_from': str(folder), 'steps': 6, **train}
      ),
    )

  return make


def _rows(folder):
  return storage.read_rows(folder / run_folder.ROWS)


def test_a_stage_starts_as_its_parent_and_goes_on_with_its_data(
  parent, larger, corpus, tmp_path
):
  (config, small), bigger = parent, larger()
  run_lib.begin(bigger, tmp_path)
  assert not list(
    tmp_path.iterdir()
  )  # Nothing is written before all is checked.
  lineage = warm_start.lineage(tmp_path, bigger)
  assert lineage['parent'] == 'small'
  assert lineage['inherited_windows'] == 8 * config.train.batch_size
  assert lineage['inherited_flops'] == _rows(small)[-1]['flops']
  assert lineage['expansion']['exact']
  assert lineage['expansion']['exact_exits'] == [[1, 1], [2, 2], [3, 2]]
  with run_lib.Run(bigger, tmp_path, corpus, False) as run:
    state = run.state()
    heldout = batches.heldout(
      corpus,
      config.data,
      config.train.eval_tokens,
      config.train.eval_batch_size,
    )
    found = evaluation.losses(state.params, bigger.model, heldout)
    first, next_of_parent = (
      batches.Batches(corpus, config.data, config.train.batch_size, 0)[8],
      run.source[0],
    )
  ends = [row['loss'] for row in _rows(small)]
  np.testing.assert_allclose(found, [*ends, ends[-1]], rtol=1e-5)
  was = load.load(small)
  same = evaluation.agreement(
    evaluation.Member(was.params, was.config.model, 2),
    evaluation.Member(state.params, bigger.model, 3),
    heldout[:1],
  )
  assert abs(same['kl'][0]) < 1e-6 and same['top1'][0] == 1
  jax.tree.map(np.testing.assert_array_equal, first, next_of_parent)
  assert int(state.opt_state[1].count) == 8  # Of Adam's bias correction.
  assert int(state.opt_state[-1].count) == 0  # Of the stage's own schedule.
  assert float(np.abs(state.opt_state[1].mu['embedding']).max()) > 0


def test_a_stage_stopped_ends_as_one_that_was_not(
  larger, corpus, tmp_path, monkeypatch
):
  config = larger()
  assert loop.run(config, tmp_path / 'whole', corpus, quiet=True) == 'finished'

  def stop(step):
    if step == 3:
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(errors.Interrupted):
    loop.run(config, tmp_path / 'cut', corpus, quiet=True, on_step=stop)
  # Its checkpoint is all that it needs from here on.
  monkeypatch.setattr(warm_start, 'graft', None)
  assert loop.run(config, tmp_path / 'cut', corpus, quiet=True) == 'finished'
  whole, cut = (_rows(tmp_path / name) for name in ('whole', 'cut'))
  assert [row | {'run': ''} for row in whole] == [
    row | {'run': ''} for row in cut
  ]
  tokens = 6 * config.train.batch_size * config.data.seq_len
  own = tokens * flops_lib.train(config.model, config.data.seq_len)
  lineage = storage.read_json(tmp_path / 'cut' / 'lineage.json')
  assert cut[-1]['flops'] == lineage['inherited_flops'] + own
  per_epoch = batches.Batches(
    corpus, config.data, config.train.batch_size, 0
  ).epoch_tokens
  seen = tokens + 8 * config.train.batch_size * config.data.seq_len
  assert cut[-1]['epochs'] == pytest.approx(seen / per_epoch)


@pytest.mark.parametrize(
  ('growth', 'model', 'expected'),
  [
    (growth_config.NONE, {}, 'was trained with model.depth = 2'),
    (
      dataclasses.replace(BOTH, depth='stack'),
      {},
      'growth.depth: .stack. is not exact',
    ),
    (BOTH, {'base_width': 64}, 'model.base_width = 32'),
    (BOTH, {'width': 24, 'heads': 6}, 'model.norm_eps: 1e-05 is not'),
  ],
)
def test_a_growth_that_is_not_configured_or_exact_is_refused(
  larger, tmp_path, growth, model, expected
):
  with pytest.raises(errors.UserError, match=expected):
    run_lib.begin(larger(growth, model), tmp_path / 'new')
  assert not (tmp_path / 'new').exists()


def test_its_own_epsilon_makes_any_width_exact(parent, larger, tmp_path):
  norm_eps = maps.norm_eps(parent[0].model, 24)
  model = {'width': 24, 'heads': 6, 'norm_eps': norm_eps}
  run_lib.begin(larger(model=model), tmp_path / 'new')


def test_another_seed_is_another_order_of_the_data(larger, tmp_path):
  lineage = warm_start.lineage(tmp_path, larger(seed=5))
  assert lineage['inherited_windows'] == 0 < lineage['inherited_flops']


def test_an_export_s_place_in_the_data_goes_with_it(parent, tmp_path):
  config, small = parent
  export.to_familial(load.load(small), 2, tmp_path / 'alone')
  lineage = storage.read_json(tmp_path / 'alone' / 'lineage.json')
  assert lineage['inherited_windows'] == 8 * config.train.batch_size
  grows = dataclasses.replace(
    load.load(tmp_path / 'alone').config,
    model=dataclasses.replace(config.model, depth=3, exits=(1, 2, 3)),
    train=dataclasses.replace(config.train, init_from='../alone'),
    growth=growth_config.GrowthConfig(depth='identity', state='carry'),
  )
  with pytest.raises(
    errors.UserError, match=r"growth.state: 'carry' is not possible .* 'reset'"
  ):
    run_lib.begin(grows, tmp_path / 'on')
  growth = dataclasses.replace(grows.growth, state='reset')
  grows = dataclasses.replace(grows, growth=growth)
  lineage = warm_start.lineage(tmp_path / 'on', grows)
  assert lineage['inherited_windows'] == 8 * config.train.batch_size


@pytest.mark.parametrize(
  'state', [pytest.param('reset', marks=pytest.mark.slow), 'carry']
)
def test_expand_writes_a_model_to_train_on(
  parent, larger, corpus, tmp_path, capsys, state
):
  (config, small), out = parent, tmp_path / 'out'
  script = tmp_path / 'to.py'
  script.write_text(
    'import dataclasses\n'
    'import ml_collections\n'
    'from experiments import grow\n\n\n'
    f"def get_config(arg=''):\n  config = grow.get_config({str(small)!r})\n"
    '  config.model.update(width=32, heads=8, kv_heads=2, mlp_width=50)\n'
    '  config.model.update(depth=3, exits=(1, 2, 3))\n'
    f"  config.growth.update(width='replicate', state={state!r})\n"
    '  return config\n'
  )
  flags = [
    f'--checkpoint={small}/checkpoints/8',
    f'--to={script}',
    f'--out={out}',
  ]
  assert main_lib.run(['familial', 'expand', *flags]) == 0
  assert 'the same function as step 8' in capsys.readouterr().out
  grown = load.load(out)
  assert grown.config.model == larger().model
  losses = evaluation.losses(
    grown.params,
    grown.config.model,
    batches.heldout(corpus, config.data, 500, 8),
  )
  ends = [row['loss'] for row in _rows(small)]
  np.testing.assert_allclose(losses, [*ends, ends[-1]], rtol=1e-5)
  lineage = storage.read_json(out / 'lineage.json')
  assert lineage['inherited_flops'] == _rows(small)[-1]['flops']
  on = larger(growth_config.GrowthConfig(state=state), init_from=str(out))
  run_lib.begin(on, tmp_path / 'on')
  with run_lib.Run(on, tmp_path / 'on', corpus, False) as run:
    started = run.state()
    assert run.source.first == 8 * config.train.batch_size
  np.testing.assert_array_equal(
    started.params['embedding'], grown.params['embedding']
  )
  assert int(started.opt_state[1].count) == (8 if state == 'carry' else 0)
  with pytest.raises(errors.UserError, match='in another workdir'):
    run_lib.begin(grown.config, out)
  assert main_lib.run(['familial', 'expand', *flags]) == 2
  assert 'is there already' in capsys.readouterr().err


_CHILD = """
import pathlib, pickle, sys
import jax, numpy as np
from familial.expansion import maps
from familial.model import axes
from familial.training import config as train_config
from familial.training import optimizer, sharding, step, warm_start
with open(sys.argv[1], 'rb') as file:
  config, parent = pickle.load(file)
assert len(jax.devices()) == 8
layout = train_config.LayoutConfig(data=2, fsdp=2, tensor=2)
import dataclasses
config = dataclasses.replace(config, layout=layout)
mesh = sharding.mesh(config)
h = optimizer.hyper(config.train, config.model.exits)
growth = maps.plan(config.growth, warm_start.shape(parent), config.model)
shapes = jax.eval_shape(
  lambda: step.init(config.model, 'all', jax.random.key(0), h)
)
put = lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to)
like = jax.tree.map(put, shapes, sharding.shardings(shapes, mesh))
many = warm_start.grow(like, parent, 8, growth, config.train)
one = warm_start.grow(shapes, parent, 8, growth, config.train)
jax.tree.map(np.testing.assert_array_equal, many.params, one.params)
jax.tree.map(
  np.testing.assert_array_equal, many.opt_state[1], one.opt_state[1]
)
kernel = many.params['segment_0']['mlp']['gate']['kernel']
print(kernel.addressable_shards[0].data.size / kernel.size)
"""


def test_eight_devices_grow_what_one_does(parent, larger, tmp_path):
  _, folder = parent
  value = larger(), folder
  process = runs.start(_CHILD, value, tmp_path / 'config', eight=True)
  out, err = process.communicate()
  assert process.returncode == 0, err
  assert json.loads(out) == 1 / 4  # fsdp x tensor.

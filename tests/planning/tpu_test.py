"""Steps compiled for TPUs, by their compiler; `make tpu` has it, no TPU."""

import dataclasses
import re

import pytest

from familial.cli import main
from familial.core import storage
from familial.planning import chips
from familial.planning import collectives
from familial.planning import compiled
from familial.planning import layouts
from familial.planning import roofline

pytestmark = pytest.mark.tpu
TOPOLOGY = 'v5e:2x2'


@pytest.fixture
def config(run_config, shape):
  """A run whose attention a TPU's kernel does."""
  model = shape(
    vocab_size=256, width=128, heads=4, kv_heads=2, mlp_width=256,
    dtype='bfloat16', attention='fused', unroll=False, loss_chunk=64,
  )  # fmt: skip
  config = run_config()
  return dataclasses.replace(
    config, model=model, data=dataclasses.replace(config.data, seq_len=128)
  )


@pytest.mark.parametrize('mesh', [(4, 1, 1), (1, 4, 1), (1, 2, 2)])
def test_a_compiled_step_is_what_arithmetic_expects(config, mesh, monkeypatch):
  texts = []
  read = collectives.of
  monkeypatch.setattr(
    collectives, 'of', lambda text: texts.append(text) or read(text)
  )
  layout = layouts.Layout(*mesh, 1, False)
  laid = layouts.apply(config, layout)
  lowered = compiled.lower(laid, chips.devices(TOPOLOGY))
  program = compiled.compile_(laid, lowered)
  work = roofline.work(laid, layout.mesh)
  assert program.fits
  # Splash attention, forwards and backwards twice.
  kernels = re.findall(r'custom_call_target="tpu_custom_call"', texts[0])
  assert len(kernels) >= 3
  # TPUs gather some weights once more, and sum float32 where bfloat16 would do.
  assert 0.5 < program.sent / work.sent < 2.5


def test_what_a_tpu_cannot_hold_does_not_fit(config):
  huge = dataclasses.replace(
    config,
    train=dataclasses.replace(
      config.train, batch_size=2**16, eval_batch_size=2**16
    ),
  )
  lowered = compiled.lower(huge, chips.devices(TOPOLOGY))
  program = compiled.compile_(huge, lowered)
  assert not program.fits and program.memory > 2**30


@pytest.mark.parametrize(
  ('topology', 'count'),
  [('v4:2x2x4', 16), ('v5e:4x4', 16), ('v5p:2x2x4', 16), ('v6e:2x4', 8)],
)
def test_a_chip_is_a_device(topology, count):
  devices = chips.devices(topology)
  assert len(devices) == count
  assert chips.of(devices, topology).memory > 2**33


def test_no_such_pod_is_one_line(capsys, tmp_path):
  argv = [
    'familial', 'plan', '--config=experiments/single.py', f'--out={tmp_path}',
    '--topology=v5p:3x5x7',
  ]  # fmt: skip
  assert main.run(argv) == 2
  said = capsys.readouterr().err
  assert 'v5p:3x5x7' in said and said.count('\n') == 1


def test_the_command_plans_for_a_pod(capsys, tmp_path):
  argv = [
    'familial', 'plan', '--config=experiments/single.py', f'--out={tmp_path}',
    f'--topology={TOPOLOGY}', '--workers=2',
  ]  # fmt: skip
  assert main.run(argv) == 0
  plan = storage.read_json(tmp_path / 'plan.json')
  assert plan['fits'] and plan['devices'] == 4
  assert plan['versions']['libtpu']
  assert 'all fit' in capsys.readouterr().out
  assert len(list((tmp_path / 'programs').iterdir())) == 3

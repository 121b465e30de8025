"""Steps compiled for TPUs, by their compiler; `make tpu` has it, no TPU."""

import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

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


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('to_all', [False, True])
def test_a_signal_ends_the_compilers_without_a_word(tmp_path, number, to_all):
  command = [
    sys.executable, '-m', 'familial', 'plan', f'--topology={TOPOLOGY}',
    '--config=familial_law:cpu', f'--out={tmp_path}/plan',
  ]  # fmt: skip
  process = subprocess.Popen(
    command, stderr=subprocess.PIPE, text=True, start_new_session=True
  )
  try:
    children = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children')
    while len(children.read_text().split()) < 2:  # A tracker, and a compiler.
      time.sleep(0.1)
    time.sleep(8)  # It has loaded libtpu.
    compilers = children.read_text().split()
    (os.killpg if to_all else os.kill)(process.pid, number)
    said = process.communicate(timeout=60)[1]
  finally:
    process.kill()
  assert process.returncode == 130
  assert said.splitlines()[-1].startswith('familial: ')
  assert not any('trace' in line for line in said.splitlines())
  until = time.monotonic() + 10
  while any(map(_runs, compilers)):
    assert time.monotonic() < until
    time.sleep(0.1)


def _runs(pid):
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except FileNotFoundError:
    return False
  return stat.rpartition(')')[2].split()[0] != 'Z'

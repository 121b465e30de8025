"""Decoding: beside transformers, beside its own plainest mode, over a relay."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks import clock
from familial.convert import export
from familial.convert import load
from familial.data import tokenizers
from familial.model import transformer
from familial.relay import client
from familial.serving import benchmark
from familial.serving import decoding
from familial.serving import generate
from familial.serving import sampling
from familial.training import config as train_config
from familial.training import loop

pytestmark = pytest.mark.bench

ROOT = pathlib.Path(__file__).parents[1]
_NEW, _PROMPT, _CONTEXT = 64, 32, 128


def fresh(width, depth):
  """A model of random parameters: what it says does not matter for its speed."""
  config = train_config.read(
    {
      'data': {'corpus': 'python_source', 'seq_len': _CONTEXT},
      'model': dataclasses.asdict(clock.model(width, depth, 3)),
      'train': {'steps': 1, 'batch_size': 1, 'base_lr': 1e-3},
    }
  )
  params = jax.jit(transformer.init, static_argnums=0)(
    config.model, jax.random.key(0)
  )
  return load.Model(
    pathlib.Path('fresh'), 0, config, params, tokenizers.load(''), ''
  )


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """Two minutes of training on the Python library's source."""
  from experiments import single

  config = single.get_config()
  config.model.update(width=128, heads=4, kv_heads=2, mlp_width=352)
  config.train.update(steps=600, warmup_steps=60, evaluations=1)
  folder = tmp_path_factory.mktemp('trained') / 'run'
  loop.run(train_config.read(config), folder, quiet=True)
  return load.load(folder)


def prompts(rows):
  rng = np.random.default_rng(0)
  return rng.integers(0, 255, (rows, _PROMPT)).tolist()


def plain(model, texts, new=_NEW):
  """Greedy decoding by the last exit."""
  last = model.config.model.granularity
  stages = generate.engines(model, len(texts), (last,), True)
  limits = decoding.Limits(_CONTEXT, new)
  return functools.partial(
    decoding.generate, stages, texts, limits, sampling.Policy()
  )


@pytest.mark.parametrize('rows', [1, 16])
def test_cached_decoding_beside_transformers(tmp_path, rows):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  model = fresh(256, 8)
  export.to_hugging_face(model, 3, tmp_path / 'hf')
  peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'hf')
  texts = prompts(rows)
  inputs = torch.tensor(texts)

  def theirs():
    with torch.inference_mode():
      return peer.generate(
        inputs, attention_mask=torch.ones_like(inputs), do_sample=False,
        min_new_tokens=_NEW, max_new_tokens=_NEW, pad_token_id=0,
        eos_token_id=None,
      )  # fmt: skip

  ours = plain(model, texts)
  ours(), theirs()  # Compiles; warms up.
  seconds = clock.fastest({'ours': ours, 'theirs': theirs}, rounds=3)
  ratio = seconds['theirs'] / seconds['ours']
  print(
    f'\n{rows} texts, {_NEW} tokens each, width 256, 8 layers: '
    f'{rows * _NEW / seconds["ours"]:,.0f} tokens/s, transformers '
    f'{rows * _NEW / seconds["theirs"]:,.0f}: {ratio:.2f} times as fast (1 or '
    'more)'
  )
  assert ratio > 0.8


def test_drafts_and_early_exits_of_a_trained_model(trained):
  found = benchmark.measure(trained)
  for speed in found.speeds:
    print(f'\n{speed.rows} texts, {speed.mode}, {speed.detail}: '
          f'{speed.tokens / speed.seconds:,.0f} tokens/s')  # fmt: skip
  for rows in (1, 16):
    speeds = [speed for speed in found.speeds if speed.rows == rows]
    plainest = next(s for s in speeds if s.detail == 'exit 3')
    base = plainest.tokens / plainest.seconds
    drafted = [s for s in speeds if s.mode == 'speculative']
    best = max(drafted, key=lambda s: s.tokens / s.seconds)
    ratio = best.tokens / best.seconds / base
    print(
      f'{rows} texts: {best.detail}, {best.shares[0]:.0%} accepted (60 or more), '
      f'{ratio:.2f} times as fast as without (above 1)'
    )
    assert best.shares[0] > 0.6 and ratio > 0.8
    for speed in speeds:
      if speed.mode == 'confidence':
        saved = 1 - base / (speed.tokens / speed.seconds)
        print(
          f'{rows} texts: first sure exit, {speed.detail}: skips '
          f'{1 - speed.layers:.0%} of the layers, saves {saved:.0%} of the time '
          f'at a loss {speed.loss_increase:+.2%} (80 % of the layers or more)'
        )


@pytest.mark.parametrize(('width', 'depth'), [(256, 8), (512, 12)])
def test_a_relay_beside_the_unsplit_model(tmp_path, width, depth):
  """Three servers on this host; every token goes through all of them."""
  rows, made = 16, fresh(width, depth)
  model, texts = made.config.model, prompts(rows)
  export.to_segments(made, 3, tmp_path / 'segments')
  folders = [tmp_path / 'segments' / f'segment_{i}' for i in range(3)]
  unsplit = plain(made, texts)
  with contextlib.ExitStack() as stack:
    servers = []
    for folder in folders:
      process = subprocess.Popen(
        [
          sys.executable, '-m', 'familial', 'relay', f'--segment={folder}',
          '--port=0', f'--slots={rows}', f'--rows={rows}',
        ],
        cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, text=True,
      )  # fmt: skip
      stack.callback(process.wait)
      stack.callback(process.terminate)
      said = process.stdout.readline()
      servers.append(f'localhost:{said.split("port ")[1].split(";")[0]}')
    stages = stack.enter_context(client.connect(servers))
    relayed = functools.partial(
      decoding.generate, stages, texts, decoding.Limits(_CONTEXT, _NEW),
      sampling.Policy(threshold=2.0),
    )  # fmt: skip
    assert [c.tokens for c in relayed()] == [c.tokens for c in unsplit()]
    seconds = clock.fastest({'relay': relayed, 'whole': unsplit}, rounds=3)
    hop = stages[1]
    states = model.width * 4
    extra = (hop.sent - hop.positions * states) / len(hop.seconds)
  overhead = seconds['relay'] / seconds['whole'] - 1
  print(
    f'\n16 texts over three servers on one host, width {width}, {depth} layers: '
    f'{1e3 * seconds["whole"] / _NEW:.1f} ms a token of all, '
    f'{overhead:+.1%} time a token (15 % or less); '
    f'{hop.sent / hop.positions:.0f} bytes a position to the second tier, '
    f'{states} of them states; {extra:.0f} more a call'
  )
  # What it costs in time is reported; what it sends is a promise.
  assert extra <= 2048 + 32 * rows

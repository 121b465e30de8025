"""The probe of a trained model: what its layers do, and in which regime.

`familial probe` writes OUT/probe.json and figures. A record holds, for each
quantity of `definitions` and each layer, the mean over tokens with its error,
the standard deviation and quantiles; how many tokens stopped early; and by
groups of windows what `regimes` and `differences` read.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import os
import pathlib
import tempfile

import numpy as np

from familial.analysis import layers
from familial.analysis import middle
from familial.analysis import regimes
from familial.analysis import trajectories
from familial.convert import hugging_face
from familial.convert import load
from familial.core import errors
from familial.core import estimate
from familial.core import storage
from familial.data import batches as batches_lib
from familial.data import config as data_config
from familial.data import packing
from familial.model import config as model_config
from familial.plots import probe
from familial.serving import evaluate


def of_checkpoint(
  folder: str | os.PathLike[str],
  step: str = 'last',
  tokens: int = 0,
  batch: int = 0,
  context: int = 0,
) -> storage.Row:
  """Returns the probe of a model on the held-out text of its run.

  A model from elsewhere has no text of its own here: it reads the corpus that a
  config means by default.

  Args:
    folder: of a run, an export or an import, one of its checkpoints, or
      Hugging Face files of a Llama-like model.
    step: as models.load takes it.
    tokens: held-out targets; 0 for as many as the run's own evaluations.
    batch: windows of a pass; 0 for those of the run's evaluations.
    context: positions of a window; 0 for those that it was trained with.

  Raises:
    UserError: if there is no such model, its corpus is not that of its run,
      `tokens` do not fill a batch, or a window has a single position.
  """
  with _opened(folder, step) as model:
    data, train = model.config.data, model.config.train
    if context > data.seq_len:
      raise errors.UserError(
        f'context: {context} is not allowed; {model.folder} was trained on '
        f'{data.seq_len} positions, the most'
      )
    data = dataclasses.replace(data, seq_len=context or data.seq_len)
    if data.seq_len < 2:
      raise errors.UserError(
        f'context: {data.seq_len} is not allowed; at least 2 positions are '
        'needed: what a layer does to a token is held against what it does to '
        'another of its window'
      )
    wanted = tokens or train.eval_tokens
    rows = batch or min(train.eval_batch_size, -(-wanted // data.seq_len))
    if tokens and tokens < (batch or train.eval_batch_size) * data.seq_len:
      size = batch or train.eval_batch_size
      raise errors.UserError(
        f'tokens: {tokens} is not allowed; a batch of {size} windows of '
        f'{data.seq_len} has {size * data.seq_len}, the least: ask for more, '
        'or for a smaller batch'
      )
    corpus = packing.load(data)
    evaluate.check_corpus(model, corpus)
    batches = batches_lib.heldout(corpus, data, wanted, rows)
    try:
      found = layers.measure(
        model.params, model.config.model, batches, corpus.separator
      )
    except errors.UserError as error:
      raise errors.UserError(f'{model.folder}: {error}') from None
    return record(found, model.config.model, _lineage(model, corpus, data))


def record(
  found: layers.Probed, model: model_config.ModelConfig, lineage: storage.Row
) -> storage.Row:
  """Returns what probe.json holds: see its `definitions`."""
  summary = found.summary
  pooled = {
    name: trajectories.pool(moments)
    for name, moments in summary.moments.items()
  }
  errors_ = {
    name: trajectories.standard_errors(moments)
    for name, moments in summary.moments.items()
  }
  first = {'norm': 0, 'to_last': 0, 'remaining': 0, 'loss': 0}
  quantities = {}
  for name, moments in pooled.items():
    spread = trajectories.sd(moments)
    quantities[name] = [
      {
        'layer': (
          model.exits[at] if name == 'exit_loss' else at + first.get(name, 1)
        ),
        'tokens': int(count),
        'mean': float(mean) if count else None,
        'error': errors_[name][at],
        'sd': float(spread[at]) if count > 1 else None,
        'quantiles': (
          trajectories.quantiles(
            summary.bins[name][at], trajectories.SCALES[name]
          )
          if name in summary.bins
          else None
        ),
      }
      for at, (count, mean) in enumerate(
        zip(moments.count, moments.mean, strict=True)
      )
    ]
  settled_L = np.cumsum(summary.settled.sum(axis=0)) / found.tokens
  early = int(trajectories.EARLY * model.depth)
  return {
    'schema': storage.SCHEMA,
    'model': lineage,
    'tokens': found.tokens,
    'windows': found.windows,
    'definitions': layers.DEFINITIONS,
    'thresholds': {
      'settled': trajectories.SETTLED,
      'early': trajectories.EARLY,
    },
    'levels': list(trajectories.LEVELS),
    'random': {
      'cosine_sd': model.width**-0.5,
      'note': 'of two random vectors of this width; their cosine has mean 0',
    },
    'quantities': quantities,
    'settled': settled_L.tolist(),
    'early': float(settled_L[early]),
    'early_at': [
      {
        'remaining': most,
        'share': trajectories.share_below(
          summary.bins['remaining'][early],
          trajectories.SCALES['remaining'],
          most,
        ),
      }
      for most in trajectories.REMAINING
    ],
    **{
      name: [
        {
          'from': 2**at - 1,
          'to': 2 ** (at + 1) - 2 if at < layers.CLASSES - 1 else None,
          'tokens': int(tokens),
          'early': int(stopped) / int(tokens),
        }
        for at, (stopped, tokens) in enumerate(counts)
        if tokens
      ]
      for name, counts in found.early.items()
    },
    'groups': {
      'settled': summary.settled.tolist(),
      **{
        name: {
          part: getattr(summary.moments[name], part).tolist()
          for part in trajectories.Moments._fields
        }
        for name in trajectories.NEEDED
      },
    },
  }


def write(found: Sequence[storage.Row], out: str | os.PathLike[str]) -> str:
  """Writes probes, their regimes and figures; returns a summary line.

  Args:
    found: records, as of `of_checkpoint`.
    out: folder of a single one; of several, each has a folder in it, named as
      its run, and depth.json and depth.png say what follows from all.
  """
  out = pathlib.Path(out)
  if len(found) == 1:
    _write(found[0], out)
    return f'{text(found[0])} -> {out / "probe.json"}'
  taken: dict[str, int] = {}
  for each in found:
    name = each['model']['run']
    taken[name] = taken.get(name, 0) + 1
    _write(each, out / (f'{name}_{taken[name]}' if taken[name] > 1 else name))
  networks = [middle.of_record(each) for each in found]
  slope = middle.angle_exponent(networks)
  answer = _regime(networks)
  storage.write_json(
    out / 'depth.json',
    {
      'schema': storage.SCHEMA,
      'models': [each['model']['run'] for each in found],
      'depths': [network.depth for network in networks],
      'middle_turn': [
        middle.turn(network) if network.depth > 2 else None
        for network in networks
      ],
      'angle_exponent': slope and dataclasses.asdict(slope),
      'level': estimate.LEVEL,
      'definitions': middle.DEFINITIONS,
      'regime': answer and dataclasses.asdict(answer),
    },
  )
  probe.draw_depths(found, slope, out)
  line = f'{len(found)} models'
  if slope is not None:
    low, high = (f'{x:.2f}' for x in (slope.lo, slope.hi))
    line += (
      f": a middle layer's turn falls as depth^{slope.value:.2f} [{low}, "
      f'{high}]'
    )
  if answer is not None:
    line += f'; {regimes.text(answer)}'
  return f'{line} -> {out / "depth.json"}'


def text(found: storage.Row) -> str:
  """Returns one line on a probe."""
  model, answer = found['model'], _regime([middle.of_record(found)])
  line = f'{model["run"]} at step {model["step"]}, {model["depth"]} layers: '
  if answer is not None:
    value = {each.name: each.value for each in answer.evidence}
    line += (
      f'{regimes.text(answer)}; alignment of neighbouring updates '
      f'{value["alignment"]:.2f}, '
    )
  return (
    f'{line}{100 * found["early"]:.1f} % of tokens stop early, over '
    f'{found["tokens"]:,} tokens'
  )


def _write(found: storage.Row, folder: pathlib.Path) -> None:
  answer = _regime([middle.of_record(found)])
  regime = answer and {
    **dataclasses.asdict(answer),
    'definitions': middle.DEFINITIONS,
    'bounds': regimes.BOUNDS,
  }
  storage.write_json(folder / 'probe.json', {**found, 'regime': regime})
  probe.draw(found, folder)


def _regime(
  networks: Sequence[trajectories.Summary],
) -> regimes.Answer | None:
  """Returns the regime; None where no model is deep enough to tell."""
  if max(network.depth for network in networks) < middle.LEAST_DEPTH:
    return None
  return regimes.classify(networks)


@contextlib.contextmanager
def _opened(folder: str | os.PathLike[str], step: str) -> Iterator[load.Model]:
  """Reads a model; Hugging Face files by an import that is not kept."""
  path = pathlib.Path(folder) / 'config.json'
  values = storage.read_json(path) if path.exists() else None
  if not isinstance(values, dict) or 'architectures' not in values:
    yield load.load(folder, step)
    return
  with tempfile.TemporaryDirectory() as place:
    out = pathlib.Path(place) / pathlib.Path(folder).absolute().name
    hugging_face.from_hugging_face(folder, (), 'head', out)
    yield load.load(out, step)


def _lineage(
  model: load.Model, corpus: packing.Corpus, data: data_config.DataConfig
) -> storage.Row:
  """What is known of where a model comes from."""
  config = model.config
  shape, train = config.model, config.train
  trained = model.step * train.batch_size * config.data.seq_len
  return {
    'run': model.folder.absolute().name,
    'step': model.step,
    'cell': config.cell,
    'arm': config.arm,
    'budget': config.budget,
    'tokens_trained': trained,
    'seed': train.seed,
    'base_lr': train.base_lr,
    'width': shape.width,
    'depth': shape.depth,
    'heads': shape.heads,
    'mlp_width': shape.mlp_width,
    'vocab': shape.vocab_size,
    'exits': list(shape.exits),
    'exit_kind': shape.exit_kind,
    'weighting': train.weighting,
    'corpus': corpus.name,
    'fingerprint': corpus.fingerprint,
    'context': data.seq_len,
    'document_mask': data.document_mask,
    'lineage': storage.read_json(model.folder / 'lineage.json'),
  }

"""Evaluation of a family on held-out text: loss, accuracy, calibration, exits.

Shapes: G exits chosen, B rows of a batch, W windows, L positions, V vocabulary.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from familial.convert import load
from familial.convert import segments
from familial.core import errors
from familial.core import storage
from familial.core import text
from familial.data import batches as batches_lib
from familial.data import packing
from familial.data import tokenizers
from familial.model import config as model_config
from familial.model import flops as flops_lib
from familial.model import transformer
from familial.serving import sampling
from familial.serving import thresholds
from familial.training import evaluation as evaluation_lib

Array = jax.Array
LOSS_INCREASE = 0.01  # at which a threshold is chosen
# The one confidence that is a probability of being right; a gap and an entropy
# only order tokens.
_CALIBRATED = 'max_prob'


@dataclasses.dataclass(frozen=True)
class Score:
  """Quality of one exit.

  Attributes:
    exit: number of the exit, from 1.
    layer: layer that the exit follows.
    params: N of its stand-alone model, without embeddings.
    loss: mean cross-entropy in nats per token.
    loss_error: standard error of `loss`, with windows as independent; None for
      fewer than two windows.
    loss_per_byte: loss in nats per byte of text.
    accuracy: share of tokens predicted correctly.
    calibration_error: expected calibration error of max_prob over `bins`.
    bins: reliability of max_prob.
  """

  exit: int
  layer: int
  params: int
  loss: float
  loss_error: float | None
  loss_per_byte: float
  accuracy: float
  calibration_error: float
  bins: tuple[thresholds.Bin, ...]


@text.brief
@dataclasses.dataclass(frozen=True)
class Evaluation:
  """A family's evaluation; the schema of evaluation.json.

  Attributes:
    run: name of the model's folder.
    step: step of the checkpoint.
    corpus: fingerprint of the text.
    tokens: number of targets that count.
    windows: number of sequences that hold them.
    context: positions of a window.
    bytes_per_token: bytes of text per counted target.
    depth: layers of the trunk.
    exits: scores of the chosen exits.
    curves: outcomes by rising threshold for each kind of confidence; empty for
      a single exit.
    chosen: for each kind, the lowest threshold whose loss exceeds the last
      chosen exit's by at most 1 %.
    oracle: the lowest loss that a choice among the exits can have; None for a
      single exit.
  """

  run: str
  step: int
  corpus: str
  tokens: int
  windows: int
  context: int
  bytes_per_token: float
  depth: int
  exits: tuple[Score, ...]
  curves: dict[str, tuple[thresholds.Outcome, ...]]
  chosen: dict[str, thresholds.Outcome]
  oracle: thresholds.Outcome | None


def evaluate(
  model: load.Model,
  exits: Sequence[int] | None = None,
  tokens: int | None = None,
  corpus: packing.Corpus | None = None,
  any_text: bool = False,
) -> Evaluation:
  """Evaluates exits on the fixed held-out set of the model's run.

  Args:
    model: the model.
    exits: exits, increasing; all by default. The last of them is the baseline
      of the others.
    tokens: held-out targets; by default as many as in training, which gives the
      same losses.
    corpus: the run's corpus; read by default.
    any_text: whether the text may be another one than the run's.

  Raises:
    UserError: for exits that do not exist, another corpus than the run's, or a
      model whose losses are not finite.
  """
  config = model.config
  chosen = tuple(
    range(1, config.model.granularity + 1) if exits is None else exits
  )
  segments.check_exits(config.model, chosen)
  corpus = corpus or packing.load(config.data)
  check_corpus(model, corpus, any_text)
  batches = heldout(model, tokens, corpus)
  found = readings(model.params, config.model, batches, chosen)
  if not np.isfinite(found.nats_GxWxL).all():
    raise errors.UserError(
      f'{model.folder} at step {model.step} has losses that are not finite: '
      'it has diverged'
    )
  bytes_per_token = batches_lib.heldout_bytes_per_token(corpus, batches)
  curves, oracle = {}, None
  if len(chosen) > 1:
    curves = {
      kind: tuple(thresholds.curve(found, kind))
      for kind in sampling.CONFIDENCES
    }
    oracle = thresholds.oracle(found)
  return Evaluation(
    run=model.folder.absolute().name,
    step=model.step,
    corpus=corpus.fingerprint,
    tokens=int(found.counted_WxL.sum()),
    windows=len(found.counted_WxL),
    context=config.data.seq_len,
    bytes_per_token=bytes_per_token,
    depth=config.model.depth,
    exits=tuple(
      _score(config.model, found, index, bytes_per_token)
      for index in range(len(chosen))
    ),
    curves=curves,
    chosen={
      kind: thresholds.threshold_for(outcomes, LOSS_INCREASE)
      for kind, outcomes in curves.items()
    },
    oracle=oracle,
  )


def heldout(
  model: load.Model, tokens: int | None, corpus: packing.Corpus
) -> list[batches_lib.Batch]:
  """Returns the held-out batches of a model's run, by default all of them."""
  train = model.config.train
  return batches_lib.heldout(
    corpus,
    model.config.data,
    train.eval_tokens if tokens is None else tokens,
    train.eval_batch_size,
  )


def readings(
  params: transformer.Params,
  model: model_config.ModelConfig,
  batches: Iterable[batches_lib.Batch],
  exits: tuple[int, ...],
) -> thresholds.Readings:
  """Returns the predictions of exits for each token of batches of one shape.

  Args:
    params: parameters of the model.
    model: shape of the model.
    batches: held-out batches; rows without a counted target are left out.
    exits: numbers of the exits, increasing.
  """
  found, counted, documents = [], [], []
  for batch in batches:
    rows = np.any(batch['weights_BxL'] > 0, axis=1)
    read = _read(model, exits, params, batch)
    found.append(
      jax.tree.map(lambda x, rows=rows: np.asarray(x)[:, rows], read)
    )
    counted.append(batch['weights_BxL'][rows] > 0)
    none = np.zeros_like(batch['inputs_BxL'])
    documents.append(batch.get('segments_BxL', none)[rows])
  nats, (correct, confidences) = jax.tree.map(
    lambda *parts: np.concatenate(parts, axis=1), *found
  )
  return thresholds.Readings(
    exits=exits,
    layers=tuple(model.exits[exit_ - 1] for exit_ in exits),
    nats_GxWxL=nats,
    correct_GxWxL=correct,
    confidences=confidences,
    counted_WxL=np.concatenate(counted),
    documents_WxL=np.concatenate(documents),
  )


def on_text(model: load.Model, data: Mapping[str, Any]) -> load.Model:
  """Returns a model with other keys of its text; its tokenizer stays.

  Args:
    model: the model.
    data: values of keys of DataConfig.

  Raises:
    UserError: if a value is not allowed, or windows are longer than those that
      the model was trained on.
  """
  if not data:
    return model
  was = model.config.data
  values = {'tokenizer': model.tokenizer_path or was.tokenizer, **data}
  if values.get('corpus', was.corpus) != 'text_files':
    values.setdefault('path', '')
  config = dataclasses.replace(was, **values)
  errors.require(
    config.seq_len <= was.seq_len,
    'data.seq_len',
    config.seq_len,
    f'at most the {was.seq_len} positions that {model.folder} was trained on',
  )
  return dataclasses.replace(
    model, config=dataclasses.replace(model.config, data=config)
  )


def trained_on(model: load.Model) -> str | None:
  """Returns the fingerprint of a run's corpus; None for an import."""
  lineage = storage.read_json(model.folder / 'lineage.json')
  corpus: str | None = lineage.get('corpus')
  return corpus


def check_corpus(
  model: load.Model, corpus: packing.Corpus, any_text: bool = False
) -> None:
  """Refuses another tokenizer than the model's, and another text than its run's.

  Args:
    model: the model.
    corpus: the text.
    any_text: whether another text is allowed.
  """
  known = trained_on(model)
  if not any_text and known not in (None, corpus.fingerprint):
    raise errors.UserError(
      f'{model.folder} was trained on corpus {known}, not '
      f'{corpus.fingerprint}, which is what data.corpus={corpus.name!r} gives '
      'here now; --data.path and other keys of --data allow other text'
    )
  if tokenizers.load(corpus.tokenizer_path).mark != model.tokenizer.mark:
    raise errors.UserError(
      f'data.tokenizer: {model.config.data.tokenizer!r} is not the tokenizer of '
      f'{model.folder}'
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _read(
  model: model_config.ModelConfig,
  exits: tuple[int, ...],
  params: transformer.Params,
  batch: dict[str, Array],
) -> tuple[Array, tuple[Array, dict[str, Array]]]:
  """Returns nats, and correctness and confidences by kind, all [G, B, L]."""

  def read(logits_V: Array, target: Array) -> tuple[Array, dict[str, Array]]:
    return jnp.argmax(logits_V) == target, {
      kind: sampling.confidence(logits_V, kind) for kind in sampling.CONFIDENCES
    }

  states = transformer.exit_states(
    params, model, batch['inputs_BxL'], batch.get('segments_BxL')
  )
  found = [
    evaluation_lib.read_exit(params, model, e, states[e - 1], batch, read)
    for e in exits
  ]
  return jax.tree.map(lambda *parts: jnp.stack(parts), *found)


def _score(
  model: model_config.ModelConfig,
  found: thresholds.Readings,
  index: int,
  bytes_per_token: float,
) -> Score:
  """Returns the score of the exit of this index in the readings."""
  counted_WxL, exit_ = found.counted_WxL, found.exits[index]
  loss, error = evaluation_lib.ratio(
    evaluation_lib.by_window(found.nats_GxWxL[index], counted_WxL),
    counted_WxL.sum(axis=1),
  )
  correct = found.correct_GxWxL[index][counted_WxL]
  bins = thresholds.reliability(
    found.confidences[_CALIBRATED][index][counted_WxL], correct
  )
  return Score(
    exit=exit_,
    layer=found.layers[index],
    params=flops_lib.params(model, exit_),
    loss=loss,
    loss_error=error,
    loss_per_byte=loss / bytes_per_token,
    accuracy=float(correct.mean()),
    calibration_error=thresholds.calibration_error(bins),
    bins=bins,
  )

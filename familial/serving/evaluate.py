"""A family measured on its held-out text: loss, accuracy, calibration, exits.

Shapes: G exits chosen, B rows of a batch, W windows, L positions, D width, V
vocabulary.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import functools
import itertools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from familial.convert import load
from familial.core import errors
from familial.core import storage
from familial.data import batches as batches_lib
from familial.data import packing
from familial.model import config as model_config
from familial.model import flops as flops_lib
from familial.model import transformer
from familial.serving import sampling
from familial.serving import thresholds
from familial.training import evaluation as evaluation_lib

Array = jax.Array
LOSS_INCREASE = 0.01  # at which a threshold is named
# The one confidence that is a probability of being right. A gap and an entropy
# are not: they order tokens, and no accuracy is theirs to miss.
_CALIBRATED = 'max_prob'
_LOGITS = 2**24  # in memory at once, 64 MiB of float32


@dataclasses.dataclass(frozen=True)
class Score:
  """How good an exit is.

  Attributes:
    exit: its number, from 1.
    layer: after which it stands.
    params: N of its stand-alone model, without embeddings.
    loss: mean cross-entropy, in nats per token.
    loss_error: standard error of `loss`, with windows as independent; None for
      fewer than two windows.
    loss_per_byte: in nats per byte of the text.
    accuracy: share of tokens that were the likeliest.
    calibration_error: mean distance of confidence and accuracy over `bins`, by
      tokens; of max_prob alone, for gap and entropy are no probabilities of
      being right: their worth is what the curves say.
    bins: reliability of max_prob, of equal width.
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


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """A family on its held-out text; evaluation.json has these keys.

  Attributes:
    run: name of its folder.
    step: of the checkpoint.
    corpus: fingerprint of the text.
    tokens: targets that count.
    windows: sequences that they are in.
    context: positions of a window.
    bytes_per_token: of these targets.
    depth: layers of the whole trunk.
    exits: the chosen exits.
    curves: for each kind of confidence, outcomes by rising threshold; empty for
      a single exit, which leaves no choice.
    chosen: for each kind, the lowest threshold whose loss is at most 1 % above
      that of the last chosen exit.
    oracle: the lowest loss that choosing among the exits can have; None for a
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
  curves: dict[str, list[thresholds.Outcome]]
  chosen: dict[str, thresholds.Outcome]
  oracle: thresholds.Outcome | None


def evaluate(
  model: load.Model,
  exits: Sequence[int] | None = None,
  tokens: int | None = None,
  corpus: packing.Corpus | None = None,
) -> Evaluation:
  """Measures exits on the fixed held-out set of the model's run.

  Args:
    model: as it was read.
    exits: which, increasing; all by default. The last of them is what the
      others are compared with.
    tokens: held-out targets; as many as in training by default, which gives the
      same losses.
    corpus: of the run, where it is at hand; otherwise it is read.

  Raises:
    UserError: for what is no exit, another corpus than the run's, or a model
      whose losses are not finite.
  """
  config = model.config
  chosen = _chosen(config.model, exits)
  corpus = corpus or packing.load(config.data)
  check_corpus(model, corpus)
  batches = batches_lib.heldout(
    corpus,
    config.data,
    config.train.eval_tokens if tokens is None else tokens,
    config.train.eval_batch_size,
  )
  found = readings(model.params, config.model, batches, chosen)
  if not np.isfinite(found.nats_GxWxL).all():
    raise errors.UserError(
      f'{model.folder} at step {model.step} has losses that are not finite: '
      'it has diverged'
    )
  bytes_per_token = batches_lib.heldout_bytes_per_token(corpus, batches)
  curves, oracle = {}, None
  if len(chosen) > 1:
    curves = {k: thresholds.curve(found, k) for k in sampling.CONFIDENCES}
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


def readings(
  params: transformer.Params,
  model: model_config.ModelConfig,
  batches: Iterable[batches_lib.Batch],
  exits: tuple[int, ...],
) -> thresholds.Readings:
  """Returns what exits say of each token of batches of one shape.

  Args:
    params: of the model.
    model: its shape.
    batches: as of batches.heldout; rows without a target that counts are left
      out.
    exits: numbers of the exits, increasing.
  """
  at_once = max(1, _LOGITS // model.vocab_size)
  found, counted, documents = [], [], []
  for batch in batches:
    rows = np.any(batch['weights_BxL'] > 0, axis=1)
    read = _read(model, exits, at_once, params, batch)
    found.append(
      jax.tree.map(lambda x, rows=rows: np.asarray(x)[:, rows], read)
    )
    counted.append(batch['weights_BxL'][rows] > 0)
    none = np.zeros_like(batch['inputs_BxL'])
    documents.append(batch.get('segments_BxL', none)[rows])
  nats, correct, confidences = jax.tree.map(
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


def write(
  evaluation: Evaluation, out: str | os.PathLike[str], draw: bool
) -> str:
  """Writes evaluation.json and figures; returns the table and a summary line.

  Args:
    evaluation: what was measured.
    out: folder, made if missing.
    draw: figures as PNG beside it.
  """
  out = pathlib.Path(out)
  path = out / 'evaluation.json'
  values = {'schema': storage.SCHEMA, **dataclasses.asdict(evaluation)}
  storage.write_json(path, values)
  if draw:
    from familial.plots import evaluation as evaluation_lib

    evaluation_lib.draw(evaluation, out)
  return f'{text(evaluation)} -> {path}'


def text(evaluation: Evaluation) -> str:
  """Returns tables of exits and of thresholds, and a summary line below them."""
  head: tuple[str, ...] = ('exit', 'layer', 'N', 'nats/token', 'error', 'nats/byte', 'top-1',
          'calibration error')  # fmt: skip
  rows: list[tuple[str, ...]] = [
    (
      str(score.exit),
      str(score.layer),
      f'{score.params:,}',
      f'{score.loss:.4f}',
      '-' if score.loss_error is None else f'{score.loss_error:.4f}',
      f'{score.loss_per_byte:.4f}',
      f'{100 * score.accuracy:.2f} %',
      f'{100 * score.calibration_error:.2f} %',
    )
    for score in evaluation.exits
  ]
  parts = [_table(head, rows)]
  last = evaluation.exits[-1]
  if evaluation.oracle:
    head = ('confidence', 'threshold', 'nats/token', 'increase', 'layers',
            'deferred', 'answered by exit')  # fmt: skip
    rows = [
      _line(kind, outcome)
      for kind, outcome in (
        *evaluation.chosen.items(),
        ('best exit', evaluation.oracle),
      )
    ]
    parts.append(
      f'Lowest thresholds with a loss at most {100 * LOSS_INCREASE:g} % above '
      f"exit {last.exit}'s, of {last.layer} layers:\n{_table(head, rows)}"
    )
  losses = ', '.join(f'{score.loss:.4f}' for score in evaluation.exits)
  parts.append(
    f'{evaluation.run} at step {evaluation.step}: loss by exit {losses} nats '
    f'per token, over {evaluation.tokens:,} tokens'
  )
  return '\n\n'.join(parts)


def _line(name: str, outcome: thresholds.Outcome) -> tuple[str, ...]:
  interval = ''
  if outcome.increase_low is not None and outcome.increase_high is not None:
    low, high = 100 * outcome.increase_low, 100 * outcome.increase_high
    interval = f' [{low:.2f}, {high:.2f}]'
  return (
    name,
    '-' if outcome.threshold is None else f'{outcome.threshold:.6g}',
    f'{outcome.loss:.4f}',
    f'{100 * outcome.increase:.2f} %{interval}',
    f'{outcome.layers:.2f}',
    f'{outcome.layers_deferred:.2f}',
    ', '.join(f'{100 * share:.1f} %' for share in outcome.shares),
  )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  lines = [head, *rows]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return '\n'.join(
    '  '.join(
      cell.rjust(width) for cell, width in zip(line, widths, strict=True)
    )
    for line in lines
  )


def _chosen(
  model: model_config.ModelConfig, exits: Sequence[int] | None
) -> tuple[int, ...]:
  """Returns the exits that are asked for, all of them by default."""
  if exits is None:
    return tuple(range(1, model.granularity + 1))
  for exit_ in exits:
    model.submodel(exit_)  # Refuses what is no exit.
  if not exits or any(a >= b for a, b in itertools.pairwise(exits)):
    raise errors.UserError(
      f'exits: {tuple(exits)} is not allowed; it must be increasing numbers '
      f'from 1 to {model.granularity}'
    )
  return tuple(exits)


def check_corpus(model: load.Model, corpus: packing.Corpus) -> None:
  """Refuses a corpus that the model's run did not have."""
  known = storage.read_json(model.folder / 'lineage.json').get('corpus')
  if known not in (None, corpus.fingerprint):  # An import knows of none.
    raise errors.UserError(
      f'{model.folder} was trained on corpus {known}, not '
      f'{corpus.fingerprint}, which is what data.corpus={corpus.name!r} gives '
      'here now'
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _read(
  model: model_config.ModelConfig,
  exits: tuple[int, ...],
  at_once: int,
  params: transformer.Params,
  batch: dict[str, Array],
) -> tuple[Array, Array, dict[str, Array]]:
  """Returns nats, whether the likeliest token is right, and confidences by kind,
  all [G, B, L]; logits are there for `at_once` positions of one exit."""
  segments = batch.get('segments_BxL')
  targets_BxL = batch['targets_BxL']
  at_once = min(at_once, targets_BxL.size)
  states = transformer.exit_states(params, model, batch['inputs_BxL'], segments)
  found = []
  for exit_ in exits:
    h_BxLxD = transformer.head_state(
      params, model, exit_, states[exit_ - 1], segments
    )
    w_DxV = transformer.unembedding(params, model, exit_)

    def one(
      position: tuple[Array, Array], w_DxV: Array = w_DxV
    ) -> tuple[Array, Array, dict[str, Array]]:
      h_D, target = position
      logits_V = transformer.read_out(h_D, w_DxV)
      nats = jax.nn.logsumexp(logits_V) - logits_V[target]
      confidences = {
        kind: sampling.confidence(logits_V, kind)
        for kind in sampling.CONFIDENCES
      }
      return nats, jnp.argmax(logits_V) == target, confidences

    positions = (h_BxLxD.reshape(-1, model.width), targets_BxL.reshape(-1))
    found.append(jax.lax.map(one, positions, batch_size=at_once))
  return jax.tree.map(
    lambda *parts: jnp.stack(parts).reshape(-1, *targets_BxL.shape), *found
  )


def _score(
  model: model_config.ModelConfig,
  found: thresholds.Readings,
  index: int,
  bytes_per_token: float,
) -> Score:
  """Returns the score of the exit at a place among those that were read."""
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

"""Benchmark of decoding in each mode; the record of decoding.json."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import time
from typing import ParamSpec
from typing import TypeVar

import numpy as np

from familial.convert import load
from familial.core import text
from familial.data import batches as batches_lib
from familial.data import packing
from familial.serving import decoding
from familial.serving import engine as engine_lib
from familial.serving import evaluate
from familial.serving import generate
from familial.serving import propagation
from familial.serving import sampling
from familial.serving import speculation
from familial.serving import thresholds

P = ParamSpec('P')
T = TypeVar('T')
_REPEATS = 3
_DRAFTS = 3


@dataclasses.dataclass(frozen=True)
class Speed:
  """Measured speed of one way to decode.

  Attributes:
    mode: exit, confidence or speculative.
    detail: which exit, or how skipped layers are filled.
    rows: prompts at once.
    tokens: number of generated tokens.
    seconds: least time of several runs, without compilation.
    threshold: threshold of mode confidence.
    loss_increase: relative increase of the loss over the last exit's, on
      held-out text.
    layers: share of the trunk's layers that generated tokens are computed
      through in the end, those computed later by deferral included.
    shares: shares of the tokens by exit; of drafts, the share accepted.
  """

  mode: str
  detail: str
  rows: int
  tokens: int
  seconds: float
  threshold: float | None = None
  loss_increase: float | None = None
  layers: float | None = None
  shares: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Hop:
  """Measured traffic between the client and one server of a relay.

  Attributes:
    dtype: type of the states.
    to: exit at the end of the server's segment.
    bytes: bytes per generated token, requests and replies, headers included.
    agree: share of the tokens equal to those with float32 states, up to the
      first difference in each text.
    state_error: relative L2 error of the states handed on to the server, on
      held-out text; None for the first, which takes tokens.
    loss_increase: relative increase of the loss of exit `to` on held-out text
      over float32's, with all states before it packed.
  """

  dtype: str
  to: int
  bytes: float
  agree: float
  state_error: float | None
  loss_increase: float


@text.brief
@dataclasses.dataclass(frozen=True)
class Decoding:
  """Result of a benchmark; the schema of decoding.json.

  Attributes:
    run: name of the model's folder.
    step: step of the checkpoint.
    prompt_tokens: tokens of each prompt, the beginning of a held-out window.
    speeds: speeds of all modes; a single exit has one mode.
    hops: traffic of a relay through all exits, at the threshold of deferred
      computation, for all rows at once; empty if no relay is measured.
  """

  run: str
  step: int
  prompt_tokens: int
  speeds: tuple[Speed, ...]
  hops: tuple[Hop, ...] = ()


def measure(
  model: load.Model,
  rows: Sequence[int] = (1, 16),
  tokens: int | None = None,
  corpus: packing.Corpus | None = None,
  say: Callable[[str], None] = lambda line: None,
) -> Decoding:
  """Decodes the second halves of held-out windows in every mode.

  Thresholds are those with a loss at most 1 % above the last exit's. Without
  hops: see relay.benchmark.

  Args:
    model: the family.
    rows: numbers of prompts at once.
    tokens: held-out targets that thresholds are chosen on; by default as many
      as in training.
    corpus: the run's corpus; read by default.
    say: receives a line before each measurement.

  Raises:
    UserError: if the corpus cannot be read, or the context is too short to
      draft.
  """
  shape = model.config.model
  corpus = corpus or packing.load(model.config.data)
  batches = evaluate.heldout(model, tokens, corpus)
  say('thresholds, on held-out text')
  exits = tuple(range(1, shape.granularity + 1))
  readings = evaluate.readings(model.params, shape, batches, exits)
  chosen = {}
  if len(exits) > 1:
    chosen['defer'] = thresholds.threshold_for(
      thresholds.curve(readings, 'max_prob'), evaluate.LOSS_INCREASE
    )
    chosen['propagate'] = thresholds.bisect(
      lambda threshold: propagation.at(
        model.params, shape, batches, readings, 'max_prob', threshold
      ),
      evaluate.LOSS_INCREASE,
    )
  speeds: list[Speed] = []
  for count in rows:
    say(f'speeds, {count} at once')
    speeds += _speeds(model, prompts(model, batches, count), readings, chosen)
  return Decoding(
    run=model.folder.absolute().name,
    step=model.step,
    prompt_tokens=model.context // 2,
    speeds=tuple(speeds),
  )


def prompts(
  model: load.Model, batches: Sequence[batches_lib.Batch], count: int
) -> list[list[int]]:
  """Returns the first halves of the first held-out windows."""
  windows = np.concatenate([batch['inputs_BxL'] for batch in batches])
  texts: list[list[int]] = windows[:count, : model.context // 2].tolist()
  return texts


def limits(model: load.Model) -> decoding.Limits:
  """Returns limits that no stop token ends: all modes generate as many tokens."""
  return decoding.Limits(model.context, model.context)


def _speeds(
  model: load.Model,
  texts: list[list[int]],
  readings: thresholds.Readings,
  chosen: dict[str, thresholds.Outcome],
) -> Iterator[Speed]:
  """Yields the speed of each mode on prompts of equal length."""
  shape, most, count = model.config.model, limits(model), len(texts)
  layers, last = np.asarray(shape.exits), shape.granularity
  loss = readings.nats_GxWxL[:, readings.counted_WxL].mean(1)
  made = count * (model.context - model.context // 2)

  def engines(*cuts: int, all_rows: bool = True) -> list[engine_lib.Engine]:
    return generate.engines(model, count, cuts, all_rows)

  for exit_ in range(1, last + 1):
    _, seconds = _timed(
      decoding.generate, engines(exit_), texts, most, sampling.Policy()
    )
    yield Speed(
      'exit', f'exit {exit_}', count, made, seconds,
      loss_increase=float(loss[exit_ - 1] / loss[-1] - 1),
      layers=float(layers[exit_ - 1] / shape.depth),
    )  # fmt: skip
  for fill, outcome in chosen.items():
    policy = sampling.Policy(threshold=outcome.threshold or 0.0, fill=fill)
    stages = engines(*range(1, last + 1), all_rows=False)
    found, seconds = _timed(decoding.generate, stages, texts, most, policy)
    places = np.concatenate([text.exits for text in found])
    yield Speed(
      'confidence', fill, count, made, seconds,
      threshold=outcome.threshold,
      loss_increase=outcome.increase,
      layers=float(layers[computed(found, fill)].mean() / shape.depth),
      shares=tuple((np.bincount(places, minlength=last) / made).tolist()),
    )  # fmt: skip
  for exit_ in range(1, last):
    draft, deep = engines(exit_, last)
    (_, drafting), seconds = _timed(
      speculation.speculate, draft, deep, texts, most, sampling.Sampling(),
      _DRAFTS,
    )  # fmt: skip
    yield Speed(
      'speculative', f'drafts of exit {exit_}', count, made, seconds,
      loss_increase=0.0,
      shares=(drafting.acceptance,),
    )  # fmt: skip


def computed(texts: Sequence[decoding.Completion], fill: str) -> np.ndarray:
  """Returns the index of the deepest exit that each token is computed through.

  With deferral this is the deepest exit of the token and all later ones.
  """
  rows = [np.asarray(text.exits) for text in texts]
  if fill == 'defer':
    rows = [np.maximum.accumulate(row[::-1])[::-1] for row in rows]
  return np.concatenate(rows)


def _timed(
  function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> tuple[T, float]:
  """Returns a result, and the least time of several calls after a first one."""
  result, seconds = function(*args, **kwargs), []
  for _ in range(_REPEATS):
    tick = time.monotonic()
    result = function(*args, **kwargs)
    seconds.append(time.monotonic() - tick)
  return result, min(seconds)

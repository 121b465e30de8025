"""How fast a family decodes in each mode, and what a relay of it sends."""

from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import dataclasses
import functools
import os
import pathlib
import time
from typing import Any

import numpy as np

from familial.convert import load
from familial.convert import segments
from familial.core import storage
from familial.data import batches as batches_lib
from familial.data import packing
from familial.relay import client
from familial.relay import packed_states
from familial.relay import server
from familial.relay import wire
from familial.serving import decoding
from familial.serving import engine as tier_lib
from familial.serving import evaluate
from familial.serving import generate
from familial.serving import propagation
from familial.serving import sampling
from familial.serving import speculation
from familial.serving import thresholds

_REPEATS = 3
_DRAFTS = 3


@dataclasses.dataclass(frozen=True)
class Speed:
  """A way to decode, measured.

  Attributes:
    mode: exit, confidence or speculative.
    detail: which exit, or how.
    rows: prompts at once.
    tokens: generated.
    seconds: the least of some runs, nothing compiled.
    threshold: of confidence.
    loss_increase: over the last exit's, on held-out text, as a share.
    layers: of the trunk that generated tokens are taken through in the end, as
      a share of all: with deferral also those that take a token in later.
    shares: of the tokens, by exit; of drafts, those accepted.
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
  """What goes between the client and a tier of a relay.

  Attributes:
    dtype: of the states.
    to: the exit at the tier's end.
    bytes: both ways, requests and replies, headers included; a generated token
      of all.
    agree: share of the tokens that are those of float32 states, up to the first
      that is not, in each text.
    state_error: of the states handed on to it, packed and unpacked, on held-out
      text: L2 norm of the difference over that of the states; None for the
      first, which gets tokens.
    loss_increase: of exit `to` over float32's on held-out text, with every
      hand-off up to it packed, as a share.
  """

  dtype: str
  to: int
  bytes: float
  agree: float
  state_error: float | None
  loss_increase: float


@dataclasses.dataclass(frozen=True)
class Decoding:
  """What was measured; decoding.json has these keys.

  Attributes:
    run: name of its folder.
    step: of the checkpoint.
    prompt_tokens: of each prompt, which are beginnings of held-out windows.
    speeds: of each mode; of a single exit, the one mode that it has.
    hops: of a relay through all exits, at the threshold of deferred
      computation, for all rows at once; none for a single exit.
  """

  run: str
  step: int
  prompt_tokens: int
  speeds: tuple[Speed, ...]
  hops: tuple[Hop, ...]


def measure(
  model: load.Model,
  rows: Sequence[int] = (1, 16),
  tokens: int | None = None,
  corpus: packing.Corpus | None = None,
  say: Callable[[str], None] = lambda line: None,
) -> Decoding:
  """Decodes the second halves of held-out windows, in every mode.

  Thresholds are those with a loss at most 1 % above the last exit's. A model of
  a single exit has nothing to choose, to draft with or to hand on: it is timed
  alone.

  Args:
    model: the family.
    rows: numbers of prompts at once.
    tokens: held-out targets that thresholds are chosen on, and states packed;
      as many as in training by default.
    corpus: of the run, where it is at hand.
    say: is told in a line what is measured next.

  Raises:
    UserError: if the run's corpus cannot be had, or the context is too short to
      draft in.
  """
  shape, data, train = model.config.model, model.config.data, model.config.train
  corpus = corpus or packing.load(data)
  batches = batches_lib.heldout(
    corpus,
    data,
    train.eval_tokens if tokens is None else tokens,
    train.eval_batch_size,
  )
  exits = tuple(range(1, shape.granularity + 1))
  say('thresholds, on held-out text')
  readings = evaluate.readings(model.params, shape, batches, exits)
  most = evaluate.LOSS_INCREASE
  chosen = {}
  if len(exits) > 1:
    chosen['defer'] = thresholds.threshold_for(
      thresholds.curve(readings, 'max_prob'), most
    )
    chosen['propagate'] = propagation.threshold_for(
      model.params, shape, batches, readings, 'max_prob', most
    )
  half = model.context // 2
  windows = np.concatenate([batch['inputs_BxL'] for batch in batches])
  speeds, hops = [], []
  for count in rows:
    prompts = windows[:count, :half].tolist()
    speeds += _speeds(model, prompts, readings, chosen, say)
  if chosen:
    threshold = chosen['defer'].threshold or 0.0
    hops = _hops(model, prompts, batches, threshold, say)
  return Decoding(
    run=model.folder.absolute().name,
    step=model.step,
    prompt_tokens=half,
    speeds=tuple(speeds),
    hops=tuple(hops),
  )


def write(
  measured: Decoding, out: str | os.PathLike[str], draw: bool = True
) -> None:
  """Writes decoding.json into a folder, and decoding.png if it is to be drawn."""
  out = pathlib.Path(out)
  values = {'schema': storage.SCHEMA, **dataclasses.asdict(measured)}
  storage.write_json(out / 'decoding.json', values)
  if draw:
    from familial.plots import evaluation

    evaluation.save(evaluation.decoding(measured), out / 'decoding.png')


def text(measured: Decoding) -> str:
  """Returns a table of the modes, and a line a hop."""
  lines = [
    f'{"mode":<12}{"how":<18}{"texts":>6}{"tokens/s":>10}{"threshold":>10}'
    f'{"loss":>8}{"layers":>8}  shares of exits, or of drafts accepted'
  ]
  for speed in measured.speeds:
    numbers = [
      ('', '{:.3f}', speed.threshold),
      ('+', '{:.1%}', speed.loss_increase),
      ('', '{:.0%}', speed.layers),
    ]
    texts = [
      '-' if value is None else sign + form.format(value)
      for sign, form, value in numbers
    ]
    lines.append(
      f'{speed.mode:<12}{speed.detail:<18}{speed.rows:>6}'
      f'{speed.tokens / speed.seconds:>10,.0f}'
      f'{texts[0]:>10}{texts[1]:>8}{texts[2]:>8}  '
      + ', '.join(f'{share:.0%}' for share in speed.shares)
    )
  for hop in measured.hops:
    off = hop.state_error
    lines.append(
      f'relay, {hop.dtype} states, client and tier of exit {hop.to}: '
      f'{hop.bytes:.0f} bytes a token both ways, {hop.agree:.1%} of tokens as '
      'with float32, '
      + ('' if off is None else f'states off by {off:.2%}, ')
      + f'held-out loss {hop.loss_increase:+.3%}'
    )
  return '\n'.join(lines)


def _limits(model: load.Model) -> dict[str, Any]:
  # No token ends a text: all modes make as many.
  return {'context': model.context, 'max_tokens': model.context, 'stop': -1}


def _speeds(
  model: load.Model,
  prompts: list[list[int]],
  readings: thresholds.Readings,
  chosen: dict[str, thresholds.Outcome],
  say: Callable[[str], None],
) -> list[Speed]:
  shape, limits = model.config.model, _limits(model)
  greedy = sampling.Policy()
  last = shape.granularity
  found = []

  def tiers(*cuts: int, all_rows: bool = True) -> list[tier_lib.Tier]:
    return generate.tiers(model, len(prompts), cuts, all_rows)

  def generated(
    stages: list[tier_lib.Tier], policy: sampling.Policy
  ) -> Callable[[], list[decoding.Completion]]:
    return lambda: decoding.generate(stages, prompts, **limits, policy=policy)

  say(f'speeds, {len(prompts)} at once')
  loss = readings.nats_GxWxL[:, readings.counted_WxL].mean(1)
  for exit_ in range(1, last + 1):
    texts, seconds = _timed(generated(tiers(exit_), greedy))
    found.append(
      Speed(
        'exit', f'exit {exit_}', len(prompts), _tokens(texts), seconds,
        loss_increase=float(loss[exit_ - 1] / loss[-1] - 1),
        layers=shape.exits[exit_ - 1] / shape.depth,
      )
    )  # fmt: skip
  for fill, outcome in chosen.items():
    policy = sampling.Policy(threshold=outcome.threshold or 0.0, fill=fill)
    texts, seconds = _timed(
      generated(
        tiers(*range(1, last + 1), all_rows=False),
        policy,
      )
    )
    gave = np.concatenate([text.exits for text in texts])
    layers = np.asarray(shape.exits)[_taken(texts, fill)]
    found.append(
      Speed(
        'confidence', fill, len(prompts), len(gave), seconds,
        threshold=outcome.threshold, loss_increase=outcome.increase,
        layers=float(layers.mean() / shape.depth),
        shares=tuple((np.bincount(gave, minlength=last) / len(gave)).tolist()),
      )
    )  # fmt: skip
  for exit_ in range(1, last):
    draft, deep = tiers(exit_, last)
    (texts, drafting), seconds = _timed(
      functools.partial(
        speculation.speculate, draft, deep, prompts, **limits,
        sampling=greedy.sampling, drafts=_DRAFTS,
      )
    )  # fmt: skip
    found.append(
      Speed(
        'speculative', f'drafts of exit {exit_}', len(prompts), _tokens(texts),
        seconds, loss_increase=0.0,
        shares=(drafting.accepted / drafting.drafted,),
      )
    )  # fmt: skip
  return found


def _taken(texts: Sequence[decoding.Completion], fill: str) -> np.ndarray:
  """Returns the place of the deepest exit that each generated token is taken to:
  with deferral, that of any later one of its row."""
  rows = [np.asarray(text.exits) for text in texts]
  if fill == 'defer':
    rows = [np.maximum.accumulate(row[::-1])[::-1] for row in rows]
  return np.concatenate(rows)


def _hops(
  model: load.Model,
  prompts: list[list[int]],
  batches: Sequence[batches_lib.Batch],
  threshold: float,
  say: Callable[[str], None],
) -> list[Hop]:
  shape = model.config.model
  policy = sampling.Policy(threshold=threshold)
  expected: list[decoding.Completion] = []
  found = []
  for dtype in wire.DTYPES:  # float32, which others are compared with, first.
    say(f'a relay with {dtype} states')
    packed = packed_states.costs(model, batches, dtype)
    if dtype == wire.DTYPES[0]:
      plain = packed
    with contextlib.ExitStack() as stack:
      addresses = []
      for segment in segments.split(model.params, shape, model.context):
        relay = server.Relay(segment, len(prompts), model.context)
        port = stack.enter_context(server.serve(relay, 0))
        addresses.append(f'127.0.0.1:{port}')
      stages = client.connect(addresses, dtype=dtype)
      for stage in stages:
        stack.callback(stage.close)
      texts = decoding.generate(
        stages, prompts, **_limits(model), policy=policy
      )
      expected = expected or texts
      agree = np.concatenate(
        [
          np.cumprod(np.equal(a.generated, b.generated))
          for a, b in zip(texts, expected, strict=True)
        ]
      )
      found += [
        Hop(
          dtype,
          place + 1,
          (stage.sent + stage.received) / _tokens(texts),
          float(agree.mean()),
          packed[place][0],
          packed[place][1] / plain[place][1] - 1,
        )
        for place, stage in enumerate(stages)
      ]
  return found


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
  """Returns what a call gives, and the least seconds of some that compile
  nothing."""
  run()
  seconds = []
  for _ in range(_REPEATS):
    tick = time.monotonic()
    result = run()
    seconds.append(time.monotonic() - tick)
  return result, min(seconds)


def _tokens(texts: list[decoding.Completion]) -> int:
  return sum(len(text.generated) for text in texts)

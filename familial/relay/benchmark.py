"""Benchmark of a relay's traffic, by type of the states."""

from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import dataclasses

import numpy as np

from familial.convert import load
from familial.convert import segments
from familial.data import packing
from familial.relay import client
from familial.relay import packed_states
from familial.relay import server
from familial.relay import wire
from familial.serving import benchmark
from familial.serving import decoding
from familial.serving import evaluate
from familial.serving import sampling


def add_hops(
  measured: benchmark.Decoding,
  model: load.Model,
  tokens: int | None = None,
  corpus: packing.Corpus | None = None,
  say: Callable[[str], None] = lambda line: None,
) -> benchmark.Decoding:
  """Returns a benchmark with the traffic of a relay through all exits.

  The relay decodes the largest number of prompts of the benchmark, at its
  threshold of deferred computation. A single exit has no relay.

  Args:
    measured: benchmark of the model.
    model: the family.
    tokens: held-out targets whose states are packed; by default as many as in
      training.
    corpus: the run's corpus; read by default.
    say: receives a line before each measurement.
  """
  deferred = [s for s in measured.speeds if s.detail == 'defer']
  if not deferred:
    return measured
  corpus = corpus or packing.load(model.config.data)
  batches = evaluate.heldout(model, tokens, corpus)
  prompts = benchmark.prompts(model, batches, deferred[-1].rows)
  policy = sampling.Policy(threshold=deferred[-1].threshold or 0.0)
  hops: list[benchmark.Hop] = []
  for dtype in wire.DTYPES:  # float32 first: the baseline of the others.
    say(f'a relay with {dtype} states')
    costs = packed_states.costs(model, batches, dtype)
    texts, nbytes = _relayed(model, prompts, policy, dtype)
    if dtype == wire.DTYPES[0]:
      baseline, expected = costs, texts
    agree = np.concatenate(
      [
        np.cumprod(np.equal(a.generated, b.generated))
        for a, b in zip(texts, expected, strict=True)
      ]
    )
    hops += [
      benchmark.Hop(
        dtype=dtype,
        to=exit_,
        bytes=size / len(agree),
        agree=float(agree.mean()),
        state_error=error,
        loss_increase=loss / plain - 1,
      )
      for exit_, (size, (error, loss), (_, plain)) in enumerate(
        zip(nbytes, costs, baseline, strict=True), start=1
      )
    ]
  return dataclasses.replace(measured, hops=tuple(hops))


def _relayed(
  model: load.Model,
  prompts: Sequence[Sequence[int]],
  policy: sampling.Policy,
  dtype: str,
) -> tuple[list[decoding.Completion], list[int]]:
  """Returns texts of servers of this process, and each server's bytes."""
  with contextlib.ExitStack() as stack:
    addresses = []
    for segment in segments.split(
      model.params, model.config.model, model.context
    ):
      relay = server.Relay(segment, len(prompts), model.context)
      port = stack.enter_context(server.serve(relay, 0))
      addresses.append(f'127.0.0.1:{port}')
    stages = stack.enter_context(client.connect(addresses, dtype=dtype))
    texts = decoding.generate(stages, prompts, benchmark.limits(model), policy)
    return texts, [stage.sent + stage.received for stage in stages]

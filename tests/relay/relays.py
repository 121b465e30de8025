"""Relays of a small family, and who asks them."""

import contextlib
import functools

import numpy as np

from familial.relay import client
from familial.relay import server
from familial.relay import wire
from familial.serving import decoding
from familial.serving import sampling
from tests.serving.families import CONTEXT
from tests.serving.families import Family

STOP = 7
LIMITS = {'context': CONTEXT, 'max_tokens': 10, 'stop': STOP}
POLICY = sampling.Policy(threshold=0.3)


@functools.cache
def whole():
  return Family(exit_kind='branch')


def relay(index, slots=6, rows=3, exits=(1, 2, 3), **options):
  segment = whole().segments(*exits)[index]
  return server.Relay(segment, slots, CONTEXT, rows=rows, **options)


@contextlib.contextmanager
def chain(relays, ports=None):
  with contextlib.ExitStack() as stack:
    yield [
      f'127.0.0.1:{stack.enter_context(server.serve(r, port))}'
      for r, port in zip(relays, ports or [0] * len(relays), strict=True)
    ]


@contextlib.contextmanager
def connected(addresses, **options):
  with contextlib.ExitStack() as stack:
    stages = client.connect(addresses, patience=0.3, **options)
    for stage in stages:
      stack.callback(stage.close)
    yield stages


def local(prompts, policy=POLICY, slots=6, rows=3):
  tiers = whole().tiers(slots, 1, 2, 3, rows=rows)
  return decoding.generate(tiers, prompts, **LIMITS, policy=policy)


def ask(relay_, ids, starts, inputs, index=None, **changes):
  """A request of one row each, as a client would send it."""
  segment = relay_.tier.segment
  lengths = np.array([len(part) for part in inputs])
  starts = np.array(starts)
  values = {
    'fingerprint': segment.fingerprint,
    'index': segment.index if index is None else index,
    'ids': np.stack([np.full(16, id_, np.uint8) for id_ in ids]),
    'starts': starts,
    'lengths': lengths,
    'wanted': starts + lengths,
    'rows': np.zeros(len(ids)),
    'inputs': np.concatenate(inputs),
    'policy': POLICY,
    **changes,
  }
  request = wire.Request(**values)
  answer = relay_.advance(wire.pack_request(request, 'float32'))
  width, vocab = segment.model.width, segment.model.vocab_size
  return wire.unpack_reply(answer, request, width, vocab, segment.last)

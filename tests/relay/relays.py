"""Relays of a small family, and their clients."""

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

LIMITS = decoding.Limits(CONTEXT, 10, stops=(7,))
POLICY = sampling.Policy(threshold=0.3)


@functools.cache
def whole():
  return Family(exit_kind='branch')


def relay(index, slots=6, rows=3, exits=(1, 2, 3), cls=server.Relay, **options):
  segment = whole().segments(*exits)[index]
  return cls(segment, slots, CONTEXT, rows=rows, **options)


@contextlib.contextmanager
def chain(relays, **options):
  with contextlib.ExitStack() as stack:
    yield [
      f'127.0.0.1:{stack.enter_context(server.serve(r, 0, **options))}'
      for r in relays
    ]


def connected(addresses, **options):
  return client.connect(addresses, patience=0.3, **options)


def relayed(addresses, prompts, policy=POLICY, **options):
  """Completes prompts with servers."""
  with connected(addresses, **options) as stages:
    return decoding.generate(stages, prompts, LIMITS, policy)


def local(prompts, policy=POLICY, exits=(1, 2, 3)):
  """Completes prompts in this process."""
  engines = whole().engines(6, *exits, rows=3)
  return decoding.generate(engines, prompts, LIMITS, policy)


def request(relay_, ids, starts, inputs, **changes):
  """A request of one row each, as a client would send it."""
  lengths, starts = np.array([len(part) for part in inputs]), np.array(starts)
  values = {
    'fingerprint': relay_.description.fingerprint,
    'index': relay_.description.index,
    'ids': np.stack([np.full(16, id_, np.uint8) for id_ in ids]),
    'starts': starts,
    'lengths': lengths,
    'wanted': starts + lengths,
    'rows': np.zeros(len(ids)),
    'inputs': np.concatenate(inputs),
    'policy': POLICY,
    **changes,
  }
  return wire.Request(**values)


def ask(relay_, *args, **changes):
  """The reply to such a request."""
  asked = request(relay_, *args, **changes)
  answer = relay_.advance(wire.pack_request(asked, 'float32'))
  return wire.unpack_reply(answer, asked, relay_.description)

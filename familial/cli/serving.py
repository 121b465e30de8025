"""`familial evaluate`, `generate` and `relay`."""

import json
import os
import signal
import sys
import threading
from typing import Any

from absl import flags

from familial.cli import command
from familial.core import errors

# The modes of `generate` that use a flag; all others are used by all.
_MODES = {
  'step': ('exit', 'confidence', 'speculative'),
  'exit': ('exit', 'confidence', 'speculative'),
  'threshold': ('confidence', 'relay'),
  'confidence': ('confidence', 'relay'),
  'fill': ('confidence', 'relay'),
  'draft_exit': ('speculative',),
  'drafts': ('speculative',),
  'servers': ('relay',),
  'state_dtype': ('relay',),
}


def _define_evaluate(values: flags.FlagValues) -> None:
  command.define_checkpoint(values)
  flags.DEFINE_list(
    'exits', ['all'], 'Exits to report: all, or as 1,3.', flag_values=values
  )
  flags.DEFINE_integer(
    'tokens',
    0,
    "Held-out tokens; 0 for as many as the run's own evaluations.",
    lower_bound=0,
    flag_values=values,
  )
  flags.DEFINE_bool('draw', True, 'Write figures too.', flag_values=values)
  flags.DEFINE_bool(
    'decode',
    False,
    'Also time every mode of familial generate, and count what a relay sends '
    'and receives; takes minutes.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'out',
    '',
    "Folder of the result; by default evaluation/STEP, in the model's folder.",
    flag_values=values,
  )


def _define_generate(values: flags.FlagValues) -> None:
  command.define_checkpoint(values)
  flags.DEFINE_multi_string(
    'prompt',
    None,
    'Text to go on from; may be repeated.',
    required=True,
    flag_values=values,
  )
  flags.DEFINE_enum(
    'mode',
    'exit',
    ['exit', 'confidence', 'speculative', 'relay'],
    'One exit always; the first that is sure; the last one from drafts of '
    'another; a chain of servers.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'exit',
    0,
    'The exit of mode exit, and the deepest of the others, from 1; 0 for the '
    "model's last.",
    flag_values=values,
  )
  flags.DEFINE_float(
    'threshold',
    0.9,
    'Confidence from which on an exit is believed.',
    flag_values=values,
  )
  flags.DEFINE_enum(
    'confidence',
    'max_prob',
    ['max_prob', 'gap', 'entropy'],
    'Largest probability; it less the second; 1 - entropy / log V.',
    flag_values=values,
  )
  flags.DEFINE_enum(
    'fill',
    'defer',
    ['defer', 'propagate'],
    'What deeper layers make of a position that left before them: take it in '
    'when a later one gets there (exact), or read keys and values off the '
    'state it left with (skips the layers).',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'draft_exit', 1, 'Whose drafts are read.', flag_values=values
  )
  flags.DEFINE_integer(
    'drafts', 3, 'Tokens drafted at a time.', flag_values=values
  )
  flags.DEFINE_list(
    'servers',
    [],
    'HOST:PORT of each segment in order, for mode relay.',
    flag_values=values,
  )
  flags.DEFINE_enum(
    'state_dtype',
    'float32',
    ['float32', 'bfloat16', 'int8'],
    'Of the states between servers.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'max_tokens', 64, 'To generate at most.', flag_values=values
  )
  flags.DEFINE_float(
    'temperature', 0.0, '0 takes the likeliest token.', flag_values=values
  )
  flags.DEFINE_integer(
    'top_k', 0, 'Of the likeliest tokens alone; 0: all.', flag_values=values
  )
  flags.DEFINE_float(
    'top_p',
    1.0,
    'Of the likeliest that reach this probability together.',
    flag_values=values,
  )
  flags.DEFINE_integer('seed', 0, 'Of what is drawn.', flag_values=values)
  flags.DEFINE_string(
    'out', '', 'JSON file of the result, if one is wanted.', flag_values=values
  )


def _define_relay(values: flags.FlagValues) -> None:
  command.define_folder(
    'segment',
    'Folder of one segment, as familial export --format=segments writes it.',
    values,
  )
  flags.DEFINE_integer(
    'port',
    None,
    'To listen on; 0 for any that is free.',
    required=True,
    lower_bound=0,
    upper_bound=65535,
    flag_values=values,
  )
  flags.DEFINE_string(
    'host',
    '127.0.0.1',
    'Address to listen on; [::] for all, and nothing is encrypted.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'slots', 64, 'Rows that may be open.', lower_bound=1, flag_values=values
  )
  flags.DEFINE_integer(
    'context',
    0,
    'Positions of a row, for which caches are made in every slot; 0 for those '
    'that the family was trained on, the most.',
    lower_bound=0,
    flag_values=values,
  )
  flags.DEFINE_integer(
    'rows',
    8,
    'Rows of a pass. One that is not full costs as much as a full one.',
    lower_bound=1,
    flag_values=values,
  )


def _evaluate(values: flags.FlagValues) -> str:
  from familial.convert import load
  from familial.serving import benchmark
  from familial.serving import evaluate
  from familial.training import compilation

  compilation.prepare()
  exits = None
  if values.exits != ['all']:
    exits = command.integers('exits', values.exits)
    if values.decode:
      raise errors.UserError(
        f'--exits={",".join(values.exits)}: --decode decodes with all exits; '
        'leave one of the two out'
      )
  tokens = values.tokens or None
  model = load.load(values.checkpoint, values.step)
  found = evaluate.evaluate(model, exits, tokens=tokens)
  out = values.out or model.folder / 'evaluation' / str(model.step)
  line = evaluate.write(found, out, draw=values.draw)
  if values.decode:
    measured = benchmark.measure(model, tokens=tokens, say=_warn)
    benchmark.write(measured, out, draw=values.draw)
    print(benchmark.text(measured))
  return line


def _generate(values: flags.FlagValues) -> str:
  from familial.convert import load
  from familial.core import storage
  from familial.serving import generate
  from familial.serving import sampling
  from familial.training import compilation

  for flag, modes in _MODES.items():
    if values[flag].present and values.mode not in modes:
      raise errors.UserError(
        f'--{flag}: not used by --mode={values.mode}, only by '
        f'{" and ".join(modes)}'
      )
  compilation.prepare()
  options = generate.Options(
    mode=values.mode,
    exit=values.exit,
    draft_exit=values.draft_exit,
    drafts=values.drafts,
    max_tokens=values.max_tokens,
    policy=sampling.Policy(
      sampling.Sampling(
        values.temperature, values.top_k, values.top_p, values.seed
      ),
      values.confidence,
      values.threshold,
      values.fill,
    ),
  )
  if values.mode == 'relay':
    if not values.servers:
      raise errors.UserError(
        '--servers: mode relay needs HOST:PORT of each segment, in order'
      )
    outcome = generate.relay(
      load.tokenizer_of(values.checkpoint), values.servers, values.prompt,
      options, dtype=values.state_dtype, say=_warn,
    )  # fmt: skip
  else:
    model = load.load(values.checkpoint, values.step)
    outcome = generate.run(model, values.prompt, options)
  for text in outcome.texts:
    print(text, flush=True)
  if values.out:
    storage.write_json(values.out, {'texts': outcome.texts, **outcome.report})
  return generate.line(outcome.report)


def _relay(values: flags.FlagValues) -> str:
  # Its library would print about a port in use, beside our line.
  os.environ.setdefault('GRPC_VERBOSITY', 'NONE')
  from familial.convert import segments
  from familial.relay import server
  from familial.training import compilation

  compilation.prepare()
  segment = segments.load(values.segment)
  context = values.context or segment.context
  if context > segment.context:
    raise errors.UserError(
      f'--context={context}: the family was trained on {segment.context}, the '
      'most allowed'
    )
  relay = server.Relay(segment, values.slots, context, rows=values.rows)
  relay.tier.warm()
  with server.serve(relay, values.port, values.host) as port:
    print(
      f'segment {segment.index} of {len(segment.exits)}, up to exit '
      f'{segment.exit}, of model {segment.fingerprint}: listening on port '
      f'{port}; {json.dumps(segments.nbytes(segment))} bytes of parameters, '
      f'{relay.tier.nbytes} of caches',
      flush=True,
    )
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
      signal.signal(number, lambda *_: stop.set())
    stop.wait()
  return f'port {port}: stopped'


def _warn(line: str) -> None:
  print(f'familial: {line}', file=sys.stderr)


COMMANDS: dict[str, Any] = {
  'evaluate': command.Command(
    'loss, calibration and early-exit trade-off of a checkpoint',
    _define_evaluate,
    _evaluate,
  ),
  'generate': command.Command(
    'text by an exit, by confidence, by drafts, by a relay',
    _define_generate,
    _generate,
  ),
  'relay': command.Command('serves one segment', _define_relay, _relay),
}

"""`familial evaluate`, `generate` and `relay`."""

from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import importlib.util
import json
import os
import pathlib
import signal
import sys
import threading
from typing import TYPE_CHECKING
from typing import Any

from absl import flags

from familial.cli import command
from familial.core import errors

if TYPE_CHECKING:
  from familial.serving import benchmark as benchmark_lib
  from familial.serving import evaluate as evaluate_lib
  from familial.serving import generate as generate_lib
  from familial.serving import thresholds as thresholds_lib

_EXTRA = "needs the extra, pip install 'familial[relay]'"

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
  evaluation = evaluate.evaluate(model, exits, tokens=tokens)
  default = model.folder / 'evaluation' / str(model.step)
  out = pathlib.Path(values.out or default)
  _write(out / 'evaluation.json', evaluation)
  if values.draw:
    from familial.plots import evaluation as plots

    plots.draw(evaluation, out)
  if values.decode:
    measured = benchmark.measure(model, tokens=tokens, say=_warn)
    if importlib.util.find_spec('grpc') is None:
      _warn(f'--decode: no relay is measured: {_EXTRA}')
    else:
      from familial.relay import benchmark as relay_benchmark

      measured = relay_benchmark.add_hops(
        measured, model, tokens=tokens, say=_warn
      )
    _write(out / 'decoding.json', measured)
    if values.draw:
      plots.save(plots.decoding(measured), out / 'decoding.png')
    print(_decoding_text(measured))
  return f'{_evaluation_text(evaluation)} -> {out / "evaluation.json"}'


def _write(path: pathlib.Path, record: Any) -> None:
  from familial.core import storage

  values = {'schema': storage.SCHEMA, **dataclasses.asdict(record)}
  storage.write_json(path, values)


def _evaluation_text(evaluation: 'evaluate_lib.Evaluation') -> str:
  """Returns tables of the exits and thresholds, and a summary line."""
  last = evaluation.exits[-1]
  parts = [
    _table(
      {
        'exit': str(score.exit),
        'layer': str(score.layer),
        'N': f'{score.params:,}',
        'nats/token': f'{score.loss:.4f}',
        'error': _or_dash('{:.4f}', score.loss_error),
        'nats/byte': f'{score.loss_per_byte:.4f}',
        'top-1': f'{100 * score.accuracy:.2f} %',
        'calibration error': f'{100 * score.calibration_error:.2f} %',
      }
      for score in evaluation.exits
    )
  ]
  if evaluation.oracle:
    chosen = {**evaluation.chosen, 'best exit': evaluation.oracle}
    table = _table(
      {
        'confidence': name,
        'threshold': _or_dash('{:.6g}', outcome.threshold),
        'nats/token': f'{outcome.loss:.4f}',
        'increase': f'{100 * outcome.increase:.2f} %{_interval(outcome)}',
        'layers': f'{outcome.layers:.2f}',
        'deferred': f'{outcome.layers_deferred:.2f}',
        'answered by exit': ', '.join(
          f'{100 * x:.1f} %' for x in outcome.shares
        ),
      }
      for name, outcome in chosen.items()
    )
    parts.append(
      'Lowest thresholds with a loss at most 1 % above exit '
      f"{last.exit}'s, of {last.layer} layers:\n{table}"
    )
  losses = ', '.join(f'{score.loss:.4f}' for score in evaluation.exits)
  parts.append(
    f'{evaluation.run} at step {evaluation.step}: loss by exit {losses} nats '
    f'per token, over {evaluation.tokens:,} tokens'
  )
  return '\n\n'.join(parts)


def _interval(outcome: 'thresholds_lib.Outcome') -> str:
  if outcome.increase_low is None or outcome.increase_high is None:
    return ''
  low, high = 100 * outcome.increase_low, 100 * outcome.increase_high
  return f' [{low:.2f}, {high:.2f}]'


def _decoding_text(measured: 'benchmark_lib.Decoding') -> str:
  """Returns a table of the modes, and one of a relay's hops."""
  modes = _table(
    {
      'mode': speed.mode,
      'how': speed.detail,
      'texts': str(speed.rows),
      'tokens/s': f'{speed.tokens / speed.seconds:,.0f}',
      'threshold': _or_dash('{:.3f}', speed.threshold),
      'loss': _or_dash('{:+.1%}', speed.loss_increase),
      'layers': _or_dash('{:.0%}', speed.layers),
      'shares of exits, or of drafts accepted': ', '.join(
        f'{share:.0%}' for share in speed.shares
      ),
    }
    for speed in measured.speeds
  )
  hops = _table(
    {
      'relay: states': hop.dtype,
      'to exit': str(hop.to),
      'bytes/token both ways': f'{hop.bytes:.0f}',
      'tokens as float32': f'{hop.agree:.1%}',
      'error of states': _or_dash('{:.2%}', hop.state_error),
      'held-out loss': f'{hop.loss_increase:+.3%}',
    }
    for hop in measured.hops
  )
  return f'{modes}\n\n{hops}'.rstrip()


def _or_dash(form: str, value: float | None) -> str:
  return '-' if value is None else form.format(value)


def _table(records: Iterable[Mapping[str, str]]) -> str:
  """Returns lines of aligned columns; '' without records."""
  records = list(records)
  rows = [list(record.values()) for record in records]
  rows = [list(records[0]), *rows] if rows else []
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join('  '.join(map(str.rjust, row, widths)) for row in rows)


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
  if values.mode == 'relay':
    _require_grpc('--mode=relay')
  compilation.prepare()
  policy = sampling.Policy(
    sampling.Sampling(
      values.temperature, values.top_k, values.top_p, values.seed
    ),
    values.confidence,
    values.threshold,
    values.fill,
  )
  made: generate.Generation
  if values.mode == 'relay':
    from familial.relay import generate as relay_generate

    if not values.servers:
      raise errors.UserError(
        '--servers: mode relay needs HOST:PORT of each segment, in order'
      )
    made = relay_generate.run(
      load.tokenizer_of(values.checkpoint), values.servers, values.prompt,
      policy, values.max_tokens, dtype=values.state_dtype, say=_warn,
    )  # fmt: skip
  else:
    options = generate.Options(
      mode=values.mode,
      exit=values.exit,
      draft_exit=values.draft_exit,
      drafts=values.drafts,
      max_tokens=values.max_tokens,
      policy=policy,
    )
    model = load.load(values.checkpoint, values.step)
    made = generate.run(model, values.prompt, options)
  for text in made.texts:
    print(text, flush=True)
  report = made.report()
  if values.out:
    storage.write_json(values.out, report)
  return _generation_line(made, report)


def _generation_line(
  made: 'generate_lib.Generation', report: dict[str, Any]
) -> str:
  rate = made.tokens / made.seconds
  shares = ', '.join(f'{e}: {share:.0%}' for e, share in made.shares.items())
  parts = [
    f'{made.mode}: {made.tokens} tokens in {made.seconds:.2f} s ({rate:,.0f} '
    'tokens/s with compiling)',
    f'by exit {shares}',
  ]
  if made.drafting:
    parts.append(f'{made.drafting.acceptance:.0%} of drafts accepted')
  parts += [
    f'{hop["server"]} {hop["positions"]} positions, '
    f'{hop["bytes_sent"] + hop["bytes_received"]} bytes both ways, '
    f'{hop["milliseconds_median"]:.1f} ms a call'
    for hop in report.get('hops', [])
  ]
  return '; '.join(parts)


def _relay(values: flags.FlagValues) -> str:
  _require_grpc('relay')
  # The library would print about a port in use, beside our line.
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
  relay.engine.warm()
  with server.serve(relay, values.port, values.host) as port:
    print(
      f'segment {segment.index} of {len(segment.exits)}, up to exit '
      f'{segment.exit}, of model {segment.fingerprint}: listening on port '
      f'{port}; {json.dumps(segments.nbytes(segment))} bytes of parameters, '
      f'{relay.engine.nbytes} of caches',
      flush=True,
    )
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
      signal.signal(number, lambda *_: stop.set())
    stop.wait()
  return f'port {port}: stopped'


def _require_grpc(what: str) -> None:
  if importlib.util.find_spec('grpc') is None:
    raise errors.UserError(f'{what}: {_EXTRA}')


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

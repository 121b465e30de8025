"""`familial evaluate`, `generate` and `relay`."""

from __future__ import annotations

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
from typing import Annotated
from typing import Any

from etils import epy

from familial.cli import command
from familial.cli import output_folder
from familial.cli.command import Command
from familial.cli.command import Folder
from familial.cli.command import Repeated
from familial.core import errors
from familial.core import schema
from familial.core import storage
from familial.core import text as text_lib

# Imported when a command runs, not when its flags are read.
with epy.lazy_imports():
  from familial.convert import load
  from familial.convert import segments
  from familial.data import packing
  from familial.data import tokenizers
  from familial.report import evaluation_page
  from familial.serving import benchmark
  from familial.serving import decoding
  from familial.serving import evaluate
  from familial.serving import generate
  from familial.serving import sampling
  from familial.serving import thresholds
  from familial.training import compilation

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


@dataclasses.dataclass(frozen=True)
class Evaluate:
  """Flags of `familial evaluate`.

  Attributes:
    checkpoint: run or export, or one of its checkpoints.
    step: checkpoint of a run: last, best, or a number of steps.
    exits: exits to report: all, or numbers as 1,3.
    tokens: held-out tokens; 0 for as many as the run's own evaluations.
    draw: write figures and a page too.
    decode: time every mode of familial generate too, and count what a relay sends
      and receives; takes minutes.
    out: folder of the result; evaluation/STEP in the model's folder by default,
      evaluation/STEP_CORPUS for other text than it was trained on.
    data: keys of the text in place of the run's, such as --data.path where it was
      moved.
    json: write the result as JSON to the standard output, and the tables to the
      standard error.
    overwrite: replace another result in the folder.
  """

  checkpoint: Folder
  step: str = 'last'
  exits: tuple[str, ...] = ('all',)
  tokens: schema.Index = 0
  draw: bool = True
  decode: bool = False
  out: str = ''
  data: Annotated[dict[str, Any], command.TEXT] = dataclasses.field(
    default_factory=dict
  )
  json: bool = False
  overwrite: bool = False


def _evaluate(values: Evaluate) -> str:
  compilation.prepare()
  exits = None
  if values.exits != ('all',):
    exits = command.integers('exits', values.exits)
    if values.decode:
      raise errors.UserError(
        f'--exits={",".join(values.exits)}: --decode decodes with all exits; '
        'leave one of the two out'
      )
  storage.check_writable(
    values.out or load.locate(values.checkpoint, values.step)[0]
  )
  model = load.load(values.checkpoint, values.step)
  model = evaluate.on_text(model, values.data)
  corpus = packing.load(model.config.data)
  name = str(model.step)
  trained_on = evaluate.trained_on(model)
  if values.data and trained_on not in (None, corpus.fingerprint):
    name = f'{name}_{corpus.fingerprint}'
    _warn(
      f'evaluated on corpus {corpus.fingerprint}; the model was trained on '
      f'{trained_on}'
    )
  # Of the default folder the model is known, wherever it has moved.
  resolved = {
    'step': str(model.step),
    'checkpoint': values.out and str(model.folder),
  }
  with output_folder.claimed(
    values.out or model.folder / 'evaluation' / name,
    'evaluate',
    values,
    **resolved,
  ) as out:
    return _evaluated(values, model, corpus, exits, out)


def _evaluated(
  values: Evaluate,
  model: load.Model,
  corpus: packing.Corpus,
  exits: tuple[int, ...] | None,
  out: pathlib.Path,
) -> str:
  """Evaluates a model and writes the results; returns the summary."""
  tables = sys.stderr if values.json else sys.stdout
  tokens = values.tokens or None
  evaluation = evaluate.evaluate(
    model, exits, tokens=tokens, corpus=corpus, any_text=bool(values.data)
  )
  measured = None
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
    print(_decoding_text(measured), file=tables)
  _write(out / 'evaluation.json', evaluation)
  if values.draw:
    evaluation_page.write(evaluation, measured, out)
  text = f'{_evaluation_text(evaluation)} -> {out / "evaluation.json"}'
  if not values.json:
    return text
  print(text, file=tables)
  found = {'evaluation': evaluation, 'decoding': measured}
  return json.dumps(
    {name: dataclasses.asdict(part) for name, part in found.items() if part}
  )


def _write(path: pathlib.Path, record: Any) -> None:
  values = {'schema': storage.SCHEMA, **dataclasses.asdict(record)}
  storage.write_json(path, values)


def _evaluation_text(evaluation: evaluate.Evaluation) -> str:
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


def _interval(outcome: thresholds.Outcome) -> str:
  if outcome.increase_low is None or outcome.increase_high is None:
    return ''
  low, high = 100 * outcome.increase_low, 100 * outcome.increase_high
  return f' [{low:.2f}, {high:.2f}]'


def _decoding_text(measured: benchmark.Decoding) -> str:
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
  """Returns records as a table with a column for each key; '' without records."""
  rows = list(records)
  if not rows:
    return ''
  return text_lib.table(
    list(rows[0]), [list(row.values()) for row in rows], align='r'
  )


@dataclasses.dataclass(frozen=True)
class Generate:
  """Flags of `familial generate`.

  Attributes:
    checkpoint: run or export, or one of its checkpoints.
    prompt: text to continue, or - for the standard input; may be repeated.
    prompt_file: file of a text to continue; may be repeated. Of a file *.jsonl each
      line is an object with a `prompt`. A newline at the end of a file or of the
      standard input is left out.
    step: checkpoint of a run: last, best, or a number of steps.
    mode: one exit for all tokens (exit), the first exit that is confident
      (confidence), the last exit from drafts of another (speculative), or a chain
      of servers (relay).
    exit: number of the exit of mode exit, and of the deepest exit of the others,
      from 1; 0 for the last.
    threshold: confidence from which a token is taken from an exit.
    confidence: largest probability (max_prob, 1 / V to 1), the largest less the
      second (gap, 0 to 1), or 1 - entropy / log V (entropy, 0 to 1).
    fill: what deeper layers do with a position that left early: include it when a
      later position of its row gets there (defer, exact), or compute keys and
      values from the state it left with (propagate, skips the layers).
    draft_exit: number of the exit that drafts.
    drafts: number of tokens drafted at a time.
    servers: HOST:PORT of each segment in order, for mode relay.
    state_dtype: type of the states between servers.
    max_tokens: largest number of tokens to generate.
    temperature: temperature of the distribution; 0 takes the most likely token.
    top_k: number of most likely tokens that are drawn from; 0 for all.
    top_p: probability of the most likely tokens that are drawn from.
    seed: seed of the draws.
    out: JSON file of the result; none by default.
    json: write an object a line for each text instead of the text: prompt,
      completion, finish_reason (stop, length or context) and tokens.
  """

  checkpoint: Folder
  prompt: Repeated = ()
  prompt_file: Repeated = ()
  step: str = 'last'
  mode: Annotated[
    str, schema.one_of('exit', 'confidence', 'speculative', 'relay')
  ] = 'exit'
  exit: int = 0
  threshold: float = 0.9
  confidence: Annotated[str, schema.one_of('max_prob', 'gap', 'entropy')] = (
    'max_prob'
  )
  fill: Annotated[str, schema.one_of('defer', 'propagate')] = 'defer'
  draft_exit: int = 1
  drafts: int = 3
  servers: tuple[str, ...] = ()
  state_dtype: Annotated[str, schema.one_of('float32', 'bfloat16', 'int8')] = (
    'float32'
  )
  max_tokens: int = 64
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  seed: int = 0
  out: str = ''
  json: bool = False
  given: frozenset[str] = frozenset()


def _generate(values: Generate) -> str:
  for flag, modes in _MODES.items():
    if flag in values.given and values.mode not in modes:
      raise errors.UserError(
        f'--{flag}: not used by --mode={values.mode}, only by '
        f'{" and ".join(modes)}'
      )
  if values.mode == 'relay':
    _require_grpc('--mode=relay')
  if values.mode in _MODES['threshold'] and not 0 <= values.threshold <= 1:
    raise errors.UserError(
      f'--threshold={values.threshold:g}: is not allowed; the confidence '
      f'{values.confidence} is from {sampling.CONFIDENCES[values.confidence]}'
    )
  if values.mode == 'relay':
    from familial.relay import client

    client.check_addresses(values.servers)
  prompts = _prompts(values)
  compilation.prepare()
  policy = command.fill(
    sampling.Policy, values, sampling=command.fill(sampling.Sampling, values)
  )
  made: generate.Generation
  if values.mode == 'relay':
    from familial.relay import generate as relay_generate

    tokenizer = load.tokenizer_of(values.checkpoint)
    made = relay_generate.run(
      tokenizer, values.servers, prompts, policy, values.max_tokens,
      dtype=values.state_dtype, say=_warn,
      follow=_Writer(tokenizer, prompts, values.json),
    )  # fmt: skip
  else:
    options = command.fill(generate.Options, values, policy=policy)
    model = load.load(values.checkpoint, values.step)
    made = generate.run(
      model, prompts, options, _Writer(model.tokenizer, prompts, values.json)
    )
  report = made.report()
  if values.out:
    storage.write_json(values.out, report)
  _warn(_generation_line(made, report))
  return ''


def _prompts(values: Generate) -> list[str]:
  """Returns the prompts of the flags, the standard input and the files."""
  found = []
  for prompt in values.prompt:
    if prompt == '-':
      found.append(_decoded('--prompt=-', sys.stdin.buffer.read()))
    else:
      found.append(prompt)
  for path in values.prompt_file:
    text = _decoded(path, pathlib.Path(path).read_bytes())
    if not path.endswith('.jsonl'):
      found.append(text)
      continue
    for number, line in enumerate(text.splitlines(), start=1):
      try:
        record: Any = json.loads(line)
      except ValueError:
        record = None
      if not isinstance(record, dict) or type(record.get('prompt')) is not str:
        raise errors.UserError(
          f"{path}:{number}: not an object with a text 'prompt'"
        )
      found.append(record['prompt'])
  if not found:
    raise errors.UserError(
      '--prompt: there is none; a text, - for the standard input, or '
      '--prompt_file=FILE'
    )
  return found


def _decoded(where: str, content: bytes) -> str:
  """Returns UTF-8 text without a newline at its end."""
  try:
    return content.decode('utf-8').removesuffix('\n').removesuffix('\r')
  except UnicodeDecodeError:
    raise errors.UserError(f'{where}: not UTF-8 text') from None


class _Writer:
  """Writes texts in the order of their prompts to the standard output.

  On a terminal the text under way is written as far as it is settled.
  """

  def __init__(
    self, tokenizer: tokenizers.Tokenizer, prompts: list[str], as_json: bool
  ):
    self._tokenizer, self._prompts, self._as_json = tokenizer, prompts, as_json
    self._live = sys.stdout.isatty() and not as_json
    self._texts: dict[int, decoding.Completion] = {}
    self._at = self._written = 0

  def __call__(self, number: int, text: decoding.Completion) -> None:
    """Takes the text of a prompt, with the tokens that were added."""
    self._texts[number] = text
    while self._at in self._texts:
      text = self._texts[self._at]
      if text.finish:
        print(
          self._record(text) if self._as_json else self._rest(text), flush=True
        )
        self._at, self._written = self._at + 1, 0
        continue
      if self._live:
        settled = self._tokenizer.settled(text.tokens)
        print(settled[self._written :], end='', flush=True)
        self._written = max(self._written, len(settled))
      return

  def _rest(self, text: decoding.Completion) -> str:
    return self._tokenizer.decode(text.tokens)[self._written :]

  def _record(self, text: decoding.Completion) -> str:
    decode = self._tokenizer.decode
    start = len(decode(text.tokens[: text.prompt]))
    return json.dumps(
      {
        'prompt': self._prompts[self._at],
        'completion': decode(text.tokens)[start:],
        'finish_reason': text.finish,
        'tokens': len(text.exits),
      }
    )


def _generation_line(made: generate.Generation, report: dict[str, Any]) -> str:
  rate = made.tokens / made.seconds
  shares = ', '.join(f'{e}: {share:.0%}' for e, share in made.shares.items())
  parts = [
    f'{made.mode}: {made.tokens} tokens in {made.seconds:.2f} s ({rate:,.0f} '
    'tokens/s with compiling)',
    f'by exit {shares}',
  ]
  cut = [text for text in made.completions if text.finish == 'context']
  if cut:
    parts.append(
      f'{len(cut)} of {len(made.completions)} texts cut by the context of '
      f'{len(cut[0].tokens)} tokens before --max_tokens'
    )
  if made.drafting:
    parts.append(f'{made.drafting.acceptance:.0%} of drafts accepted')
  parts += [
    f'{hop["server"]} {hop["positions"]} positions, '
    f'{hop["bytes_sent"] + hop["bytes_received"]} bytes both ways, '
    f'{hop["milliseconds_median"]:.1f} ms a call'
    for hop in report.get('hops', [])
  ]
  return '; '.join(parts)


@dataclasses.dataclass(frozen=True)
class Relay:
  """Flags of `familial relay`.

  Attributes:
    segment: folder of one segment, as familial export --format=segments writes
      it.
    port: port to listen on; 0 for any free one.
    host: address to listen on; [::] for all. Nothing is encrypted.
    slots: number of rows that may be open.
    context: positions of a row, for which each slot holds caches; 0 for those
      that the family was trained on, the most.
    rows: rows of a pass. One that is not full costs as much as a full one.
  """

  segment: Folder
  port: Annotated[int, schema.within(0, 65535)]
  host: str = '127.0.0.1'
  slots: schema.Count = 64
  context: schema.Index = 0
  rows: schema.Count = 8


def _relay(values: Relay) -> str:
  _require_grpc('relay')
  # The library would print about a port in use, beside our line.
  os.environ.setdefault('GRPC_VERBOSITY', 'NONE')
  # Several servers may share a GPU, of which each process would take most.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')

  compilation.prepare()
  segment = segments.load(values.segment)
  context = values.context or segment.context
  if context > segment.context:
    raise errors.UserError(
      f'--context={context}: the family was trained on {segment.context}, the '
      'most allowed'
    )
  # Needs grpc, which the other commands do not.
  from familial.relay import server

  relay = server.Relay(segment, values.slots, context, rows=values.rows)
  relay.compiling = True
  sizes = segments.nbytes(segment)
  with server.serve(relay, values.port, values.host) as port:
    print(
      f'segment_{segment.index} of {len(segment.exits)} segments, up to exit '
      f'{segment.exit}, of model {segment.fingerprint}: listening on port {port}; '
      f'{_megabytes(sum(sizes.values()))} of parameters (of which other segments '
      f'hold {_megabytes(sizes["copied"])} too), '
      f'{_megabytes(relay.engine.nbytes)} of caches for {values.slots} rows of '
      f'{context} tokens; compiling, for which clients wait',
      flush=True,
    )
    relay.engine.warm()
    relay.compiling = False
    print(f'port {port}: ready', flush=True)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
      signal.signal(number, lambda *_: stop.set())
    stop.wait()
  return f'port {port}: stopped'


def _megabytes(size: int) -> str:
  return f'{size / 1e6:.3g} MB'


def _require_grpc(what: str) -> None:
  if importlib.util.find_spec('grpc') is None:
    raise errors.UserError(f'{what}: {_EXTRA}')


def _warn(line: str) -> None:
  print(f'familial: {line}', file=sys.stderr, flush=True)


COMMANDS = {
  'evaluate': Command(Evaluate, _evaluate),
  'generate': Command(Generate, _generate),
  'relay': Command(Relay, _relay),
}

"""The page's sections of record: the runs, what was run at what cost, terms."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from familial.core import text
from familial.laws import forms
from familial.report import answer
from familial.report import html
from familial.report import results as results_lib

Results = results_lib.Results
_DEFINITIONS = {
  'N': (
    'Parameters without embeddings and unembedding: of the whole backbone'
    " (last and mean), or of the exit's stand-alone model (each exit)."
  ),
  'D': (
    'Training tokens. For each exit: the tokens that a dense model of its exact'
    " shape would see for the run's FLOPs."
  ),
  'G': 'Granularity: exits of one backbone, the last layer included; 1 is dense.',
  'C': (
    'Training FLOPs of a run: every matrix product, full attention and every'
    " exit's head, forward and backward; no evaluation, no recomputation."
  ),
  'Loss': (
    'Mean token cross-entropy in nats, on held-out text that is the same for'
    ' all runs.'
  ),
  'Last exit': (
    "The last exit's loss: does sharing harm the full model? The law compares at"
    " equal N and D, and the heads' FLOPs come on top; pairs are compared at"
    ' equal FLOPs.'
  ),
  'Mean over exits': (
    "The mean of all exits' losses, 1/G each: the paper's definition. It rises"
    ' with G merely because shallow exits are smaller models.'
  ),
  'Each exit': (
    'Every exit as a model of its own size and data at equal FLOPs: does'
    ' sharing harm a member of the family?'
  ),
  'γ': (
    'Exponent of G: the law, or its reducible part, is multiplied by G^γ. 0'
    ' means that sharing is free.'
  ),
  'Interval': (
    'Percentiles over refits of resampled runs: exits of one run are never'
    ' resampled apart. By profile: the values of γ that the refitted law does'
    " not rule out. Over pairs: Student's, from the scatter between shapes."
    ' None holds what a law itself errs by.'
  ),
  'AIC': (
    'Goodness of fit less the number of constants; lower is better, and a'
    ' difference below 2 means nothing. It takes rows as independent, which the'
    ' exits of one run are not.'
  ),
  'Efficiency Leverage': (
    "FLOPs that separate dense models of the exits' sizes would need together"
    " to reach the exits' losses, over the family's; infinite where no dense"
    ' model of that size reaches one.'
  ),
  'Fit': (
    'Least sum of Huber losses of log residuals, from many starts, in float64.'
  ),
}


def runs(results: Results) -> html.Section:
  """Returns the table of all cells, run or not."""
  rows = [
    [
      run.cell,
      run.arm,
      run.status,
      f'{run.width} × {run.depth}',
      text.amount(run.params_full),
      text.amount(run.tokens),
      str(run.exits),
      text.scientific(run.flops),
      text.number(run.epochs, 2),
      ' · '.join(text.number(loss, 4) for loss in run.losses) or '–',
    ]
    for run in results.runs
  ]
  table = html.table(
    [
      'cell',
      'arm',
      'status',
      'width × depth',
      'N',
      'D',
      'G',
      'C, FLOPs',
      'epochs',
      'loss by exit, nats',
    ],
    rows,
    'Every cell with its last evaluation.',
    align='llllrrrrrl',
  )
  return html.Section(
    'runs', 'Runs', html.paragraph(tally(results.runs)) + table
  )


def tally(runs: Sequence[results_lib.Run]) -> str:
  """Returns how many cells there are, by status."""
  states = [run.status for run in runs]
  parts = text.listing(
    [f'{states.count(status)} {status}' for status in dict.fromkeys(states)]
  )
  return f'{text.count(len(states), "cell")}: {parts}.'


def provenance(results: Results) -> html.Section:
  """Returns what was run, on what corpus and machine, at what cost."""
  plan, summary = results.plan, results.summary
  items: dict[str, str] = {}
  if plan.get('study'):
    items['Study'] = str(plan['study'])
  corpus = plan.get('corpus') or {}
  if corpus:
    items['Corpus'] = (
      f'{corpus.get("name", "–")}: {text.amount(corpus.get("train_tokens"))}'
      f' training tokens, {text.amount(corpus.get("heldout_tokens"))} held out,'
      f' vocabulary {corpus.get("vocab_size", "–")}'
    )
  prints = {str(row['corpus']) for run in results.runs for row in run.rows}
  prints |= {str(corpus['fingerprint'])} if corpus.get('fingerprint') else set()
  if prints:
    items['Corpus fingerprint'] = ', '.join(sorted(prints))
  cost = summary.get('cost') or {}
  if cost:
    items['Cost'] = (
      f'{text.scientific(cost.get("flops"))} FLOPs of training in'
      f' {text.duration(cost.get("seconds"))}'
    )
  noise = summary.get('noise')
  if noise:
    sd = {name: 100 * value for name, value in noise['sd_log_loss'].items()}
    items['Noise between seeds'] = (
      f"{text.number(sd['final'], 2)} % of the last exit's loss (sd of log"
      f' loss), {text.number(sd["mean"], 2)} % of the mean,'
      f" {text.number(sd['exit'], 2)} % of an exit's, from {noise['cells']}"
      f' cells with up to {noise["seeds"]} seeds'
    )
  if plan.get('power'):
    items['Power, before training'] = _power(plan['power'])
  for name, value in (summary.get('machine') or {}).items():
    items[f'Machine: {str(name).replace("_", " ")}'] = str(value)
  body = html.terms(items)
  if summary.get('summary_line'):
    body += f'<pre class="scroll">{html.escape(summary["summary_line"])}</pre>'
  return html.Section('record', 'What was run', body)


def definitions(results: Results) -> html.Section:
  """Returns what every quantity means, and the forms' equations."""
  names = dict.fromkeys(form for _, form in results.fits)
  equations = {
    f'Form {answer.name_of(name)}': html.formula(forms.get(name).equation)
    for name in names
  }
  return html.Section(
    'terms', 'Definitions', html.terms({**_DEFINITIONS, **equations})
  )


def _power(power: Mapping[str, Any]) -> str:
  """Returns what the plan expected the interval of gamma to be."""
  parts = []
  if power.get('gamma_half_width') is not None:
    parts.append(
      f'interval of γ ± {text.number(power["gamma_half_width"], 2)} expected'
    )
  if power.get('noise') is not None:
    parts.append(f'at a noise of {answer.percent(power["noise"])}')
  if power.get('share_excluding_zero') is not None:
    parts.append(
      f'{answer.percent(power["share_excluding_zero"])} of simulated studies'
      ' exclude 0'
    )
  law = power.get('law')
  if isinstance(law, Mapping):
    law = ', '.join(
      f'{html.GREEK.get(name, name)} = {text.trimmed(value)}'
      if isinstance(value, float)
      else f'{html.GREEK.get(name, name)} = {value}'
      for name, value in law.items()
    )
  if law:
    parts.append(f'under {law}')
  return '; '.join(parts)

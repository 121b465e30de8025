"""The page of a study of width and depth."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from familial.core import text
from familial.laws import fit_record
from familial.laws import forms
from familial.laws import table as tables
from familial.plots import law_depth
from familial.report import html
from familial.report import record_sections
from familial.report import results as results_lib

SUBTITLE = (
  'Loss falls with width and with depth. This study trains a full grid of both on'
  ' the same tokens and fits the law of each, beside its rivals.'
)
_LOSS, _FORM = 'final', 'width_depth'
_DEFINITIONS = {
  'Point': (
    'An evaluation of a run of the grid, or of its corners with another seed. The'
    ' rate is constant, so that each is what a run of so many tokens would give.'
  ),
  'Loss': (
    'Mean token cross-entropy in nats, on held-out text that is the same for'
    ' all runs.'
  ),
  'N': 'Parameters without embeddings and unembedding.',
  'Interval': (
    'Of a constant: 95 % percentiles over refits of resampled runs. Of an error on'
    " shapes held out: Student's over shapes, which count as independent."
  ),
  'AIC': (
    '2 k − 2 log likelihood, of the density exp(−Huber(residual) / τ) at its best'
    ' τ; k counts τ. It takes points as independent, which those of one run are'
    ' not: a difference is too large by as much as they are alike.'
  ),
  'Shapes held out': (
    'Each width at each depth is left out in turn, with all of its points and'
    ' seeds; the law fitted to the rest predicts them.'
  ),
  'Not identified': 'The points do not pin a constant down, not to a factor of e.',
}
Results = results_lib.Results


def sections(results: Results, gallery: html.Gallery) -> list[html.Section]:
  """Returns the page's sections in order."""
  summary = results.summary
  return [
    _answer(summary, results),
    *findings(results, gallery),
    record_sections.runs(results),
    record_sections.provenance(results),
    _definitions(summary),
  ]


def findings(results: Results, gallery: html.Gallery) -> list[html.Section]:
  """Returns the law, its rivals, what E and cut-offs do to it, and its rates."""
  summary = results.summary
  return html.with_unmeasured(
    (
      _law(results, gallery),
      _forms(summary, gallery),
      _over_e(summary),
      _scan(summary, gallery),
      _controls(summary),
    )
  )


def _answer(summary: Mapping[str, Any], results: Results) -> html.Section:
  body = html.paragraph(
    str(summary.get('summary_line') or record_sections.tally(results.runs)),
    'lede',
  )
  return html.Section(
    'answer', 'The answer', body + html.doubts(doubts(summary))
  )


def doubts(summary: Mapping[str, Any]) -> list[str]:
  """Returns what to know before the law is believed: notes, and its flags."""
  law = (summary.get('laws') or {}).get(_FORM) or {}
  return [
    *(str(note) for note in summary.get('notes') or []),
    *(str(flag) for flag in law.get('flags') or []),
  ]


def _law(results: Results, gallery: html.Gallery) -> html.Section | str:
  laws = results.summary.get('laws') or {}
  if (_LOSS, _FORM) not in results.fits and _FORM not in laws:
    return 'No law of width and depth was fitted.'
  body = _shapes(results, gallery)
  design = results.summary.get('design') or {}
  pairs = [
    f'{text.listing(pair["columns"])} {text.number(pair["value"], 2)}'
    for pair in design.get('correlations') or []
  ]
  if pairs:
    body += html.paragraph(
      f'Correlations of the logs over {design["runs"]} runs: {"; ".join(pairs)};'
      f' condition number {text.number(design["condition_number"])}.'
    )
  body += html.table(
    ['form', 'constant', 'value', 'interval', 'identified'],
    [
      [
        form,
        name,
        text.number(constant['value'], 4),
        text.interval(constant['lo'], constant['hi']),
        'yes' if constant['identified'] else 'no',
      ]
      for form, law in laws.items()
      for name, constant in law['params'].items()
    ],
    'Constants of each form.',
    align='llrrl',
  )
  flags = [
    f'{form}: {"; ".join(law["flags"])}.'
    for form, law in laws.items()
    if law.get('flags')
  ]
  return html.Section(
    'law', 'Loss over width and depth', body + html.bullets(flags)
  )


def _shapes(results: Results, gallery: html.Gallery) -> str:
  """Returns the figure of the law, or which of its parts is missing."""
  missing = 'The figure of the law over its points is missing here: '
  law: law_depth.Law | None = results.fits.get((_LOSS, _FORM))
  if law is None:
    constants = results.summary['laws'][_FORM]['params']
    values = {name: each['value'] for name, each in constants.items()}
    if None in values.values():
      return html.paragraph(f'{missing}a constant of it has no value.')
    form = forms.get(_FORM)
    law = fit_record.Law(form, fit_record.FitRecord(form=_FORM, params=values))
  rows = [row for run in results.runs if run.finished for row in run.rows]
  if not rows:
    return html.paragraph(
      f'{missing}the folder holds no run that finished, neither below cells/ nor'
      ' in rows.jsonl.'
    )
  return gallery.show(
    'shapes',
    law_depth.shapes(
      law,
      tables.from_rows(rows, _LOSS, mix_corpora=True),
      'Loss over width and depth',
    ),
    'Loss by depth at each width and by width at each depth, with the law',
    'Points: the last evaluation of each run. Lines: the law with a term for each'
    ' of width, depth and tokens.',
  )


def _forms(
  summary: Mapping[str, Any], gallery: html.Gallery
) -> html.Section | str:
  selection = summary.get('selection')
  if not selection:
    return 'No forms were compared.'
  body = gallery.show(
    'forms',
    law_depth.forms(selection),
    'AIC behind the lowest, and the relative error on shapes held out, by form',
    'Left: AIC behind the lowest. Right: relative error on each shape, predicted'
    ' from all others.',
  )
  body += html.table(
    ['form', 'constants', 'AIC behind', 'error on shapes held out, %', 'over'],
    [_candidate(row) for row in selection['candidates']],
    'Forms, the lowest AIC first. Over: the error above that of the form that'
    ' predicts best, shape by shape.',
    align='lrrrr',
  )
  return html.Section('forms', 'Which form?', body)


def _candidate(row: Mapping[str, Any]) -> list[str]:
  held = row['by_model']
  return [
    row['form'],
    str(row['parameters']),
    text.number(row['aic_behind']),
    _percent(held['error']) if held else '–',
    _percent(row['model_error_behind']),
  ]


def _percent(mean: Mapping[str, Any] | None) -> str:
  if mean is None:
    return '–'
  values = [mean[key] for key in ('value', 'lo', 'hi')]
  return text.estimate(*(None if v is None else 100 * v for v in values))


def _scan(
  summary: Mapping[str, Any], gallery: html.Gallery
) -> html.Section | str:
  scan = summary.get('scan')
  if not scan:
    return 'What the law says without the highest losses was not asked.'
  rows: Sequence[Mapping[str, Any]] = scan['cutoffs']
  names = list(rows[0]['params'])
  body = gallery.show(
    'cutoffs',
    law_depth.cutoffs(scan),
    'Exponents over the number of points of highest loss left out',
    'A law that is right gives the same exponents wherever it is fitted.',
  )
  body += html.table(
    ['left out', 'points', 'losses up to', *names, 'flags'],
    [
      [
        str(row['dropped']),
        str(row['rows']),
        text.number(row['below']),
        *(_constant(row, name) for name in names),
        _flags(row),
      ]
      for row in rows
    ],
    'Constants without the points of highest loss.',
    align='rrr' + 'r' * len(names) + 'l',
  )
  return html.Section('cutoffs', 'Does the law depend on where it looks?', body)


def _constant(row: Mapping[str, Any], name: str) -> str:
  """Returns a constant of a fit with its interval, if it is identified."""
  value = row['params'][name]
  if any(
    flag.startswith(f'{name} not identified') for flag in row.get('flags') or []
  ):
    return f'not identified ({text.number(value["value"])})'
  return text.estimate(*_ends(value))


def _flags(row: Mapping[str, Any]) -> str:
  return '; '.join(row.get('flags') or []) or '–'


def _over_e(summary: Mapping[str, Any]) -> html.Section | str:
  over = summary.get('over_E')
  if not over:
    return 'How the exponents depend on E was not asked.'
  rows: Sequence[Mapping[str, Any]] = over['rows']
  names = [name for name in rows[0]['params'] if name.startswith('a_')]
  body = html.paragraph(
    'What no model loses less than, E, and the term of depth are told apart by how'
    ' the loss levels off. Where the points do not show that, the exponents are'
    ' those of the E that was taken: here E is held, and all other constants are'
    ' fitted anew.'
  )
  body += html.table(
    ['E held at', *names, 'AIC behind', 'flags'],
    [
      [
        text.number(row['value']),
        *(text.number(row['params'][name]) for name in names),
        text.number(row['aic_behind']),
        _flags(row),
      ]
      for row in rows
    ],
    f'Exponents of {over["form"]} by E, from 0 to near the lowest loss. AIC behind'
    ' that of the best of them and of the fit that leaves E free, with E counted as'
    ' a constant in all.',
    align='r' + 'r' * len(names) + 'rl',
  )
  return html.Section('over_e', 'How the exponents depend on E', body)


def _ends(row: Mapping[str, Any]) -> list[float | None]:
  return [row[key] for key in ('value', 'lo', 'hi')]


def _controls(summary: Mapping[str, Any]) -> html.Section | str:
  rates = summary.get('rates')
  if not rates:
    return 'Other base rates were not tried.'
  body = html.table(
    ['width', 'depth', 'base rate', 'loss, nats', "over the grid's"],
    [
      [
        str(row['width']),
        str(row['depth']),
        text.trimmed(row['base_lr']),
        text.number(row['loss'], 4),
        text.percent(row['over']),
      ]
      for row in rates
    ],
    'The corners of the grid at other base rates: where one that is negative goes'
    ' with width or depth, the law holds the rate as well.',
    align='rrrrr',
  )
  return html.Section('rates', 'One rate for all shapes?', body)


def _definitions(summary: Mapping[str, Any]) -> html.Section:
  equations = {
    f'Form {name}': html.formula(forms.get(name).equation)
    for name in summary.get('laws') or {}
  }
  return html.Section(
    'terms', 'Definitions', html.terms({**_DEFINITIONS, **equations})
  )

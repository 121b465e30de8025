"""Words that the pages of allocations share: gains, errors, definitions."""

from collections.abc import Mapping
from typing import Any

from familial.allocation import comparison
from familial.allocation import frontier
from familial.allocation import policies
from familial.allocation import surrogate
from familial.core import text as text_lib
from familial.report import html

Estimate = Mapping[str, Any]  # value, lo, hi
POLICIES = {
  'uniform': 'Every candidate gets an equal share; nobody is pruned.',
  'sh': (
    'Successive Halving: those of the lowest loss seen so far stay; what the'
    ' others are compared with.'
  ),
  'sh_lmc': (
    'Successive Halving by the lower of the loss seen and that predicted for the'
    ' end by a multi-output Gaussian process over the curves (a linear model of'
    ' coregionalisation).'
  ),
  'sh_ensemble_power_law': (
    'As sh_lmc, with five small networks that give the coefficients of a power'
    ' law.'
  ),
  'sh_ensemble_exponential': 'As sh_ensemble_power_law, with an exponential.',
  'sh_ensemble_mmf': (
    'As sh_ensemble_power_law, with a curve of Morgan, Mercer and Flodin.'
  ),
  'law': (
    "Trains what reduces the variance of the law's extrapolated loss most a"
    ' FLOP, round by round; nobody is pruned, and the lowest loss is not looked'
    ' for.'
  ),
  'oracle': (
    'Successive Halving by the true loss at the end, which only a replay knows:'
    ' the bound by best loss for all policies of the same rounds.'
  ),
}
_SHARED = {
  'Candidate': 'A model that can be trained; its curve is its loss by FLOPs.',
  'Budget': (
    'FLOPs for all candidates together. Nothing is refunded, and what a'
    ' candidate that ends leaves is not spent.'
  ),
  'Round': (
    'All survivors train on by one share, B / (survivors × rounds); then one in'
    ' eta stays.'
  ),
  'Score': (
    'What survivors are ranked by, the lowest first: the lowest loss seen, or'
    ' the lower of it and the predicted one.'
  ),
  'Prediction': (
    'Of the loss at the compute that a candidate will have if it survives to the'
    f' last round, with an interval of {100 * surrogate.LEVEL:g} %. Predictions'
    ' prune; no law is fitted to them.'
  ),
  'Frontier': (
    'The lowest loss over all curves after so many FLOPs. Its line is straight'
    f' in log loss over log C, through the last factor of {frontier.WIDTH:g} of'
    ' compute.'
  ),
  'Area (AbC)': (
    'Area between the lines of two frontiers in ln loss over ln C, from the start'
    " of the whole grid's line to where losses are extrapolated to."
  ),
  'Law': (
    'Fitted to the losses that were trained, and asked for the best loss at a'
    ' compute beyond the grid, at its own best size.'
  ),
}
REPLAYED = {
  'Draw': 'A random choice of the candidates; all policies get the same ones.',
  'Gain over sh': (
    '(loss of sh − loss) / loss of sh on one draw, of the best model each has'
    ' seen; the mean over draws.'
  ),
  'Of the oracle': (
    "Mean gain over the oracle's. It means little where the oracle gains little;"
    ' uniform and law have rounds of their own, and may pass it.'
  ),
  'Regret': (
    'The loss over the lowest that the whole budget could buy, less 1: given to'
    ' the one candidate that makes most of it.'
  ),
  'Saving': '1 − budget / cost of training all candidates to their ends.',
  'Law off by': (
    'Relative error of the extrapolated loss of the law, against the whole'
    " grid's law; the median size over draws. Line off by: the same of the"
    " frontier's line."
  ),
  'Coverage': (
    'Share of true losses within their predicted intervals: a surrogate that'
    f' knows what it does not know has {100 * surrogate.LEVEL:g} %.'
  ),
  'Last loss held': (
    'The prediction that nothing changes: the lowest loss seen.'
  ),
  'Interval': (
    f'Percentiles ({100 * comparison.LEVEL:g} %) over resampled draws. Draws share'
    ' curves: it says how sure the mean over draws is, not how other curves'
    ' would do.'
  ),
}


def definitions(more: Mapping[str, str]) -> html.Section:
  """What every quantity means, and every policy."""
  named = {
    f'Policy {name}': POLICIES[name]
    for name in policies.POLICIES
    if name in POLICIES
  }
  return html.Section(
    'terms', 'Definitions', html.terms({**_SHARED, **more, **named})
  )


def gain(row: Estimate) -> str:
  """A signed share in per cent with its interval."""
  value, lo, hi = row['value'], row['lo'], row['hi']
  if value is None:
    return '–'
  if lo is None or hi is None:
    return f'{text_lib.percent(value)} (no interval)'
  if not value and not lo and not hi:
    return f'0{text_lib.SPACE}%'
  text = text_lib.estimate(*(100 * each for each in (value, lo, hi)))
  number, _, span = text.partition(' [')
  return f'{"+" if value > 0 else ""}{number}{text_lib.SPACE}% [{span}'


def error(row: Estimate) -> str:
  """A share in per cent with its interval, without a sign."""
  value, lo, hi = row['value'], row['lo'], row['hi']
  if value is None:
    return '–'
  text = f'{text_lib.number(100 * value, 2)}{text_lib.SPACE}%'
  if lo is None or hi is None:
    return text
  ends = [text_lib.number(100 * each, 2) for each in (lo, hi)]
  return f'{text} [{ends[0]},{text_lib.SPACE}{ends[1]}]'


def plain(row: Estimate, digits: int = 4) -> str:
  """A value without its interval."""
  return text_lib.number(row['value'], digits)

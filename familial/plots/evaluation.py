"""The figures of an evaluation, as PNG: what thresholds cost, calibration."""

import pathlib

from matplotlib import figure as mpl_figure
from matplotlib import ticker
import numpy as np

from familial.core import storage
from familial.plots import style
from familial.serving import benchmark
from familial.serving import evaluate

Figure = mpl_figure.Figure
_DPI = 150
_NAMED = 8  # exits in a legend, at most
_NAMES = {
  'max_prob': 'largest probability',
  'gap': 'gap of the two largest',
  'entropy': '1 − entropy / log V',
}


def draw(evaluation: evaluate.Evaluation, folder: pathlib.Path) -> None:
  """Writes reliability.png and, of several exits, thresholds.png."""
  figures = {'reliability': reliability(evaluation)}
  if evaluation.curves:
    figures['thresholds'] = curves(evaluation)
  for name, figure in figures.items():
    save(figure, folder / f'{name}.png')


def save(figure: Figure, path: pathlib.Path) -> None:
  """Writes a figure as PNG; its folder is made if missing."""
  with storage.writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)


@style.drawn
def decoding(measured: benchmark.Decoding) -> Figure:
  """Tokens a second by mode, and of several exits bytes a token by hop."""
  counts = list(dict.fromkeys(speed.rows for speed in measured.speeds))
  figure, axes = style.panels(
    len(counts) + bool(measured.hops),
    f'{measured.run}: greedy decoding after {measured.prompt_tokens} tokens',
    height=3.4,
  )
  colours = {
    mode: style.CYCLE[place]
    for place, mode in enumerate(('exit', 'confidence', 'speculative'))
  }
  for ax, count in zip(axes, counts, strict=False):
    speeds = [s for s in measured.speeds if s.rows == count][::-1]
    rates = [speed.tokens / speed.seconds for speed in speeds]
    ax.barh(
      [_way(speed) for speed in speeds],
      rates,
      color=[colours[speed.mode] for speed in speeds],
    )
    for place, rate in enumerate(rates):
      ax.annotate(
        f'{rate:,.0f}', (rate, place), (3, 0), textcoords='offset points',
        va='center', fontsize='small',
      )  # fmt: skip
    ax.set_xlim(0, 1.25 * max(rates))
    ax.set_title(f'{count} text{"s" * (count > 1)} at once')
    ax.set_xlabel('tokens a second')
  if not measured.hops:
    return figure
  hops = list(dict.fromkeys(hop.to for hop in measured.hops))
  dtypes = list(dict.fromkeys(hop.dtype for hop in measured.hops))
  width = 0.8 / len(dtypes)
  for index, dtype in enumerate(dtypes):
    sizes = [hop.bytes for hop in measured.hops if hop.dtype == dtype]
    axes[-1].bar(
      np.arange(len(hops)) + (index - (len(dtypes) - 1) / 2) * width,
      sizes, width, label=dtype, color=style.CYCLE[index],
    )  # fmt: skip
  axes[-1].set_xticks(range(len(hops)), [str(to) for to in hops])
  axes[-1].set_xlabel('tier of exit')
  axes[-1].set_title(f'relay, {counts[-1]} texts')
  axes[-1].set_ylabel('bytes a token, from and to the client')
  top = max(hop.bytes for hop in measured.hops)
  axes[-1].set_ylim(0, 1.45 * top)  # Room for the legend.
  axes[-1].legend(loc='upper left')
  return figure


def _way(speed: benchmark.Speed) -> str:
  """Returns a mode as an axis names it."""
  kind = 'first sure exit, ' if speed.mode == 'confidence' else ''
  return kind + speed.detail


@style.drawn
def curves(evaluation: evaluate.Evaluation) -> Figure:
  """Loss, share of tokens by exit, and layers, over thresholds of each kind."""
  kinds, count = list(evaluation.curves), len(evaluation.exits)
  figure, axes = style.panels(
    3 * len(kinds),
    f'{evaluation.run}: each token leaves at the first exit that is sure',
    height=2.3,
  )
  rows = [axes[i : i + len(kinds)] for i in range(0, len(axes), len(kinds))]
  shades = style.budget_colours(score.layer for score in evaluation.exits)
  # More would not fit the legend; the colours follow the order of the exits.
  named = np.linspace(0, count - 1, min(count, _NAMED)).round()
  names = [
    f'exit {score.exit}' if index in named else '_'
    for index, score in enumerate(evaluation.exits)
  ]
  for kind, loss_ax, share_ax, layers_ax in zip(kinds, *rows, strict=True):
    outcomes = evaluation.curves[kind]
    x = np.array([o.threshold for o in outcomes], float)
    loss_ax.set_title(_NAMES[kind])
    loss_ax.plot(x, [100 * o.increase for o in outcomes], color='black')
    if outcomes[0].increase_low is not None:
      loss_ax.fill_between(
        x,
        [100 * (o.increase_low or 0.0) for o in outcomes],
        [100 * (o.increase_high or 0.0) for o in outcomes],
        color='black', alpha=0.15, lw=0, label='95 % interval',
      )  # fmt: skip
    share_ax.stackplot(
      x,
      *100 * np.array([o.shares for o in outcomes]).T,
      colors=[shades[score.layer] for score in evaluation.exits],
      labels=names,
      lw=0,
    )
    share_ax.set_ylim(0, 100)
    layers_ax.plot(
      x, [o.layers for o in outcomes], color=style.CYCLE[0],
      label='up to the exit',
    )  # fmt: skip
    layers_ax.plot(
      x, [o.layers_deferred for o in outcomes], color=style.CYCLE[1], ls='--',
      label='with deferred',
    )  # fmt: skip
    layers_ax.set_ylim(0, evaluation.exits[-1].layer * 1.05)
    layers_ax.yaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    layers_ax.set_xlabel('threshold')
    chosen = evaluation.chosen[kind].threshold or 0.0
    for ax in (loss_ax, share_ax, layers_ax):
      ax.set_xlim(0, 1)
      ax.axvline(
        chosen, color=style.CYCLE[3], ls=':',
        label=f'at most {100 * evaluate.LOSS_INCREASE:g} % worse',
      )  # fmt: skip
  labels = ('loss increase, %', 'tokens, %', 'layers per token')
  for row, label in zip(rows, labels, strict=True):
    style.label_y(row, label)
  style.legend(figure, axes)
  return figure


@style.drawn
def reliability(evaluation: evaluate.Evaluation) -> Figure:
  """How often each exit is right, against how sure it is; a panel each."""
  figure, axes = style.panels(
    len(evaluation.exits),
    f'{evaluation.run}: how often the likeliest token is right',
    height=2.9,
  )
  for ax, score in zip(axes, evaluation.exits, strict=True):
    ax.plot([0, 1], [0, 1], color=style.MUTED, ls='--', label='calibrated')
    ax.bar(
      [b.low for b in score.bins],
      [b.tokens / evaluation.tokens for b in score.bins],
      width=[b.high - b.low for b in score.bins],
      align='edge', color='#d6d6d6', lw=0, label='share of tokens',
    )  # fmt: skip
    ax.plot(
      # Of an empty bin None, which becomes NaN and is not drawn.
      np.array([b.confidence for b in score.bins], float),
      np.array([b.accuracy for b in score.bins], float),
      color=style.CYCLE[0], marker='o', ms=4, label='accuracy',
    )  # fmt: skip
    ax.set_title(
      f'exit {score.exit}, layer {score.layer}: '
      f'error {100 * score.calibration_error:.2g} %'
    )
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.set_xlabel('largest probability')
  style.label_y(axes, 'share')
  style.legend(figure, axes)
  return figure

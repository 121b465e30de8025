"""A kind of study is added by a module, a template and a line of the registry."""

import dataclasses
import importlib.util

import jinja2

from familial.cli import studies as commands
from familial.report import page
from familial.studies import registry
from familial.studies import study as study_lib

MODULE = '''
"""Loss against the learning rate, at equal tokens."""

import dataclasses
from typing import Annotated

import altair as alt

from familial.core import schema
from familial.plots import theme
from familial.studies import execution, shapes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(shapes.TrainedConfig):
  """A study of learning rates.

  Attributes:
    rates: base learning rates.
  """

  rates: Annotated[tuple[schema.Positive, ...], schema.NOT_EMPTY] = (0.01, 0.02)


@dataclasses.dataclass(frozen=True)
class Rate:
  rate: float
  loss: float


@dataclasses.dataclass(frozen=True)
class Tables:
  rates: tuple[Rate, ...]


class Rates(execution.TrainedStudy[Config, Tables]):
  kind, config_class, tables_class = 'rates', Config, Tables

  def runs(self, config):
    return [shapes.run(
      config, (), cell=f'lr{rate:g}', arm='grid', budget=1e8,
      model=shapes.model(config, (8, 2, 1), (2,)), base_lr=rate,
    ) for rate in config.rates]

  def analyse(self, config, results):
    rows = tuple(Rate(r.base_lr, r.loss('final')) for r in results.finished)
    return f'lowest at {min(rows, key=lambda row: row.loss).rate:g}', Tables(rows)


def losses(tables):
  line = alt.Chart().mark_line().encode(x='rate:Q', y='loss:Q')
  return theme.single([line], theme.flat(tables.rates))
'''
TEMPLATE = """
{% extends 'page.html.j2' %}
{% block body %}
{% call section('answer', 'The answer') %}
{{ figure('losses', plots.rates.losses(summary.tables)) }}
{{ table(summary.tables.rates, {'rate': 'rate', 'loss': ('loss', 'loss')}) }}
{% endcall %}
{% endblock %}
"""


def test_a_new_study_is_added_in_under_60_lines(
  tmp_path, monkeypatch, text_data, calibrated, trained
):
  lines = [line for line in f'{MODULE}{TEMPLATE}'.split('\n') if line.strip()]
  assert len(lines) < 60
  (tmp_path / 'rates.py').write_text(MODULE)
  spec = importlib.util.spec_from_file_location('rates', tmp_path / 'rates.py')
  rates = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(rates)
  packaged = jinja2.PackageLoader.get_source

  def get_source(loader, environment, name):
    if name == 'rates.html.j2':
      return TEMPLATE, None, lambda: True
    return packaged(loader, environment, name)

  monkeypatch.setattr(jinja2.PackageLoader, 'get_source', get_source)
  monkeypatch.setitem(registry.STUDIES, 'rates', rates.Rates())
  monkeypatch.setitem(page.PLOTS, 'rates', rates)

  calibrated(1e9)
  study = registry.STUDIES['rates']
  config = study.template()
  config.data = dataclasses.asdict(text_data)
  config.train.update(steps=20, batch_size=4, warmup_steps=2)
  config.model.base_width = 8
  printed = commands.run_study(study, config, tmp_path / 'w')
  assert printed == f'lowest at 0.01\n{tmp_path}/w/report/index.html'
  summary = study.read_summary(tmp_path / 'w')
  assert [row.rate for row in summary.tables.rates] == [0.01, 0.02]
  assert registry.of_plan(study_lib.read(tmp_path / 'w').plan) is study
  html = (tmp_path / 'w' / 'report' / 'index.html').read_text('utf-8')
  assert 'id="figure-losses"' in html and 'id="answer"' in html
  assert (tmp_path / 'w' / 'report' / 'figures' / 'losses.png').exists()

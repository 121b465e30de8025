"""What the tests of all pages share: a page that is read and checked."""

import html.parser
import json
import pathlib
import re

import pytest

from familial.plots import theme

VOID = {'meta', 'img', 'br', 'link', 'hr', 'input'}


class Page(html.parser.HTMLParser):
  """What a page holds; its tags close in order, and it needs no network.

  Attributes:
    sections: their ids.
    figures: names of the figures.
    links: addresses.
    rows: number of rows by table.
    tags: all tags in order.
    content: the text.
  """

  def __init__(self, path: pathlib.Path):
    super().__init__()
    self.open, self.ids, self.links, self.figures = [], [], [], set()
    self.tags, self.rows, self.sections = [], {}, []
    self.content = self.table = ''
    self.feed(path.read_text('utf-8'))
    self.close()
    assert not self.open
    assert path.stat().st_size < 4e6
    assert len(self.ids) == len(set(self.ids))
    assert not {'link', 'iframe', 'object'} & set(self.tags)
    for link in self.links:
      assert not re.match('(https?|data|javascript):', link)
      assert not link.startswith('#') or link[1:] in self.ids

  def handle_starttag(self, tag, attrs):
    values = dict(attrs)
    self.tags.append(tag)
    self.ids += [values['id']] if 'id' in values else []
    self.sections += [values['id']] if tag == 'section' else []
    self.links += [values[key] for key in ('href', 'src') if key in values]
    self.chart = values.get('data-chart')
    if values.get('class') == 'table':
      self.table = values.get('data-csv', '')
    if tag == 'tr':
      self.rows[self.table] = self.rows.get(self.table, 0) + 1
    if tag not in VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open and self.open.pop() == tag

  def handle_data(self, data):
    if self.open[-1:] == ['script']:
      if self.chart:
        self.figures.add(self.chart.removeprefix('figure-'))
        assert 'http' not in json.dumps({**json.loads(data), '$schema': ''})
    elif self.open[-1:] != ['style']:
      self.content += data


@pytest.fixture
def undrawn(monkeypatch):
  """Leaves out the files of the figures, which take most of a page's time."""
  monkeypatch.setattr(
    theme, 'save', lambda chart, path: theme.specification(chart)
  )

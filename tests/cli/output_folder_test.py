"""A result is replaced by its own command alone."""

import dataclasses
import json
import pathlib

import pytest

from familial.cli import output_folder
from familial.core import errors
from familial.core import storage
from familial.planning import pod
from familial.report import plan_page

PLANS = pathlib.Path(__file__).parents[2] / 'experiments/results/plans'


@dataclasses.dataclass(frozen=True)
class Flags:
  """Flags of a command.

  Attributes:
    out: folder.
    table: file.
    form: law.
    starts: a number.
    draw: shown or not.
    overwrite: replace.
  """

  out: str
  table: str = ''
  form: tuple[str, ...] = ('a',)
  starts: int = 3
  draw: bool = True
  overwrite: bool = False


def write(given, command='fit', name='fit.json', value=1):
  with output_folder.claimed(given.out, command, given) as folder:
    storage.write_json(folder / name, value)


@pytest.fixture
def flags(tmp_path):
  (tmp_path / 'table.csv').write_text('loss\n1\n')
  return Flags(f'{tmp_path}/new/out', f'{tmp_path}/table.csv')


def test_the_same_command_replaces_its_result(flags, tmp_path, monkeypatch):
  write(flags)
  monkeypatch.chdir(tmp_path)  # A path is the same by another name.
  again = dataclasses.replace(flags, table='table.csv', draw=False)
  write(again, value=2)
  assert storage.read_json(f'{flags.out}/fit.json') == 2


@pytest.mark.parametrize(
  ('command', 'changes', 'part'),
  [
    ('fit', {'form': ('a', 'b')}, '--form'),
    ('fit', {'starts': 4}, '--starts'),
    ('fit', {'table': ''}, '--table'),
    ('probe', {}, 'familial fit'),
  ],
)
def test_another_result_asks_to_overwrite(flags, command, changes, part):
  write(flags)
  other = dataclasses.replace(flags, **changes)
  with pytest.raises(errors.UserError, match='--overwrite') as raised:
    write(other, command, value=2)
  assert part in str(raised.value)
  assert storage.read_json(f'{flags.out}/fit.json') == 1
  write(dataclasses.replace(other, overwrite=True), command, value=2)
  assert storage.read_json(f'{flags.out}/fit.json') == 2
  write(other, command, value=3)  # It is this command's now.


def test_results_of_unknown_origin_ask_and_other_files_do_not(flags, tmp_path):
  here = dataclasses.replace(flags, out=str(tmp_path))
  write(here)
  (tmp_path / output_folder.RECORD).unlink()
  with pytest.raises(errors.UserError, match='--overwrite'):
    write(here)


def test_a_start_that_fails_leaves_nothing(flags, tmp_path):
  def fail(given):
    with output_folder.claimed(given.out, 'fit', given) as folder:
      folder.mkdir(parents=True, exist_ok=True)
      raise ValueError

  with pytest.raises(ValueError):
    fail(flags)
  assert not (tmp_path / 'new').exists()
  write(flags)
  record = (tmp_path / 'new/out' / output_folder.RECORD).read_bytes()
  with pytest.raises(ValueError):
    fail(dataclasses.replace(flags, starts=9, overwrite=True))
  assert (tmp_path / 'new/out' / output_folder.RECORD).read_bytes() == record
  write(flags)


@pytest.mark.parametrize(
  'arguments',
  [
    ['fit', '--table={table}', '--form=chinchilla', '--out={out}'],
    ['allocate', '--table={table}', '--budget=1e15', '--out={out}'],
    ['plan', '--config=single', '--topology=here', '--out={out}'],
    ['probe', '--checkpoint={out}', '--out={out}'],
  ],
)
def test_every_command_with_an_output_folder_asks(
  familial, tmp_path, arguments
):
  table, out = tmp_path / 'table.csv', tmp_path / 'out'
  rows = [
    f'{n},{d},{1.7 + 400 / n**0.3 + 400 / d**0.3},r{n}\n'
    for n in (1e6, 1e7, 1e8)
    for d in (1e8, 1e9, 1e10)
  ]
  table.write_text('params,tokens,loss,run\n' + ''.join(rows))
  storage.write_json(out / 'fit.json', {})
  line = [part.format(table=table, out=out) for part in arguments]
  status, printed, said = familial(*line)
  assert (status, printed) == (2, '')
  assert '--overwrite' in said and said.count('\n') == 1
  assert [path.name for path in out.iterdir()] == ['fit.json']


def test_a_fit_as_json_is_all_that_the_output_holds(familial, tmp_path):
  table = tmp_path / 'table.csv'
  rows = [
    f'{n},{d},{1.7 + 400 / n**0.3 + 400 / d**0.3}\n'
    for n in (1e6, 1e7, 1e8)
    for d in (1e8, 1e9, 1e10)
  ]
  table.write_text('params,tokens,loss\n' + ''.join(rows))
  line = [
    'fit', f'--table={table}', '--nodraw', '--json', '--starts=8',
    '--resamples=10',
  ]  # fmt: skip
  status, printed, said = familial(
    *line, '--form=chinchilla', f'--out={tmp_path}/one'
  )
  assert status == 0 and said
  assert json.loads(printed) == storage.read_json(tmp_path / 'one/fit.json')
  status, printed, said = familial(
    *line, '--form=chinchilla', '--form=params+tokens', f'--out={tmp_path}/two'
  )
  assert status == 0 and said
  found = json.loads(printed)
  assert found['fits'].keys() == {'chinchilla', 'params_tokens'}
  del found['fits']
  assert found == storage.read_json(tmp_path / 'two/selection.json')


def test_a_plan_as_json_is_all_that_the_output_holds(
  familial, tmp_path, monkeypatch
):
  plan = storage.read_json(PLANS / 'single_1b_v5e_4x4.json')
  monkeypatch.setattr(pod, 'make', lambda *unused: plan)
  monkeypatch.setattr(plan_page, 'write', lambda folder, plan: 'the page')
  line = ['plan', '--config=single:1b', '--topology=v5e:4x4', '--out=out']
  monkeypatch.chdir(tmp_path)
  status, printed, said = familial(*line, '--json')
  assert status == 0 and json.loads(printed) == plan
  status, printed, _ = familial(*line)
  assert status == 0 and printed == said

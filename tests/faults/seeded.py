"""Which of the faults in `seeded.json` the tests catch.

    python tests/faults/seeded.py [ID ...] [--room=ROOM] [--tests PATH ...]

A fault is a piece of source, `old`, that occurs once in the package, and what
replaces it. One fault at a time is put into a copy of the checkout, where pytest
runs the fast tests until one fails: first the files that the fault names, then
the rest of its room. A fault is caught by a test that fails with it and passes
without it; a test that does not end counts as failed. `seeded_results.json` is
written after every fault.
"""

import argparse
import collections
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

FOLDER = pathlib.Path(__file__).absolute().parent
ROOT = FOLDER.parents[1]
RESULTS = FOLDER / 'seeded_results.json'
# The tests of a fault's room, where the files that it names do not catch it.
ROOMS = {
  'laws': ['tests/laws'],
  'expansion': ['tests/expansion'],
  'training': ['tests/training'],
  'model': ['tests/model'],
  'data': ['tests/data'],
}
SECONDS = 900
_FAILED = re.compile(r'^(?:FAILED|ERROR) (\S+::\w+(?:\[.*?\])?)(?: - |$)', re.M)


def faults():
  """Returns the faults, in the order of the record."""
  return json.loads((FOLDER / 'seeded.json').read_text())


def places(fault, root=ROOT):
  """Returns the package's files that hold a fault's `old`, once per place."""
  return [
    path
    for path in sorted((root / 'familial').rglob('*.py'))
    for _ in range(path.read_text().count(fault['old']))
  ]


def first_failure(copy, *arguments):
  """Returns the id of the first test that fails in a copy, or None."""
  command = [
    sys.executable, '-m', 'pytest', '-x', '-rfE', '--tb=no',
    # Compiled programs, which the tests keep there, are shared by all faults.
    '-o', f'cache_dir={ROOT / ".pytest_cache" / "seeded"}', *arguments,
  ]  # fmt: skip
  # Files change faster than their times: no bytecode is kept.
  environment = {
    **os.environ, 'PYTHONPATH': str(copy), 'PYTHONDONTWRITEBYTECODE': '1'
  }  # fmt: skip
  process = subprocess.Popen(
    command, cwd=copy, env=environment, text=True, stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT, start_new_session=True,
  )  # fmt: skip
  try:
    output, _ = process.communicate(timeout=SECONDS)
  except subprocess.TimeoutExpired:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return f'no end after {SECONDS} s'
  if process.returncode in (0, 5):  # 5: no test was selected.
    return None
  if not (failed := _FAILED.search(output)):
    sys.exit(f'no test failed, and pytest ended with an error:\n{output}')
  return failed[1]


def outcome(fault, copy, tests, sound):
  """Returns a fault's result; the copy is unchanged afterwards."""
  begun = time.monotonic()
  [path] = places(fault, copy)
  source = path.read_text()
  path.write_text(source.replace(fault['old'], fault['new']))
  try:
    # Whatever has moved since the record was written is found by the room.
    likely = [name for name in fault['tests'] if (copy / name).exists()]
    failed = first_failure(copy, *likely) if likely else None
    skipped = [f'--ignore={name}' for name in likely]
    failed = failed or first_failure(copy, *tests, *skipped)
  finally:
    path.write_text(source)
  seconds = round(time.monotonic() - begun, 1)
  result = 'caught' if failed else 'survived'
  if failed and '::' in failed and failed not in sound:
    if first_failure(copy, failed):
      result = 'unclear: the test fails without the fault too'
    else:
      sound.add(failed)
  return {'result': result, 'test': failed, 'seconds': seconds}


def main():
  """Tries the faults that are asked for, and says how many were caught."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('ids', nargs='*', help='faults to try; by default all')
  parser.add_argument('--room', choices=ROOMS, help='only the faults of a room')
  parser.add_argument('--tests', nargs='+', help="instead of the room's tests")
  asked = parser.parse_args()
  results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
  sound = set()
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder) / 'copy'
    ignored = shutil.ignore_patterns('.*', '__pycache__', 'runs')
    shutil.copytree(ROOT, copy, ignore=ignored)
    for fault in faults():
      room, name = fault['room'], fault['id']
      if asked.room in (None, room) and (not asked.ids or name in asked.ids):
        tests = asked.tests or ROOMS[room]
        results[name] = outcome(fault, copy, tests, sound)
        print(room, name, *results[name].values(), sep='\t', flush=True)
        RESULTS.write_text(json.dumps(results, indent=2) + '\n')
  counts = collections.Counter(
    (fault['room'], results[fault['id']]['result'])
    for fault in faults()
    if fault['id'] in results
  )
  for (room, result), count in sorted(counts.items()):
    print(f'{room}: {count} {result}')


if __name__ == '__main__':
  main()

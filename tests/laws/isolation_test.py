import pathlib
import subprocess
import sys

LAWS = pathlib.Path(__file__).parents[2] / 'familial' / 'laws'


def test_laws_and_records_import_without_flax():
  modules = [
    f'familial.laws.{p.stem}'
    for p in sorted(LAWS.glob('*.py'))
    if p.stem != '__init__' and not p.stem.startswith('figures')
  ]
  code = '\n'.join(
    [
      'import sys',
      'for name in ("flax", "optax", "orbax", "matplotlib"):',
      '  sys.modules[name] = None',
      *(f'import {name}' for name in [*modules, 'familial.core.storage']),
    ]
  )
  subprocess.run([sys.executable, '-c', code], check=True, cwd=LAWS.parents[1])

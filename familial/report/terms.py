"""Definitions of the terms on the pages, shown where they stand."""

from importlib import resources
import tomllib

from familial.analysis import middle

_FILE = resources.files('familial.report') / 'terms.toml'
_STATISTICS = (
  'alignment',
  'departure',
  'drift',
  'step_spread',
  'early',
  'stop_spread',
)
TERMS = {
  name: ' '.join(definition.split())
  for name, definition in tomllib.loads(_FILE.read_text('utf-8')).items()
} | {name: f'{middle.DEFINITIONS[name]}.' for name in _STATISTICS}
# Terms of the policies of allocations.
POLICIES = [name for name in TERMS if name.startswith('policy ')]

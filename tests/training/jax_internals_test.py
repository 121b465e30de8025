"""What must hold in a version of JAX before setup.cfg allows it.

If one of these fails with a new version: where JAX has a public replacement by
now, use it and drop the function; otherwise follow the name to its new place in
familial/training/jax_internals.py. Only then raise the bound in setup.cfg.
"""

import configparser
import pathlib
import subprocess
import sys

import jax

ROOT = pathlib.Path(__file__).parents[2]


def test_this_jax_is_within_the_bound():
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  [bounds] = [
    line.removeprefix('jax>=')
    for line in setup['options']['install_requires'].split()
    if line.startswith('jax>=')
  ]
  lowest, highest = (
    tuple(map(int, bound.split('.'))) for bound in bounds.split(',<')
  )
  assert lowest <= jax.__version_info__ < highest


def test_a_connected_process_has_a_store_and_a_barrier():
  program = (
    'import socket, jax\n'
    'from familial.training import jax_internals\n'
    "with socket.create_server(('', 0)) as free:\n"
    '  port = free.getsockname()[1]\n'
    "jax.distributed.initialize(f'localhost:{port}', 1, 0)\n"
    'client = jax_internals.client()\n'
    "client.key_value_set('key', 'value')\n"
    "assert client.blocking_key_value_get('key', 1000) == 'value'\n"
    "client.wait_at_barrier('barrier', 1000)\n"
    'print(jax_internals.num_processes(), jax_internals.process_id())\n'
  )
  printed = subprocess.check_output([sys.executable, '-c', program], text=True)
  assert printed.split() == ['1', '0']


def test_programs_are_written_by_the_given_function(tmp_path):
  program = (
    'import pathlib, sys, jax\n'
    'from familial.training import jax_internals\n'
    'written = []\n'
    'def write(path, program):\n'
    '  written.append(path.parent == pathlib.Path(sys.argv[1]))\n'
    '  path.write_bytes(program)\n'
    'jax_internals.write_programs_with(write)\n'
    "jax.config.update('jax_compilation_cache_dir', sys.argv[1])\n"
    "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)\n"
    'jax.jit(lambda x: 2 * x + 1)(jax.numpy.arange(3.0))\n'
    'print(len(written), all(written))\n'
  )
  command = [sys.executable, '-c', program, str(tmp_path)]
  count, here = subprocess.check_output(command, text=True).split()
  assert int(count) > 0 and here == 'True'
  # The next process reads all of them.
  assert subprocess.check_output(command, text=True).split()[0] == '0'
  # Those that are damaged are replaced, so that they are reported once.
  for path in tmp_path.glob('*-cache'):
    path.write_bytes(path.read_bytes()[:100])
  for damaged in (True, False):
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (int(done.stdout.split()[0]) > 0) == damaged
    assert ('Error reading' in done.stderr) == damaged

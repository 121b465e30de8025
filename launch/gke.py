"""Runs a command on TPU slices of a GKE cluster, as a JobSet.

  python launch/gke.py --name=family --image=REPOSITORY/familial:1 \
      --accelerator=tpu-v5p-slice --topology=2x2x4 --claim=work -- \
      familial train --config=experiments/single.py --workdir=/work/single

One pod a host; JAX finds the others in the variables that GKE sets. A pod that
fails or is taken away starts all of them again, and the command goes on from
what it saved: so the workdir must be on the volume of --claim, which all hosts
write to (ReadWriteMany, with flock: Filestore). The manifest is JSON, which
kubectl takes as it takes YAML. Standard library only.
"""

import argparse
from collections.abc import Sequence
import json
import math
import re
import subprocess
import sys
from typing import Any

# As GKE names them, and the dimensions of their topologies.
ACCELERATORS = {
  'tpu-v4-podslice': 3,
  'tpu-v5-lite-podslice': 2,
  'tpu-v5p-slice': 3,
  'tpu-v6e-slice': 2,
  'tpu7x': 3,
}
_SPOT = 'cloud.google.com/gke-spot'
_VOLUME, _FOLDER = 'work', '/work'


def manifest(arguments: argparse.Namespace) -> dict[str, Any]:
  """Returns the JobSet: `slices` jobs, each a pod for every host of a slice."""
  hosts, chips = hosts_of(arguments.topology, arguments.chips)
  selector = {
    'cloud.google.com/gke-tpu-accelerator': arguments.accelerator,
    'cloud.google.com/gke-tpu-topology': arguments.topology,
  }
  if arguments.spot:
    selector[_SPOT] = 'true'
  claim = {'claimName': arguments.claim}
  pod: dict[str, Any] = {
    'restartPolicy': 'Never',  # Hosts start together or not at all.
    'nodeSelector': selector,
    'terminationGracePeriodSeconds': 120,  # From SIGTERM on, to save.
    'containers': [
      {
        'name': 'familial',
        'image': arguments.image,
        'command': list(map(_literal, arguments.command)),
        'env': [
          {'name': name, 'value': _literal(value)}
          # familial train is then one of the job's processes.
          for name, value in [('FAMILIAL_PROCESSES', 'auto'), *arguments.env]
        ],
        # TPU runtime; coordinators of JAX and of several slices.
        'ports': [{'containerPort': port} for port in (8471, 8482, 8080)],
        'resources': {'limits': {'google.com/tpu': chips}},
        'volumeMounts': [{'name': _VOLUME, 'mountPath': _FOLDER}],
      }
    ],
    'volumes': [{'name': _VOLUME, 'persistentVolumeClaim': claim}],
  }
  if arguments.spot:
    taint = {'key': _SPOT, 'value': 'true', 'effect': 'NoSchedule'}
    pod['tolerations'] = [{**taint, 'operator': 'Equal'}]
  return {
    'apiVersion': 'jobset.x-k8s.io/v1alpha2',
    'kind': 'JobSet',
    'metadata': {
      'name': arguments.name,
      # A slice is a node pool: two jobs never share one.
      'annotations': {
        'alpha.jobset.sigs.k8s.io/exclusive-topology': (
          'cloud.google.com/gke-nodepool'
        )
      },
    },
    'spec': {
      'failurePolicy': {'maxRestarts': arguments.restarts},
      'replicatedJobs': [
        {
          'name': 'slice',
          'replicas': arguments.slices,
          'template': {
            'spec': {
              'completionMode': 'Indexed',
              'parallelism': hosts,
              'completions': hosts,
              'backoffLimit': 0,
              'template': {'spec': pod},
            }
          },
        }
      ],
    },
  }


def hosts_of(topology: str, chips: int) -> tuple[int, int]:
  """Returns the hosts of a slice, and the chips of each.

  Args:
    topology: of the slice, such as 2x2x4.
    chips: of a host, where the slice has more than one.
  """
  total = math.prod(map(int, topology.split('x')))
  return (1, total) if total <= chips else (total // chips, chips)


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """Returns the flags; what is wrong with them is one line, and status 2."""
  parser = argparse.ArgumentParser(
    usage=argparse.SUPPRESS,
    description='launch/gke.py [flags] -- COMMAND',
    allow_abbrev=False,
  )
  parser.add_argument('--name', type=_name, required=True)
  parser.add_argument(
    '--image', required=True, help='With familial[tpu] installed in it.'
  )
  parser.add_argument('--accelerator', choices=ACCELERATORS, required=True)
  parser.add_argument(
    '--topology', required=True, help='Chips of a slice, such as 2x2x4 or 4x4.'
  )
  parser.add_argument(
    '--chips',
    type=int,
    choices=(4, 8),
    default=4,
    help='Chips of a host: 8 is for 2x4 on one host.',
  )
  parser.add_argument(
    '--slices', type=_count, default=1, help='Slices of the one run.'
  )
  parser.add_argument('--spot', action='store_true', help='On spot nodes.')
  parser.add_argument(
    '--claim',
    type=_name,
    required=True,
    help=f'Claim of the volume that all hosts share, as {_FOLDER}.',
  )
  parser.add_argument(
    '--env',
    type=_variable,
    action='append',
    default=[],
    help='NAME=VALUE for every host; repeated.',
  )
  parser.add_argument(
    '--restarts', type=_count, default=20, help='After failures of any host.'
  )
  parser.add_argument(
    '--dry_run',
    '--dry-run',
    action='store_true',
    help='Print the manifest, apply nothing.',
  )
  parser.add_argument(
    'command', nargs='+', help='What each host runs, after --.'
  )
  arguments = parser.parse_args(argv)
  dimensions = ACCELERATORS[arguments.accelerator]
  if not re.fullmatch(
    'x'.join(['[1-9][0-9]*'] * dimensions), arguments.topology
  ):
    parser.error(
      f'argument --topology: {arguments.topology!r} has not the {dimensions} '
      f'dimensions of {arguments.accelerator}'
    )
  hosts, chips = hosts_of(arguments.topology, arguments.chips)
  total = math.prod(map(int, arguments.topology.split('x')))
  if hosts * chips != total:
    parser.error(
      f'argument --topology: {total} chips are no whole number of hosts of '
      f'{arguments.chips}'
    )
  return arguments


def main(argv: Sequence[str]) -> int:
  """Prints the manifest or applies it; returns the exit status."""
  arguments = parse(argv)
  text = json.dumps(manifest(arguments), indent=2)
  if arguments.dry_run:
    print(text)
    return 0
  try:
    # Its own words say what became of it.
    command = ['kubectl', 'apply', '--filename=-']
    return subprocess.run(command, input=text, text=True).returncode
  except OSError as error:
    print(f'gke.py: {error.filename}: {error.strerror}', file=sys.stderr)
    return 2


def _literal(text: str) -> str:
  return text.replace('$', '$$')  # Kubernetes fills in $(NAME).


def _name(text: str) -> str:
  # Kubernetes adds up to 20 characters to it, and allows 63.
  if not re.fullmatch('[a-z]([a-z0-9-]{0,38}[a-z0-9])?', text):
    raise argparse.ArgumentTypeError(
      f'{text!r} is not a letter and up to 39 more letters, digits and "-", '
      'all lower case'
    )
  return text


def _count(text: str) -> int:
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f'{text!r} is not a number of 1 or more')
  return int(text)


def _variable(text: str) -> tuple[str, str]:
  name, separator, value = text.partition('=')
  if not separator or not re.fullmatch('[A-Za-z_][A-Za-z0-9_]*', name):
    raise argparse.ArgumentTypeError(f'{text!r} is not NAME=VALUE')
  return name, value


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))

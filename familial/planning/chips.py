"""Accelerators as their datasheets have them, and pods of TPUs without a TPU."""

from collections.abc import Sequence
import dataclasses
import importlib.util
import os
import re
from typing import Any

from familial.core import errors

# The devices of this host, as `--topology` has it.
HERE = 'here'
_NAME = re.compile(r'\w+:\d+(?:x\d+)*')
# libtpu plans for a pod on a host without TPUs, where nobody tells it these.
_NO_TPU = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
  'TPU_ACCELERATOR_TYPE': 'v5p-8',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


@dataclasses.dataclass(frozen=True)
class Chip:
  """Peak rates and memory of a chip.

  Attributes:
    kind: as JAX's devices name it.
    flops: bfloat16 FLOPs of dense products a second.
    memory: bytes.
    memory_speed: bytes read or written a second.
    link_speed: bytes sent to other chips a second, over all links.
  """

  kind: str
  flops: float
  memory: float
  memory_speed: float
  link_speed: float


# Sources: Cloud TPU's documentation of v4, v5e, v5p and v6e; NVIDIA's
# datasheets of A100, H100 and H200, whose NVLink counts both ways.
CHIPS = {
  chip.kind: chip
  for chip in (
    Chip('TPU v4', 275e12, 32 * 2**30, 1228e9, 300e9),
    Chip('TPU v5 lite', 197e12, 16 * 2**30, 819e9, 200e9),
    Chip('TPU v5', 459e12, 95 * 2**30, 2765e9, 600e9),
    Chip('TPU v6 lite', 918e12, 32 * 2**30, 1640e9, 448e9),
    Chip('NVIDIA A100-SXM4-80GB', 312e12, 80e9, 2039e9, 300e9),
    Chip('NVIDIA H100 80GB HBM3', 989e12, 80e9, 3350e9, 450e9),
    Chip('NVIDIA H200', 989e12, 141e9, 4800e9, 450e9),
  )
}


def devices(topology: str) -> Sequence[Any]:
  """Returns a topology's devices, which programs can be compiled for.

  Args:
    topology: `v5p:4x4x8`, as Cloud TPU names it, or `here`.

  Raises:
    UserError: if there is no such topology, or no libtpu.
  """
  import jax

  if topology == HERE:
    return jax.devices()
  if not _NAME.fullmatch(topology):
    raise errors.UserError(
      f'--topology: {topology!r} is neither a TPU topology such as v5p:4x4x8 '
      f'nor {HERE!r}, the devices of this host'
    )
  if importlib.util.find_spec('libtpu') is None:
    raise errors.UserError(
      f'--topology={topology}: needs libtpu, of the extra familial[tpu]; no TPU'
    )
  from jax.experimental import topologies

  os.environ.update(_NO_TPU)
  try:
    found: Sequence[Any] = topologies.get_topology_desc(
      topology,
      platform='tpu',
      # A chip of v4 is one device, not two, as Cloud TPU has it.
      **({'chip_config_name': 'megacore'} if topology[:3] == 'v4:' else {}),
    ).devices
  except jax.errors.JaxRuntimeError as error:
    raise errors.UserError(
      f'--topology={topology}: {str(error).splitlines()[0]}'
    ) from None
  return found


def of(devices: Sequence[Any], topology: str) -> Chip:
  """Returns the datasheet of a topology's devices.

  Args:
    devices: of one kind.
    topology: as `devices` took it, for what is said.

  Raises:
    UserError: if its datasheet is not in `CHIPS`.
  """
  kind = devices[0].device_kind
  if kind not in CHIPS:
    raise errors.UserError(
      f'--topology={topology}: no figures of a {kind!r} are known, only of '
      f'{", ".join(CHIPS)}'
    )
  return CHIPS[kind]

"""Host memory of import and export, in processes of their own."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors

from familial.core import storage
from tests.data import vocabularies

# Runs a command and prints the peak of the process's memory in bytes.
_PEAK = """
import sys
from familial.cli import main
status = main.run(['familial', *sys.argv[1:]])
lines = open('/proc/self/status').read().splitlines()
[peak] = [line.split()[1] for line in lines if line.startswith('VmHWM')]
print(status, 1024 * int(peak))
"""


def llama(folder, width, depth, dtype):
  """Writes a Llama; returns the number of its parameters."""
  folder.mkdir()
  vocabularies.byte_level(folder / 'tokenizer.json')
  rng, mlp = np.random.default_rng(0), 4 * width

  def matrix(*shape):
    return (0.02 * rng.standard_normal(shape, np.float32)).astype(dtype)

  tensors = {
    'model.embed_tokens.weight': matrix(288, width),
    'model.norm.weight': np.ones(width, dtype),
  }
  shapes = {f'self_attn.{name}_proj': (width, width) for name in 'qkvo'}
  shapes |= {f'mlp.{name}_proj': (mlp, width) for name in ('gate', 'up')}
  shapes['mlp.down_proj'] = width, mlp
  for layer in range(depth):
    at = f'model.layers.{layer}'
    for name, shape in shapes.items():
      tensors[f'{at}.{name}.weight'] = matrix(*shape)
    for name in ('input_layernorm', 'post_attention_layernorm'):
      tensors[f'{at}.{name}.weight'] = np.ones(width, dtype)
  safetensors.save_file(tensors, folder / 'model.safetensors')
  storage.write_json(
    folder / 'config.json',
    {
      'architectures': ['LlamaForCausalLM'], 'vocab_size': 288,
      'hidden_size': width, 'intermediate_size': mlp,
      'num_hidden_layers': depth, 'num_attention_heads': width // 64,
      'max_position_embeddings': 64, 'rms_norm_eps': 1e-5, 'eos_token_id': 0,
      'tie_word_embeddings': True,
    },
  )  # fmt: skip
  return sum(tensor.size for tensor in tensors.values())


def peak(*arguments):
  done = subprocess.run(
    [sys.executable, '-c', _PEAK, *map(str, arguments)],
    capture_output=True, text=True, check=True,
  )  # fmt: skip
  status, size = done.stdout.split()[-2:]
  assert status == '0', done.stderr
  return int(size)


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
def test_import_and_export_take_6_bytes_a_parameter(tmp_path, dtype):
  sizes, peaks = [], []
  for name, width, depth in (('tiny', 64, 2), ('large', 768, 12)):
    at = tmp_path / name
    at.mkdir()
    sizes.append(llama(at / 'theirs', width, depth, dtype))
    peaks.append(
      {
        'import': peak(
          'import', f'--from={at}/theirs', '--exits=1', f'--out={at}/ours'
        ),
        **{
          form: peak(
            'export', f'--checkpoint={at}/ours', f'--format={form}',
            f'--out={at}/{form}',
          )
          for form in ('hugging_face', 'familial', 'segments')
        },
      }
    )  # fmt: skip
  tiny, large = peaks
  assert sizes[1] > 1e8
  for what, most in large.items():
    assert most - tiny[what] < 6 * (sizes[1] - sizes[0]), what

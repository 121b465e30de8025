"""Small tokenizers of the kinds that public models have."""

import json
import pathlib

import tokenizers as library

from familial.data import tokenizers

TEXTS = ['def f(x):\n  return x + 1\n' * 9, 'the quick brown fox ' * 9]
BEGIN, END, TURN = '<|begin_of_text|>', '<|end_of_text|>', '<|eot_id|>'


def byte_level(
  path: pathlib.Path, *, begin: bool = True, normalizer: str = ''
) -> pathlib.Path:
  """Writes a byte-level BPE with special tokens, as Llama 3 or Qwen have it."""
  tokenizers.train(iter(TEXTS), 280, path)
  text = path.read_text('utf-8').replace(tokenizers.SEPARATOR, END)
  made = library.Tokenizer.from_str(text)
  made.add_special_tokens([BEGIN, TURN])
  if begin:
    made.post_processor = library.processors.TemplateProcessing(
      single=f'{BEGIN} $A', special_tokens=[(BEGIN, made.token_to_id(BEGIN))]
    )
  if normalizer:
    made.normalizer = getattr(library.normalizers, normalizer)()
  made.save(str(path))
  return path


def byte_fallback(
  path: pathlib.Path, *, metaspace: bool = False
) -> pathlib.Path:
  """Writes a BPE with byte fallback, as Llama 2 (or, by Metaspace, later classes of
  `transformers`) has it."""
  trained = library.Tokenizer(library.models.BPE())
  trained.normalizer = library.normalizers.Sequence(
    [
      library.normalizers.Prepend('\u2581'),
      library.normalizers.Replace(' ', '\u2581'),
    ]
  )
  trained.train_from_iterator(
    [text.replace('\n', ' ') for text in TEXTS],
    library.trainers.BpeTrainer(vocab_size=60, show_progress=False),
  )
  model = json.loads(trained.to_str())['model']
  first = ['<unk>', '<s>', '</s>', *(f'<0x{byte:02X}>' for byte in range(256))]
  vocab = {
    name: number for number, name in enumerate([*first, *model['vocab']])
  }
  made = library.Tokenizer(
    library.models.BPE(
      vocab, [tuple(pair) for pair in model['merges']],
      unk_token='<unk>', fuse_unk=True, byte_fallback=True,
    )
  )  # fmt: skip
  made.add_special_tokens(['<unk>', '<s>', '</s>'])
  if metaspace:
    made.pre_tokenizer = library.pre_tokenizers.Metaspace(
      prepend_scheme='first', split=False
    )
  else:
    made.normalizer = trained.normalizer
  decoders = library.decoders
  made.decoder = decoders.Sequence(
    [
      decoders.Replace('\u2581', ' '), decoders.ByteFallback(),
      decoders.Fuse(), decoders.Strip(' ', 1, 0),
    ]
  )  # fmt: skip
  made.post_processor = library.processors.TemplateProcessing(
    single='<s> $A', special_tokens=[('<s>', 1)]
  )
  made.save(str(path))
  return path

"""Texts in the words of compiled programs, cut to what matters."""

import pytest

from familial.planning import collectives

HEADER = 'HloModule jit_advance, is_scheduled=true, num_partitions=8\n'
ALL = tuple(range(8))


def of(line, *computations):
  """Returns (kind, bytes, group, count) of a program's collectives."""
  lines = '\n  '.join([line] if isinstance(line, str) else line)
  text = '\n\n'.join(
    [
      HEADER,
      *computations,
      f'ENTRY %main.1_spmd (param: f32[8]) -> (f32[], f32[8]) {{\n  {lines}\n}}',
    ]
  )
  return [
    (found.kind, found.bytes, found.group, found.count)
    for found in collectives.of(text + '\n')
  ]


def over(groups, type_='f32[4]'):
  return f'%x = {type_} all-reduce(%y), replica_groups={groups}, to_apply=%add'


@pytest.mark.parametrize(
  ('groups', 'first'),
  [
    ('{}', ALL),
    ('{{0,2},{1,3}}', (0, 2)),
    ('[2,4]<=[8]', (0, 1, 2, 3)),
    ('[32,4]<=[128]', (0, 1, 2, 3)),
    ('[4,32]<=[32,4]T(1,0)', tuple(range(0, 128, 4))),
    ('[4,2]<=[2,2,2]T(2,1,0)', (0, 4)),
    ("mesh['axis_0'=8,'axis_1'=1] {'axis_0'}", ALL),
    ("mesh['a'=2,'b'=2,'c'=2] {'b'}", (0, 2)),
    ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", (0, 1, 4, 5)),
    ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", (0, 2, 4, 6)),
    ("mesh['a'=2,'b'=2], device_ids=(0,3,1,2) {'b'}", (0, 3)),
    ("mesh['a'=8] {'a':(1)2}", (0, 4)),
    ("mesh['a'=8] {'a':(2)4}", (0, 1, 2, 3)),
  ],
)
def test_who_exchanges(groups, first):
  assert of(over(groups)) == [('all-reduce', 16, first, 1)]


@pytest.mark.parametrize(
  ('type_', 'size'),
  [
    ('f32[]', 4),
    ('f32[3,5]{1,0}', 60),
    ('f32[8,128]{1,0:T(8,128)}', 4096),
    ('bf16[2,8,4]{1,2,0:T(4,128)(2,1)S(1)}', 128),
    ('pred[7]{0}', 7),
    ('f8e4m3fn[16]', 16),
    ('s4[5]', 3),
    ('(f32[2]{0}, s32[], /*index=2*/bf16[3,3]{1,0:T(2,128)(2,1)})', 30),
  ],
)
def test_how_many_bytes(type_, size):
  assert of(over('[1,8]<=[8]', type_)) == [('all-reduce', size, ALL, 1)]


@pytest.mark.parametrize(
  ('line', 'kind', 'size'),
  [
    (
      '%a.1 = f32[16,8]{0,1} all-gather(%b), R, dimensions={0}',
      'all-gather',
      512,
    ),
    (
      'ROOT %a = bf16[2,8] reduce-scatter(%b), R, to_apply=%s',
      'reduce-scatter',
      256,
    ),
    ('a = (s8[4], s8[4]) all-to-all(b, c), R', 'all-to-all', 8),
    (
      '%a = (bf16[1,8]{1,0:T(2,128)(2,1)S(1)}, bf16[8,8]{1,0:T(8,128)(2,1)}) '
      'all-gather-start(%b), R, dimensions={0}',
      'all-gather',
      128,
    ),
    (
      '%a = ((f32[2], f32[3]), (f32[16], f32[24]{0}), u32[]{:S(2)}, u32[]) '
      'all-gather-start(%b, %c), R, dimensions={0}',
      'all-gather',
      160,
    ),
    ('%a = (f32[4], f32[2]) all-reduce-start(%b, %c), R', 'all-reduce', 24),
    (
      '%a = ((f32[16]), f32[2]) reduce-scatter-start(%b), R',
      'reduce-scatter',
      64,
    ),
  ],
)
def test_each_kind_is_read_in_its_forms(line, kind, size):
  line = line.replace(', R', ', channel_id=1, replica_groups=[1,8]<=[8]')
  done = (
    '%d = f32[64] all-gather-done(%a), metadata={op_name="x(all-gather(y)"}'
  )
  assert of([line, done]) == [(kind, size, ALL, 1)]


def test_a_permutation_is_over_the_devices_that_it_connects():
  line = (
    '%a = (bf16[2,4]{1,0:T(2,128)(2,1)S(1)}, bf16[2,4]{1,0}, u32[]{:S(2)}, '
    'u32[]{:S(2)}) collective-permute-start(%b), channel_id=6, '
    'source_target_pairs={PAIRS}, frontend_attributes={is="true"}'
  )
  ring = line.replace('PAIRS', '{0,3},{1,0},{2,1},{3,2}')
  assert of(ring) == [('collective-permute', 16, (0, 1, 2, 3), 1)]
  two = line.replace('PAIRS', '{2,0},{0,2},{1,3},{3,1}')
  assert of(two) == [('collective-permute', 16, (0, 2), 1)]


def test_a_computation_counts_where_it_is_called():
  body = (
    '%fused (p: bf16[8,2]) -> bf16[4,2] {\n'
    '  %p = bf16[8,2]{1,0:T(8,128)(2,1)} parameter(0)\n'
    f'  {over("{{0,2},{1,3}}", "bf16[8,2]{1,0:T(8,128)(2,1)}")}\n'
    '  ROOT %s = bf16[4,2] dynamic-slice(%x, %i), dynamic_slice_sizes={4,2}\n}'
  )
  assert of('%c = f32[] constant(0)', body) == []
  call = '%f = bf16[4,2] fusion(%p), kind=kCustom, calls=%fused, metadata={}'
  assert of(call, body) == [('all-reduce', 32, (0, 2), 1)]
  assert len(of([call, call.replace('%f ', '%g ')], body)) == 2
  either = '%c = bf16[] conditional(%p), branch_computations={%fused, %other}'
  assert len(of(either, body, body.replace('%fused', '%other'))) == 2
  begun = '%c = ((f32[8]), f32[8]) async-start(%p), calls=%fused'
  ended = '%d = f32[8] async-done(%c), calls=%fused'
  assert len(of([begun, ended], body)) == 1
  # TPUs scatter what the text reduces whole.
  renamed = [
    text.replace('%fused', '%all-reduce-scatter.3.clone')
    for text in (call, body)
  ]
  assert of(*renamed) == [('reduce-scatter', 32, (0, 2), 1)]


# A loop as TPUs have it: its length follows from what it counts with.
CONDITION = """%cond.1 (p.1: (f32[4], u32[])) -> pred[] {
  %limit = u32[]{:T(128)} constant(7), metadata={op_name="x"}
  %p.1 = (f32[4]{0:T(128)}, /*index=1*/u32[]{:T(128)}) parameter(0)
  %at = u32[]{:T(128)} get-tuple-element(%p.1), index=1
  ROOT %less = pred[]{:T(512)} compare(%at, %limit), direction=LT, metadata={}
}"""
BODY = """%body.1 (p.2: (f32[4], u32[])) -> (f32[4], u32[]) {
  %two = u32[]{:T(128)} constant(2)
  %p.2 = (f32[4]{0:T(128)}, u32[]{:T(128)}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%p.2), index=1
  %v = f32[4]{0:T(128)} get-tuple-element(%p.2), index=0
  %s = f32[4]{0:T(128)} all-reduce(%v), replica_groups=[4,2]<=[8], to_apply=%a
  %next = u32[]{:T(128)} add(%i, %two), backend_config={"flag_configs":[]}
  ROOT %t = (f32[4]{0:T(128)}, u32[]{:T(128)}) tuple(%s, %next)
}"""
LOOP = [
  '%one = u32[] constant(1)',
  '%copied = u32[]{:T(128)} copy(%one)',
  '%begin = (f32[4], u32[]) tuple(%p, /*index=1*/%copied)',
  '%w = (f32[4], u32[]) while(%begin), condition=%cond.1, body=%body.1',
]


def test_a_loop_counts_as_often_as_it_runs():
  # 1, 3 and 5 are below 7.
  assert of(LOOP, CONDITION, BODY) == [('all-reduce', 16, (0, 1), 3)]
  said = [
    *LOOP[:-1],
    LOOP[-1] + ', backend_config={"known_trip_count":{"n":"9"}}',
  ]
  assert of(said, CONDITION, BODY)[0][3] == 9
  outer = BODY.replace('%body.1', '%body.2').replace(
    '%s = f32[4]{0:T(128)} all-reduce(%v), replica_groups=[4,2]<=[8], to_apply=%a',
    '\n  '.join(LOOP),
  )
  twice = [line.replace('%body.1', '%body.2') for line in LOOP]
  assert of(twice, CONDITION, BODY, outer)[0][3] == 9


@pytest.mark.parametrize(
  ('part', 'other'),
  [
    ('constant(7)', 'get-tuple-element(%p.1), index=3'),
    ('direction=LT', 'direction=NE'),
    ('add(%i, %two)', 'fusion(%i), calls=%fused'),
    ('%one = u32[] constant(1)', '%one = u32[] parameter(1)'),
  ],
)
def test_a_loop_of_unknown_length_counts_once(part, other):
  texts = ['\n  '.join(LOOP), CONDITION, BODY]
  assert any(part in text for text in texts)
  line, *rest = (text.replace(part, other) for text in texts)
  assert of(line, *rest)[0][3] == 1


def test_what_a_ring_sends():
  def sent(kind):
    return collectives.Collective(kind, 800, (0, 2, 4, 6), 3).sent

  assert sent('all-reduce') == 2 * 3 / 4 * 800
  assert sent('all-gather') == sent('reduce-scatter') == 3 / 4 * 800
  assert sent('all-to-all') == 3 / 4 * 800
  assert sent('collective-permute') == 800


def test_what_is_no_program_is_said():
  with pytest.raises(ValueError, match='ENTRY'):
    collectives.of('module @jit_advance {\n}\n')


def test_what_a_tpu_does_in_several_fusions_counts_once():
  gather = '%g = bf16[8] all-gather(%p), channel_id=7, replica_groups={}'
  fusions = [
    f'%fused_computation.{i} (p: bf16[1]) -> bf16[8] {{\n  {gather}\n}}'
    for i in (1, 2)
  ]
  calls = [
    f'%f{i} = bf16[8] fusion(%p), kind=kCustom, calls=%fused_computation.{i}'
    for i in (1, 2)
  ]
  assert of(calls, *fusions) == [('all-gather', 16, ALL, 1)]
  # Others have other numbers, and what is in no fusion is begun and done there.
  other = fusions[1].replace('=7', '=8')
  assert len(of(calls, fusions[0], other)) == 2
  assert len(of([gather, gather.replace('%g', '%h')])) == 2

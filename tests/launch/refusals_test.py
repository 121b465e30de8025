"""What the launchers refuse, each in one line."""

import pytest

FLAGS = {
  'gke': [
    '--name=fam', '--image=repo/familial:1', '--accelerator=tpu-v5p-slice',
    '--topology=2x2x4', '--claim=nfs',
  ],
  'tpu_pod': [
    '--name=fam', '--zone=us-east5-a', '--accelerator_type=v5p-32',
    '--runtime_version=v2-alpha-tpuv5',
  ],
  'slurm': ['--tasks=1'],
}  # fmt: skip


@pytest.mark.parametrize(
  ('name', 'flags', 'words'),
  [
    ('gke', ['--topology=4x4'], "'4x4' has not the 3 dimensions of tpu-v5p"),
    ('gke', ['--topology=2x2x0'], "'2x2x0'"),
    ('gke', ['--topology=3x3x1'], '9 chips are no whole number of hosts of 4'),
    ('gke', ['--accelerator=tpu-v5'], 'tpu-v5p-slice'),
    ('gke', ['--name=Fam'], "'Fam'"),
    ('gke', ['--name=' + 'a' * 41], "'aaa"),
    ('gke', ['--env=A'], "'A' is not NAME=VALUE"),
    ('gke', ['--slices=0'], "'0'"),
    ('tpu_pod', ['--name=-x'], "'-x'"),
    ('tpu_pod', ['--zone=a b'], "'a b'"),
    ('tpu_pod', ['--steps=create,run'], "'run' is not one of create"),
    ('slurm', ['--tasks=0'], "'0' is not a number of 1 or more"),
    ('slurm', ['--nodes=2'], 'not allowed with'),
    ('slurm', ['--time=1\n#SBATCH --array=0-9'], 'one line of text'),
    ('slurm', ['--sbatch=--comment=a\nb'], 'one line of text'),
    ('slurm', ['--name=a/b'], "'a/b'"),
    ('slurm', ['--sbatch=-N2'], '-N2'),
    ('slurm', ['--sbatch=--signal=TERM'], '--signal'),
    ('slurm', ['--task=1'], '--task=1'),
  ],
)
def test_what_cannot_be_is_refused(launcher, capsys, name, flags, words):
  with pytest.raises(SystemExit) as stop:
    launcher(name).parse([*FLAGS[name], *flags, '--', 'x'])
  assert stop.value.code == 2
  line = capsys.readouterr().err
  assert words in line and line.count('\n') == 1


@pytest.mark.parametrize(
  ('name', 'tool'),
  [('gke', 'kubectl'), ('tpu_pod', 'gcloud'), ('slurm', 'sbatch')],
)
def test_without_its_tool_a_launcher_says_so(
  launcher, tmp_path, monkeypatch, capsys, name, tool
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('PATH', str(tmp_path))
  assert launcher(name).main([*FLAGS[name], '--', 'x']) == 2
  assert capsys.readouterr().err == (
    f'{name}.py: {tool}: No such file or directory\n'
  )

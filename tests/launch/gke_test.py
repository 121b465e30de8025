import json
import subprocess

import pytest

FLAGS = [
  '--name=fam', '--image=repo/familial:1', '--accelerator=tpu-v5p-slice',
  '--topology=2x2x4', '--claim=nfs',
]  # fmt: skip
COMMAND = ['familial', 'train', "--config.model.exits='(4,8)'", '$(A) $$ "\n']


@pytest.fixture(scope='module')
def gke(launcher):
  return launcher('gke')


@pytest.fixture
def rendered(gke, capsys):
  """Returns what a dry run prints, read back."""

  def render(*flags):
    assert gke.main(['--dry_run', *FLAGS, *flags, '--', *COMMAND]) == 0
    return json.loads(capsys.readouterr().out)

  return render


def job_of(manifest):
  (job,) = manifest['spec']['replicatedJobs']
  return job


def pod_of(manifest):
  return job_of(manifest)['template']['spec']['template']['spec']


def test_the_set(rendered):
  manifest = rendered('--slices=3', '--restarts=7')
  assert manifest['apiVersion'] == 'jobset.x-k8s.io/v1alpha2'
  assert manifest['kind'] == 'JobSet'
  assert manifest['metadata']['name'] == 'fam'
  # A slice's hosts are one node pool, and no other job's.
  assert manifest['metadata']['annotations'] == {
    'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'
  }
  assert manifest['spec']['failurePolicy'] == {'maxRestarts': 7}
  assert job_of(manifest)['replicas'] == 3
  assert job_of(rendered())['replicas'] == 1


@pytest.mark.parametrize(
  ('accelerator', 'topology', 'chips', 'hosts', 'a_host'),
  [
    ('tpu-v4-podslice', '2x2x1', 4, 1, 4),
    ('tpu-v5p-slice', '2x2x4', 4, 4, 4),
    ('tpu-v5p-slice', '4x4x8', 4, 32, 4),
    ('tpu-v5-lite-podslice', '1x1', 4, 1, 1),
    ('tpu-v5-lite-podslice', '2x4', 4, 2, 4),
    ('tpu-v5-lite-podslice', '2x4', 8, 1, 8),
    ('tpu-v6e-slice', '16x16', 4, 64, 4),
  ],
)
def test_a_pod_for_every_host_with_all_its_chips(
  rendered, accelerator, topology, chips, hosts, a_host
):
  manifest = rendered(
    f'--accelerator={accelerator}', f'--topology={topology}', f'--chips={chips}'
  )
  job = job_of(manifest)['template']['spec']
  assert job['parallelism'] == job['completions'] == hosts
  assert job['completionMode'] == 'Indexed' and job['backoffLimit'] == 0
  pod = pod_of(manifest)
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': accelerator,
    'cloud.google.com/gke-tpu-topology': topology,
  }
  (container,) = pod['containers']
  assert container['resources']['limits'] == {'google.com/tpu': a_host}
  assert pod['restartPolicy'] == 'Never'


def test_the_container(rendered):
  manifest = rendered('--env=A=b=c$', '--env=_D=')
  pod = pod_of(manifest)
  (container,) = pod['containers']
  assert container['image'] == 'repo/familial:1'
  # No shell reads it, but Kubernetes has variables of its own: $$ is $.
  assert container['command'][-1] == '$$(A) $$$$ "\n'
  assert container['command'][:-1] == COMMAND[:-1]
  assert container['env'] == [
    {'name': 'FAMILIAL_PROCESSES', 'value': 'auto'},
    {'name': 'A', 'value': 'b=c$$'},
    {'name': '_D', 'value': ''},
  ]
  (volume,) = pod['volumes']
  assert volume['persistentVolumeClaim'] == {'claimName': 'nfs'}
  assert container['volumeMounts'] == [
    {'name': volume['name'], 'mountPath': '/work'}
  ]
  assert 'tolerations' not in pod


def test_spot_nodes_are_asked_for_and_borne(rendered):
  pod = pod_of(rendered('--spot'))
  assert pod['nodeSelector']['cloud.google.com/gke-spot'] == 'true'
  (toleration,) = pod['tolerations']
  assert toleration == {
    'key': 'cloud.google.com/gke-spot',
    'operator': 'Equal',
    'value': 'true',
    'effect': 'NoSchedule',
  }


def test_only_without_dry_run_is_it_applied(gke, rendered, monkeypatch):
  applied = []

  def apply(argv, *, input, text):
    applied.append((argv, json.loads(input)))
    return subprocess.CompletedProcess(argv, 3)

  monkeypatch.setattr(subprocess, 'run', apply)
  printed = rendered()
  assert not applied
  assert gke.main([*FLAGS, '--', *COMMAND]) == 3
  assert applied == [(['kubectl', 'apply', '--filename=-'], printed)]

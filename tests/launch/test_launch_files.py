"""Every file in launch/ parses, and the flags, fields, paths and extras that it names exist."""

import ast
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dmfnet_jax.cli import build_parser
from dmfnet_jax.training import setup
from dmfnet_jax.training.config import parse_config

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = ["tpu_vm.sh", "slurm.sbatch"]


def check_command(words, devices):
  """Parses a `dmfnet` command as the command does, and checks its config for so many devices."""
  args, overrides = build_parser().parse_known_args(words)
  config = parse_config([f"--config={args.config}", *overrides])
  assert all(word.startswith("--config.") for word in overrides)
  setup.check_config(config, devices)
  return config


def commands_of(text):
  """The `dmfnet` commands of a shell script, with the defaults of its variables put in."""
  text = text.replace("\\\n", " ")
  for _ in range(3):  # defaults name other variables
    for name, value in re.findall(r"^(\w+)=\$\{\1:-(.*)\}$", text, re.MULTILINE):
      text = re.sub(rf"\$\{{?{name}\}}?(?!\w)", value, text)
      text = text.replace(f"{name}=${{{name}:-{value}}}", "")
  code = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
  found = re.findall(r"\bdmfnet (train .*)", "\n".join(code))
  return [
    shlex.split(command.rstrip('"') if command.count('"') % 2 else command) for command in found
  ]


def test_all_files_are_tested():
  names = {path.name for path in LAUNCH.iterdir() if path.is_file()}
  others = {"local.py", "ray_fuse.py", "prepare_dataflow.sh", "gke_jobset.yaml", "Dockerfile"}
  assert names == {*others, *SCRIPTS}


def test_the_command_for_dataflow_exists_and_beam_knows_its_flags():
  script = LAUNCH / "prepare_dataflow.sh"
  assert "# EDIT" in script.read_text()
  shown = "import sys; print('\\n'.join(sys.argv[1:]))"
  printing = f"{sys.executable} -c"
  text = script.read_text().replace('"${DMFNET:-dmfnet}"', f'{printing} "{shown}"')
  words = subprocess.run(
    ["bash", "-c", text, "bash", "--option", "axis=axial"],
    check=True,
    capture_output=True,
    text=True,
  ).stdout.splitlines()
  args = build_parser().parse_args(words)
  assert (args.name, args.option) == ("paired_volumes", ["axis=axial"])
  options = pytest.importorskip(
    "apache_beam.options.pipeline_options", reason="the extra [beam] is not installed"
  )
  given = options.PipelineOptions(shlex.split(args.beam_options))
  assert given.view_as(options.StandardOptions).runner == "DataflowRunner"
  assert given.view_as(options.GoogleCloudOptions).temp_location == "gs://my-bucket/tmp"
  assert given.view_as(options.WorkerOptions).max_num_workers == 100
  assert "/beam" in given.view_as(options.WorkerOptions).sdk_container_image
  known = given.get_all_options(drop_default=True)
  assert len(known) == len(shlex.split(args.beam_options))


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_parse_and_their_commands_exist(name):
  subprocess.run(["bash", "-n", str(LAUNCH / name)], check=True)
  text = (LAUNCH / name).read_text()
  assert "# EDIT" in text
  (command,) = commands_of(text)
  devices = {"tpu_vm.sh": 256, "slurm.sbatch": 32}[name]
  config = check_command(command, devices)
  assert config.stage == 1
  assert config.batch_size > 1  # the overrides were read


def test_tpu_script_without_a_step_says_how(tmp_path):
  done = subprocess.run(
    ["bash", str(LAUNCH / "tpu_vm.sh")], capture_output=True, text=True, check=False
  )
  assert done.returncode == 2
  assert "create|setup|train|logs|stop|delete" in done.stderr


def test_tpu_script_takes_a_python_that_the_package_allows():
  (lowest,) = re.findall(r'python_requires=">=3\.(\d+)"', (ROOT / "setup.py").read_text())
  text = (LAUNCH / "tpu_vm.sh").read_text()
  (minor,) = re.findall(r"^PYTHON=\$\{PYTHON:-python3\.(\d+)\}$", text, re.M)
  assert int(minor) >= int(lowest)
  assert "$PYTHON -m venv" in text
  assert f"needs Python >= 3.{lowest}" in text


def test_slurm_options_are_those_of_a_process_a_gpu():
  options = dict(
    re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", (LAUNCH / "slurm.sbatch").read_text(), re.M)
  )
  assert options["ntasks-per-node"] == options["gpus-per-node"]
  assert options["signal"].startswith("TERM@")


def test_jobset_is_a_slice_and_two_slices():
  text = (LAUNCH / "gke_jobset.yaml").read_text()
  assert "# EDIT" in text
  one, two = yaml.safe_load_all(text)
  workdirs = set()
  for document, slices in ((one, 1), (two, 2)):
    assert (document["apiVersion"], document["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    labels = document["metadata"]["labels"]
    assert f"dmfnet/example={labels['dmfnet/example']}" in text  # the command that picks it
    assert labels["kueue.x-k8s.io/queue-name"]
    (job,) = document["spec"]["replicatedJobs"]
    assert job["replicas"] == slices
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = int(rows) * int(columns)
    per_host = container["resources"]["limits"]["google.com/tpu"]
    assert spec["parallelism"] == spec["completions"] == chips // per_host
    assert pod["terminationGracePeriodSeconds"] >= 30
    check_command(container["args"], slices * chips)
    # A preempted run ends with what makes JobSet start it again.
    (rule,) = spec["podFailurePolicy"]["rules"]
    (code,) = rule["onExitCodes"]["values"]
    assert f"--preempted-exit-code={code}" in container["args"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    (restart,) = document["spec"]["failurePolicy"]["rules"]
    assert restart["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    workdirs.add(next(arg for arg in container["args"] if arg.startswith("--workdir=gs://")))
  assert len(workdirs) == 2  # two runs must not share one


def test_dockerfile_copies_what_is_there():
  text = (LAUNCH / "Dockerfile").read_text()
  lines = [line for line in text.splitlines() if line and not line.startswith("#")]
  instructions = [line.split(maxsplit=1) for line in lines]
  assert {word for word, _ in instructions} <= {
    "FROM",
    "ARG",
    "WORKDIR",
    "COPY",
    "RUN",
    "ENTRYPOINT",
    "CMD",
  }
  assert instructions[0][0] == "FROM"
  copied = set()
  for word, rest in instructions:
    if word == "COPY":
      *sources, _ = rest.split()
      assert all((ROOT / source).exists() for source in sources), sources
      copied |= set(sources)
    elif word in ("ENTRYPOINT", "CMD"):
      assert isinstance(ast.literal_eval(rest), list)
  assert {"setup.py", "README.md", "dmfnet_jax", "configs"} <= copied  # setup.py reads them all
  extras = (ROOT / "setup.py").read_text().partition("extras_require")[2]
  for extra in re.findall(r"EXTRA=(\w+)", text):
    assert f'"{extra}": [' in extras


@pytest.mark.parametrize("name", ["local.py"])
def test_python_launchers_explain_themselves(name):
  done = subprocess.run(
    [sys.executable, str(LAUNCH / name), "--help"], capture_output=True, text=True, check=True
  )
  text = (LAUNCH / name).read_text()
  for option in set(re.findall(r'add_argument\(\s*"(?:-n", ")?(--[\w-]+)"', text)):
    assert option in done.stdout
  command = re.search(
    r"(?:dmfnet|--\s*\\\n)\s*(train|--config)[^\n]*", ast.get_docstring(ast.parse(text))
  )
  assert command
  (config,) = re.findall(r"--config (\S+)", command[0])
  assert (ROOT / config.partition(":")[0]).is_file()


def run_local(*arguments):
  return subprocess.run(
    [sys.executable, str(LAUNCH / "local.py"), *arguments],
    capture_output=True,
    text=True,
    check=False,
    timeout=60,
  )


def test_local_gives_every_process_its_place():
  program = (
    "import os; print(*(os.environ[k] for k in ('JAX_PROCESS_ID', 'JAX_NUM_PROCESSES', "
    "'JAX_PLATFORMS', 'JAX_NUM_CPU_DEVICES', 'JAX_COORDINATOR_ADDRESS')))"
  )
  done = run_local("-n", "3", "--devices-per-process", "2", "--", sys.executable, "-c", program)
  assert done.returncode == 0
  lines = sorted(done.stdout.splitlines())
  assert [line[:13] for line in lines] == [f"[{i}] {i} 3 cpu 2" for i in range(3)]
  assert len({line.split()[-1] for line in lines}) == 1


def test_local_ends_as_its_processes_do():
  fails = "import os, sys; sys.exit(3 if os.environ['JAX_PROCESS_ID'] == '1' else 0)"
  assert run_local("--", sys.executable, "-c", fails).returncode == 3
  assert run_local("--").returncode == 2
  done = run_local("--", "no_such_program")
  assert done.returncode == 2
  assert "no_such_program: no such program: is the virtual" in done.stderr


def test_local_passes_ctrl_c_on_once():
  """A terminal tells all of its foreground processes; the children must not hear of it twice."""
  program = """if True:
    import signal, time
    heard = []
    signal.signal(signal.SIGINT, lambda *args: heard.append(1))
    print("ready", flush=True)
    while not heard:
      time.sleep(0.01)
    time.sleep(0.5)
    print(f"heard {len(heard)}", flush=True)
  """
  process = subprocess.Popen(
    [sys.executable, str(LAUNCH / "local.py"), "--", sys.executable, "-c", program],
    stdout=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  for _ in range(2):
    assert process.stdout.readline().endswith("ready\n")
  os.killpg(process.pid, signal.SIGINT)  # as a terminal does
  output, _ = process.communicate(timeout=60)
  assert sorted(output.splitlines()) == ["[0] heard 1", "[1] heard 1"]
  assert process.returncode == 0

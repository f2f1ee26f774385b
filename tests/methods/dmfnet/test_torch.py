"""Published checkpoints become models, and what does not fit is named."""

import builtins

import golden_weights
import numpy as np
import pytest
from golden_weights import TOLERANCE, nchw, nhwc, relative_error

import dmfnet_jax
from dmfnet_jax.errors import UserError
from dmfnet_jax.interop.torch import to_state_dict
from dmfnet_jax.methods.dmfnet import torch as torch_weights
from dmfnet_jax.weights.convert import convert, read_pth

SMALL_UNET = dict(width=8, multipliers=(1, 2), num_res_blocks=1, norm_groups=4)


@pytest.fixture(scope="module")
def small():
  """State dictionaries of a small UNet and head, in the published naming."""
  pytest.importorskip("torch")
  import torch_reference

  unet = torch_reference.UNet(**SMALL_UNET, attention_levels=(1,)).state_dict()
  head = torch_reference.FusionHead((16, 8)).state_dict()
  return (
    golden_weights.draw_all({f"denoise_fn.{k}": v.shape for k, v in unet.items()}),
    golden_weights.draw_all({k: v.shape for k, v in head.items()}),
  )


@pytest.fixture
def save(tmp_path):
  """Writes a state dictionary of arrays, or anything else, as torch does; returns the path."""
  torch = pytest.importorskip("torch")

  def write(name, content):
    def to_tensors(x):
      if isinstance(x, dict):
        return {k: to_tensors(v) for k, v in x.items()}
      return torch.from_numpy(x) if isinstance(x, np.ndarray) else x

    path = tmp_path / name
    torch.save(to_tensors(content), path)
    return path

  return write


def to_torch(unet):
  state = to_state_dict(unet, torch_weights.UNET_LAYERS)
  return {f"denoise_fn.{key}": value for key, value in state.items()}


def convert_both(unet, head, out, **options):
  convert("dmfnet", {"unet": unet, "fusion_head": head}, out, **options)


def test_published_sizes_are_inferred():
  unet, head = golden_weights.reference_state_dicts()
  assert torch_weights.unet_config_from_torch(unet) == {
    "width": 128,
    "multipliers": (1, 1, 1, 1, 2),
    "num_res_blocks": 2,
    "norm_groups": 32,
    "attention_levels": (),
  }
  assert torch_weights.fusion_head_config_from_torch(head) == {
    "level_widths": (256, 128, 128, 128, 128),
    "num_timesteps": 3,
  }


def test_every_published_parameter_survives_the_round_trip():
  unet, head = golden_weights.reference_state_dicts()
  params = golden_weights.reference_params()
  unet_again = to_torch(params["unet"])
  head_again = to_state_dict(params["fusion_head"], torch_weights.FUSION_HEAD_LAYERS)
  assert unet_again.keys() == {key for key in unet if key.startswith("denoise_fn.")}
  assert head_again.keys() == head.keys()
  for key, value in (unet_again | head_again).items():
    np.testing.assert_array_equal(value, (unet | head)[key], key)


def test_other_sizes_are_inferred(small):
  config = torch_weights.unet_config_from_torch(small[0], norm_groups=4)
  assert config == {**SMALL_UNET, "attention_levels": (1,)}
  config = torch_weights.fusion_head_config_from_torch(small[1])
  assert config == {"level_widths": (16, 8), "num_timesteps": 3}


def test_ablation_has_no_published_counterpart():
  with pytest.raises(ValueError, match="no counterpart of gate_1/kernel"):
    to_state_dict({"gate_1": {"kernel": np.zeros((1, 1, 2, 2))}}, torch_weights.FUSION_HEAD_LAYERS)


def test_converted_checkpoint_meets_golden(save, tmp_path):
  unet, head = golden_weights.reference_state_dicts()
  out = tmp_path / "published.safetensors"
  convert_both(save("gen.pth", unet), save("MIF.pth", head), out)
  model = dmfnet_jax.load_model(str(out))
  golden = golden_weights.load("fusion")
  noisy_a, noisy_b = (
    np.stack([nhwc(golden[f"noisy_{source}_{t}"]) for t in golden["timesteps"]])
    for source in ("mri", "other")
  )
  levels = np.stack([golden[f"noise_level_{t}"] for t in golden["timesteps"]])
  fused = model.fuse_noisy(noisy_a, noisy_b, levels)
  assert relative_error(nchw(fused), golden["fused"]) < TOLERANCE


@pytest.mark.parametrize("wrap", ["plain", "module", "state_dict", "model", "half"])
def test_wrapped_checkpoints_are_unwrapped(small, save, wrap):
  """Trainers wrap; DataParallel prefixes; some store half precision."""
  state = small[1]
  changed = {
    "plain": lambda: state,
    "module": lambda: {f"module.{k}": v for k, v in state.items()},
    "state_dict": lambda: {"epoch": 3, "state_dict": state},
    "model": lambda: {"model": {f"module.{k}": v for k, v in state.items()}},
    "half": lambda: {k: v.astype(np.float16) for k, v in state.items()},
  }[wrap]()
  again = read_pth(save("head.pth", changed))
  again = {key.removeprefix("module."): value for key, value in again.items()}
  assert again.keys() == state.keys()
  for key, value in again.items():
    assert value.dtype == np.float32
    expected = state[key].astype(np.float16) if wrap == "half" else state[key]
    np.testing.assert_array_equal(value, expected, key)


def test_attended_levels_of_a_checkpoint_are_converted(small, save, tmp_path):
  out = tmp_path / "out.safetensors"
  convert_both(save("unet.pth", small[0]), save("head.pth", small[1]), out, norm_groups=4)
  model = dmfnet_jax.load_model(str(out))
  assert model.config["unet"]["attention_levels"] == [1]
  unet = to_torch(model.params["unet"])
  assert unet.keys() == small[0].keys()
  for key, value in unet.items():
    np.testing.assert_array_equal(value, small[0][key], key)


def test_everything_that_does_not_fit_is_counted(small):
  head = dict(small[1])
  del head["rgb_decode1.conv.bias"], head["decoder.3.block.2.weight"]
  head["decoder.9.extra"] = np.zeros(1, np.float32)
  head["decoder.1.att.sa.sa.weight"] = np.zeros((1, 2, 5, 5), np.float32)
  with pytest.raises(UserError) as error:
    torch_weights.fusion_head_params_from_torch(head, name="MIF.pth")
  message = str(error.value)
  assert message.startswith("MIF.pth does not fit the model: 2 missing (")
  assert "rgb_decode1.conv.bias" in message
  assert "decoder.3.block.2.weight" in message
  assert "1 unexpected (decoder.9.extra)" in message
  expected = (
    "1 of the wrong shape (decoder.1.att.sa.sa.weight (1, 2, 5, 5) instead of (1, 2, 7, 7))"
  )
  assert expected in message
  assert "\n" not in message


@pytest.mark.parametrize("key", ["downs.1.conv.weight", "downs.0.res_block.block1.block.3.weight"])
def test_one_missing_key_is_not_taken_for_another_architecture(small, key):
  unet = {k: v for k, v in small[0].items() if k != f"denoise_fn.{key}"}
  with pytest.raises(UserError, match=rf"does not fit the model: 1 missing \({key}\)$"):
    torch_weights.unet_params_from_torch(unet, norm_groups=4)


def test_long_lists_are_cut(small):
  unet = {k: v for k, v in small[0].items() if ".ups." not in k}
  missing = len(small[0]) - len(unet)
  with pytest.raises(UserError, match=rf": {missing} missing \((denoise_fn\.)?ups\.0.*, \.\.\.\)$"):
    torch_weights.unet_params_from_torch(unet, norm_groups=4)


def test_swapped_files_are_recognised(small):
  with pytest.raises(UserError, match="swapped"):
    torch_weights.unet_params_from_torch(small[1])
  with pytest.raises(UserError, match="swapped"):
    torch_weights.fusion_head_params_from_torch(small[0])


def test_norm_groups_that_do_not_divide(small):
  with pytest.raises(UserError, match="8 wide, which 32 normalisation groups do not") as caught:
    torch_weights.unet_params_from_torch(small[0])
  # What it says to call is there.
  assert f"call {convert.__module__}.{convert.__name__} with" in str(caught.value)


def test_head_of_another_unet(small, save, tmp_path):
  import torch_reference

  shapes = {k: v.shape for k, v in torch_reference.FusionHead((32, 16)).state_dict().items()}
  paths = save("unet.pth", small[0]), save("head.pth", golden_weights.draw_all(shapes))
  with pytest.raises(UserError, match=r"head.pth: the fusion head takes .* widths \(32, 16\)"):
    convert_both(*paths, tmp_path / "out.safetensors", norm_groups=4)


def test_timesteps_must_be_as_many_as_the_heads(small, save, tmp_path):
  paths = save("unet.pth", small[0]), save("head.pth", small[1])
  out = tmp_path / "out.safetensors"
  with pytest.raises(UserError, match="features of 3 timesteps"):
    convert_both(*paths, out, norm_groups=4, timesteps=(5, 10))
  convert_both(*paths, out, norm_groups=4, timesteps=(7, 8, 9))
  assert dmfnet_jax.load_model(str(out)).config["features"]["timesteps"] == [7, 8, 9]


def test_parts_and_fields_that_there_are_not(small, save, tmp_path):
  files = {"unet": save("unet.pth", small[0]), "fusion_head": save("head.pth", small[1])}
  out = tmp_path / "out.safetensors"
  with pytest.raises(UserError, match=r"dmfnet has no part 'vgg': give unet=FILE \("):
    convert("dmfnet", {"vgg": files["unet"]}, out)
  with pytest.raises(UserError, match="two files: fusion_head missing"):
    convert("dmfnet", {"unet": files["unet"]}, out)
  with pytest.raises(UserError, match=r"has no field 'unet\.widht'"):
    convert("dmfnet", files, out, {"unet.widht": "3"}, norm_groups=4)
  with pytest.raises(UserError, match=r"features\.noise=maybe: not a value of type bool"):
    convert("dmfnet", files, out, {"features.noise": "maybe"}, norm_groups=4)
  assert not out.exists()
  convert("dmfnet", files, out, {"features.noise": "false"}, norm_groups=4)
  assert dmfnet_jax.load_model(str(out)).config["features"]["noise"] is False


def test_files_that_are_no_checkpoints(save, tmp_path):
  text = tmp_path / "text.pth"
  text.write_text("not a checkpoint")
  with pytest.raises(UserError, match=r"text.pth is not a PyTorch weights file"):
    read_pth(text)
  with pytest.raises(UserError, match=r"no such file: .*absent.pth"):
    read_pth(tmp_path / "absent.pth")
  with pytest.raises(UserError, match="holds a list"):
    read_pth(save("list.pth", [1, 2]))
  for out in (tmp_path / "nowhere" / "out.safetensors", tmp_path):
    with pytest.raises(UserError, match="give a file in a folder that exists"):
      convert_both(text, text, out)


class _Payload:
  """Would write a file while it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (str(self.path), "w")


def test_code_in_a_checkpoint_is_not_run(save, tmp_path):
  target = tmp_path / "written"
  with pytest.raises(UserError, match="is not a PyTorch weights file"):
    read_pth(save("evil.pth", {"weight": _Payload(target)}))
  assert not target.exists()


def test_without_torch_the_extra_is_named(monkeypatch, tmp_path):
  real_import = builtins.__import__

  def without_torch(name, *args, **kwargs):
    if name == "torch":
      raise ImportError(name)
    return real_import(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", without_torch)
  with pytest.raises(UserError, match=r"pip install 'dmfnet_jax\[torch\]'"):
    read_pth(tmp_path / "gen.pth")

"""Networks of diffusers as denoisers: their loops and ours with the same noise, and what is refused."""

import inspect
import json
import math
import sys
import warnings
from contextlib import nullcontext

import pytest
import torch
from pipelines.models import TOKENS, diffusers, dit, pixart, prompted, randomised, sana, unet
from pipelines.own_times import own_times
from theory.exact import GaussianMixture, OracleDenoiser
from torch import nn

import dualrate as dr
from dualrate.diffusion.prediction import SIT, Discrete, Flow
from dualrate.diffusion.schedule import Betas
from dualrate.pipelines.classes.catalogue import kind_of
from dualrate.pipelines.classes.kind import NetworkSpec, by_place
from dualrate.pipelines.folder import check_name, class_named, read_folder
from dualrate.pipelines.foreign import adopted
from dualrate.pipelines.network import ForeignNetwork, check_direction, labels_of
from dualrate.pipelines.retrofitted import experiment_of
from dualrate.pipelines.schedulers import DISCRETE, FLOW, read_scheduler
from dualrate.sampling.trajectory import trajectory

pytestmark = pytest.mark.filterwarnings("ignore:at the noise end x_hat follows z")

N, ROWS = 6, 3
LABEL = torch.tensor([2, 0, 1])
# each: the network, what it takes for labels in its own loop; text-to-image models are compared with their pipelines
NETWORKS = {
    "DiT": lambda: (dit(), {"class_labels": LABEL}),
    "UNet2D": lambda: (unet(), {}),
    "UNet2D of classes": lambda: (unet(num_class_embeds=4), {"class_labels": LABEL}),
}
every_network = pytest.mark.parametrize("made", NETWORKS.values(), ids=NETWORKS)


def wrapped(made, scheduler, **settings):
    """The denoiser, and their call of it: (state, time) -> output."""
    net, labels = made()
    net = randomised(net).train()  # which the denoiser is not in
    shape = (net.config.in_channels, 8, 8)
    denoiser = dr.from_diffusers(net, scheduler, **settings)
    net.eval()

    def output(state, time):
        with torch.no_grad():
            return net(state, timestep=time.expand(ROWS), return_dict=False, **labels)[0][:, : shape[0]]

    return denoiser, output, shape


def start(shape):
    return torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(99))


def of_step(shape):
    return lambda step, _=0: torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(step))


def ours(denoiser, step, times, shape):
    label = LABEL if denoiser.network.num_classes else None
    plan = dr.StepPlan.at(times, ())
    with torch.no_grad():
        states = trajectory(denoiser, step, plan, start(shape), dr.Cond(label), of_step(shape))
        return [state.z for state in states][1:]


def assert_same(mine, theirs):
    assert len(mine) == len(theirs) == N
    for one, other in zip(mine, theirs, strict=True):
        scale = other.abs().max()
        torch.testing.assert_close(one / scale, other / scale, rtol=0, atol=1e-5)


def on_their_grid(denoiser, scheduler):
    return [*((int(k) + 1) / denoiser.process.schedule.steps for k in scheduler.timesteps), 0.0]


@pytest.mark.parametrize(
    ("made", "predicts"),
    [*((made, "epsilon") for made in NETWORKS.values()), *((NETWORKS["DiT"], of) for of in ("v_prediction", "sample"))],
    ids=[*NETWORKS, "DiT of v", "DiT of x"],
)
def test_ddim_is_their_ddim(made, predicts):
    scheduler = diffusers.DDIMScheduler(prediction_type=predicts, clip_sample=False)
    denoiser, output, shape = wrapped(made, scheduler)
    scheduler.set_timesteps(N)
    z, theirs = start(shape), []
    for k in scheduler.timesteps:
        z = scheduler.step(output(z, k), k, z).prev_sample
        theirs.append(z)
    assert_same(ours(denoiser, dr.DDIM(denoiser.process), on_their_grid(denoiser, scheduler), shape), theirs)


@every_network
def test_ancestral_is_their_ddpm_with_its_clip(made, monkeypatch):
    scheduler = diffusers.DDPMScheduler(clip_sample=True, clip_sample_range=1.5, beta_schedule="squaredcos_cap_v2")
    denoiser, output, shape = wrapped(made, scheduler)
    scheduler.set_timesteps(N)
    z, theirs, module = start(shape), [], diffusers.schedulers.scheduling_ddpm
    for i, k in enumerate(scheduler.timesteps):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, i=i, **__: of_step(shape)(i))
        z = scheduler.step(output(z, k), k, z).prev_sample
        theirs.append(z)
    assert_same(ours(denoiser, dr.Ancestral(denoiser.process), on_their_grid(denoiser, scheduler), shape), theirs)


@every_network
def test_ddim_is_their_euler_on_the_flow(made):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    denoiser, output, shape = wrapped(made, scheduler)
    scheduler.set_timesteps(N)
    z, theirs = start(shape), []
    for k, sigma in zip(scheduler.timesteps, scheduler.sigmas[1:], strict=True):
        z = scheduler.step(output(z, k), k, z).prev_sample
        theirs.append(z / math.hypot(sigma, 1 - sigma))
    r = scheduler.sigmas[1:-1].double()
    times = [1.0, *denoiser.process.schedule.time(2 * torch.log((1 - r) / r)).tolist(), 0.0]
    assert_same(ours(denoiser, dr.DDIM(denoiser.process), times, shape), theirs)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_a_scheduler_that_starts_without_signal_starts_at_its_own_last_time(name):
    """Its sigmas are finite there all the same."""
    how = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler = getattr(diffusers, name)(**how)
    times = own_times(scheduler, read_scheduler({**scheduler.config, "_class_name": name})[0], N)
    scheduler.set_timesteps(N)
    assert times[:-1] == pytest.approx([(float(k) + 1) / 1000 for k in scheduler.timesteps], abs=2e-4)


def test_a_flow_keeps_all_of_its_own_steps_however_far_it_is_shifted():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=12.0)
    schedule = read_scheduler({**scheduler.config, "_class_name": type(scheduler).__name__})[0]
    assert len(own_times(scheduler, schedule, 1000)) == 1001


class Line(nn.Module):
    """The exact u of data N(m, c^2), called as SiT is, in any of the four conventions; variances learned on top."""

    def __init__(self, noise_at: int, sign: int, c2: float = 0.05) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(0.4))
        self.noise_at, self.sign, self.c2 = noise_at, sign, c2

    def forward(self, state, time, label):
        r = (time if self.noise_at == 1 else 1 - time)[:, None, None, None]
        noisy = state - (1 - r) * self.mean
        u = (r - (1 - r) * self.c2) / (r**2 + (1 - r) ** 2 * self.c2) * noisy - self.mean
        return torch.cat((self.sign * u, u), 1), label


@pytest.mark.parametrize(("convention", "noise_at", "sign"), [("repa", 1, 1), ("sit", 0, -1)])
def test_sit_and_repa_by_their_names(convention, noise_at, sign):
    net = Line(noise_at, sign)
    denoiser = dr.from_diffusers(net, convention=convention, shape=(1, 2, 2), num_classes=3)
    assert denoiser.network.num_classes == 3
    exact = OracleDenoiser(
        GaussianMixture.isotropic(torch.full((1, 4), 0.4, dtype=torch.float64), net.c2), denoiser.process
    )
    z, t = start((1, 2, 2)).double(), torch.tensor([0.2, 0.6, 0.9], dtype=torch.float64)
    cond = dr.Cond(torch.tensor([0, 1, 3]))
    x_hat = denoiser.denoise(z, t, dr.Context(), cond)
    torch.testing.assert_close(x_hat.flatten(1), exact.denoise(z.flatten(1), t, dr.Context(), dr.Cond()))


@pytest.mark.parametrize(
    "wrong", [flow for flow in (Flow(1.0, at, of) for at in (0, 1) for of in ("eps - x", "x - eps")) if flow != SIT]
)
def test_a_wrong_direction_of_time_is_found(wrong):
    with pytest.raises(ValueError, match="noise_at=0, predicts='x - eps'"):
        check_direction(ForeignNetwork(Line(0, -1), NetworkSpec(by_place), wrong), (1, 8, 8))
    check_direction(ForeignNetwork(Line(0, -1), NetworkSpec(by_place), SIT), (1, 8, 8))


class Ends(nn.Module):
    """Network whose x_hat of a state is `late` times it at time 1 and `early` times it at 0, of u = eps - x."""

    def __init__(self, late: float, early: float) -> None:
        super().__init__()
        self.late, self.early = (nn.Parameter(torch.tensor(part)) for part in (late, early))

    def forward(self, state, time, label):
        r = torch.sigmoid(torch.tensor(2.0))  # of the noise in a state of log-SNR -4
        share = torch.where(time > 0.5, self.late, self.early)[:, None, None, None]
        return (1 - share) / r * state


@pytest.mark.parametrize(("late", "other"), [(0.2 * 1.9**0.5, None), (0.2 * 2.1**0.5, "noise_at=0")])
def test_another_direction_is_right_where_it_has_less_than_half_the_response(late, other):
    """1.9 and 2.1 times that of the other end: the first is within what a network may have, the second is not."""
    network = ForeignNetwork(Ends(late, 0.2), NetworkSpec(by_place), Flow(1.0))
    with nullcontext() if other is None else pytest.raises(ValueError, match=f"a blur under .*{other}"):
        check_direction(network, (1, 8, 8))


@pytest.mark.filterwarnings("default:at the noise end")
def test_an_untrained_flow_is_told():
    with pytest.warns(UserWarning, match="seems untrained"):
        dr.from_diffusers(randomised(dit()), diffusers.FlowMatchEulerDiscreteScheduler())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dr.from_diffusers(randomised(dit()), diffusers.DDPMScheduler())  # a table has one direction


@pytest.mark.parametrize("betas", [Betas(), Betas("scaled_linear", 0.00085, 0.012)], ids=["linear", "scaled linear"])
def test_a_discrete_network_is_called_at_whole_steps_at_the_table_s_and_between_them_elsewhere(betas):
    """From log-SNR in float32, whose rounding is up to 1e-4 of a step: k exactly, but k + 0.3 as it is."""
    steps = torch.arange(999, dtype=torch.float64)
    for part in (0.0, 0.3, 0.5, 0.01):
        log_snr = betas.log_snr(torch.tensor([(float(k) + 1) / betas.steps for k in steps + part], dtype=torch.float64))
        asked = Discrete(betas).time(log_snr.float())
        assert asked.dtype == torch.float32
        if part:
            torch.testing.assert_close(asked.double(), steps + part, rtol=0, atol=5e-4)
        else:
            assert torch.equal(asked.double(), steps)


def test_no_label_is_dropped_in_training_mode():
    denoiser = dr.from_diffusers(randomised(dit()), diffusers.DDPMScheduler(clip_sample=False))
    denoiser.network.train()
    assert not any(part.training for part in denoiser.network.net.modules())
    z, t, cond = torch.randn(64, 4, 8, 8), torch.full((64,), 0.5), dr.Cond(torch.ones(64, dtype=torch.int64))
    with torch.no_grad():
        one, other = (denoiser.denoise(z, t, dr.Context(), cond) for _ in range(2))
        null = denoiser.denoise(z, t, dr.Context(), dr.Cond(torch.full((64,), 5)))
        unlabelled = denoiser.denoise(z, t, dr.Context(), dr.Cond())
    assert torch.equal(one, other)
    assert torch.equal(null, unlabelled)
    assert not torch.allclose(null, one)


def test_the_caller_s_network_goes_on_training_and_its_weights_are_the_denoiser_s():
    net = randomised(unet(dropout=0.5)).train()
    net.mid_block.eval()
    modes = [part.training for part in net.modules()]
    denoiser = dr.from_diffusers(net, diffusers.DDPMScheduler(clip_sample=False))
    assert [part.training for part in net.modules()] == modes
    assert not any(part.training for part in denoiser.network.net.modules())
    z, t = torch.randn(1, 3, 8, 8), torch.full((1,), 0.5)
    with torch.no_grad():
        before = denoiser.denoise(z, t, dr.Context(), dr.Cond())
        next(net.parameters()).add_(1.0)
        assert not torch.equal(denoiser.denoise(z, t, dr.Context(), dr.Cond()), before)
    assert {id(one) for one in denoiser.network.parameters()} == {id(one) for one in net.parameters()}


def test_a_compiled_network_is_taken_for_what_it_compiled():
    net = randomised(unet())
    z, t = torch.randn(1, 3, 8, 8), torch.full((1,), 0.5)
    with torch.no_grad():
        plain, compiled = (
            dr.from_diffusers(one, diffusers.DDPMScheduler()).denoise(z, t, dr.Context(), dr.Cond())
            for one in (net, torch.compile(net))
        )
    assert torch.equal(plain, compiled)


def test_a_saved_pipeline_is_read_whatever_its_parts(tmp_path):
    net, scheduler = randomised(unet(num_class_embeds=4)), diffusers.DDIMScheduler(rescale_betas_zero_snr=True)
    net.save_pretrained(tmp_path / "mine" / "unet")
    scheduler.save_pretrained(tmp_path / "mine" / "scheduler")
    index = {"_class_name": "P", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDIMScheduler"]}
    (tmp_path / "mine" / "model_index.json").write_text(json.dumps(index))
    denoiser = dr.from_diffusers(tmp_path / "mine", num_classes=3)
    assert (denoiser.network.num_classes, denoiser.network.null) == (3, True)
    assert denoiser.process.schedule.zero_terminal
    other = dr.from_diffusers(tmp_path / "mine" / "unet", scheduler.config, num_classes=3)
    z, t = torch.randn(2, 3, 8, 8), torch.tensor([0.3, 0.8])
    one, two = (d.denoise(z, t, dr.Context(), dr.Cond(LABEL[:2])) for d in (denoiser, other))
    torch.testing.assert_close(one, two)
    with pytest.raises(ValueError, match="pass the scheduler"):
        dr.from_diffusers(tmp_path / "mine" / "unet")
    (tmp_path / "mine").rename(tmp_path / "mine-turbo")
    with pytest.raises(ValueError, match=r"by its name \(turbo\): its output is no posterior mean"):
        dr.from_diffusers(tmp_path / "mine-turbo")
    cached = tmp_path / "models--owner--mine-turbo" / "snapshots" / "0a1b"
    cached.parent.mkdir(parents=True)
    (tmp_path / "mine-turbo").rename(cached)
    with pytest.raises(ValueError, match=r"by its name \(turbo\)"):
        dr.from_diffusers(cached)
    with pytest.raises(ValueError, match="neither model_index"):
        dr.from_diffusers(tmp_path)


@pytest.mark.parametrize(
    ("id2label", "names"),
    [({"1": "b", "0": "a, A"}, ("a, A", "b")), ({"0": "a", "2": "b"}, ()), (["a"], ()), ({"0": 1, "1": 2}, ())],
)
def test_names_of_classes_are_those_of_the_pipeline(tmp_path, id2label, names):
    unet(num_class_embeds=2).save_config(tmp_path / "unet")
    (tmp_path / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "U"], "id2label": id2label}))
    assert read_folder(tmp_path).class_names == names


@pytest.mark.parametrize("shards", ["10GB", "20KB"])
def test_weights_of_a_precision_are_read_where_there_are_no_others(tmp_path, shards):
    randomised(unet()).half().save_pretrained(tmp_path, variant="fp16", max_shard_size=shards)
    denoiser = dr.from_diffusers(tmp_path, diffusers.DDPMScheduler())
    told = diffusers.UNet2DModel.from_pretrained(tmp_path, variant="fp16")
    for weight, expected in zip(denoiser.network.net.parameters(), told.parameters(), strict=True):
        assert weight.dtype == torch.float32
        assert torch.equal(weight, expected)


@pytest.mark.parametrize(
    ("how", "there", "way"),
    [
        (
            {"safe_serialization": False},
            "diffusion_pytorch_model.bin",
            r"use_safetensors=False\).*, if you trust its origin.* never read",
        ),
        ({"variant": "non_ema"}, "diffusion_pytorch_model.non_ema.safetensors", r"UNet2DModel.*, variant='non_ema'\)"),
        (None, "no weights", "fetch it"),
    ],
)
def test_a_folder_without_weights_that_can_be_read_says_what_there_is_and_what_to_do(tmp_path, how, there, way):
    unet().save_config(tmp_path) if how is None else unet().save_pretrained(tmp_path, **how)
    with pytest.raises(OSError, match=rf"has no diffusion_pytorch_model.safetensors, it has {there}: .*{way}"):
        dr.from_diffusers(tmp_path, diffusers.DDPMScheduler())


def test_a_folder_says_no_images(tmp_path):
    unet().save_pretrained(tmp_path / "mine" / "unet")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "mine" / "scheduler")
    (tmp_path / "mine" / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DModel"]}')
    assert experiment_of(tmp_path / "mine").data == dr.DataConfig("", size=8, channels=3)


def test_without_diffusers_its_networks_are_refused_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"UNet2DModel is of diffusers, .*: pip install 'dualrate\[diffusers\]'"):
        class_named("UNet2DModel")


@pytest.mark.parametrize(
    ("shift", "settings"),
    [
        (math.exp(0.5), {}),
        (math.exp(0.25), {"base_shift": 0.25}),
        (1.0, {"base_shift": 0.0}),
        (1.5, {"base_shift": 1.5, "time_shift_type": "linear"}),
    ],
)
def test_a_shift_that_grows_with_the_image_is_that_of_the_smallest(shift, settings):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **settings)
    schedule, _ = read_scheduler({**scheduler.config, "_class_name": type(scheduler).__name__})
    r = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    theirs = torch.from_numpy(scheduler.time_shift(settings.get("base_shift", 0.5), 1.0, r.numpy()))
    assert schedule.shift == pytest.approx(shift)
    torch.testing.assert_close(torch.sigmoid(-schedule.log_snr(r) / 2), theirs, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("model_index.json", "[1]", r"model_index.json holds no settings: .* got \[1\]"),
        ("transformer/config.json", "[]", "config.json holds no settings"),
        ("scheduler/scheduler_config.json", "3", "scheduler_config.json holds no settings"),
        ("transformer/config.json", '{"_class_name": "DiTTransformer2DModel", "num_layers": "two"}', "as configured"),
    ],
)
def test_a_file_that_holds_no_settings_is_named(tmp_path, file, content, why):
    (tmp_path / "transformer").mkdir()
    (tmp_path / "model_index.json").write_text('{"transformer": ["diffusers", "DiTTransformer2DModel"]}')
    dit().save_config(tmp_path / "transformer")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=why):
        adopted(tmp_path).network.build()


@pytest.mark.parametrize("name", sorted(DISCRETE | FLOW))
def test_what_a_scheduler_does_not_say_is_as_its_class_has_it(name):
    made = inspect.signature(getattr(diffusers.schedulers, name).__init__).parameters.values()
    defaults = {one.name: one.default for one in made if one.default is not one.empty}
    assert read_scheduler({"_class_name": name}) == read_scheduler({"_class_name": name, **defaults})


@pytest.mark.parametrize("name", sorted(DISCRETE))
def test_those_clip_whose_class_has_the_setting(name):
    """A word that another class has left behind, as `from_config` keeps it, does nothing there, nor here."""
    clips = "clip_sample" in inspect.signature(getattr(diffusers.schedulers, name).__init__).parameters
    _, convention = read_scheduler({"_class_name": name, "clip_sample": True, "clip_sample_range": 2.0})
    assert convention.clip == (2.0 if clips else None)


def test_a_shift_that_another_class_has_left_behind_is_none():
    left = {"shift": 3.0, "flow_shift": 5.0, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    shifts = [read_scheduler({"_class_name": name, **left})[0].shift for name in ("UniPCMultistepScheduler", *FLOW)]
    assert shifts == [5.0] + [3.0] * len(FLOW)


def test_a_folder_says_whose_last_label_is_the_null_class(tmp_path):
    net = unet(in_channels=1, out_channels=1, num_class_embeds=4)
    net.save_pretrained(tmp_path / "unet")
    (tmp_path / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DModel"]}')
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    assert (adopted(tmp_path).network.num_classes, adopted(tmp_path).network.null) == (4, False)
    file = tmp_path / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dualrate_num_classes": 3}))
    found = adopted(tmp_path)
    assert (found.network.num_classes, found.network.null) == (3, True)
    assert "dualrate" not in found.network.config
    built = dr.from_diffusers(tmp_path).network
    assert (built.num_classes, built.null) == (3, True)
    assert found.weights().state_dict().keys() == net.state_dict().keys()
    for wrong in (0, 2, 5):
        with pytest.raises(ValueError, match="num_classes 4, with no null class, or 3 and that as its last label"):
            adopted(tmp_path, wrong)


def test_a_folder_says_how_many_tokens_its_prompts_have(tmp_path):
    net = pixart()
    net.register_to_config(dualrate_tokens=TOKENS)
    net.save_pretrained(tmp_path / "transformer")
    (tmp_path / "model_index.json").write_text('{"transformer": ["diffusers", "PixArtTransformer2DModel"]}')
    diffusers.DDPMScheduler(clip_sample=False).save_pretrained(tmp_path / "scheduler")
    found = adopted(tmp_path)
    assert "dualrate" not in found.network.config
    shape = (1, 1, TOKENS * 12 + TOKENS)
    for network in (found.network.build(), dr.from_diffusers(tmp_path).network):
        assert network.prompt.shape == shape
    assert dr.from_diffusers(tmp_path, tokens=2).network.prompt.shape == (1, 1, 2 * 13)


def test_a_network_with_a_null_class_of_its_own_has_no_other():
    with pytest.raises(ValueError, match="num_classes 5, with its null class after them"):
        labels_of(kind_of("DiTTransformer2DModel", dit().config), dit().config, 4)


def test_a_network_that_says_it_is_distilled_is_refused(tmp_path):
    place = tmp_path / "mine-turbo" / "unet"
    unet().save_pretrained(place)
    with pytest.raises(ValueError, match=r"by its name \(turbo\)"):
        dr.from_diffusers(place, diffusers.DDPMScheduler())
    net = diffusers.UNet2DModel.from_pretrained(place, low_cpu_mem_usage=False)
    with pytest.raises(ValueError, match=r"UNet2DModel is a distilled model, by its name \(turbo\)"):
        dr.from_diffusers(net, diffusers.DDPMScheduler())


@pytest.mark.parametrize(
    "name", ["FLUX.1-schnell", "sdxl-turbo", "LCM_Dreamshaper_v7", "SDXL-Lightning", "Sana_Sprint_1.6B", "tcd-sd15"]
)
def test_names_of_distilled_models_are_known_and_others_are_not_taken_for_some(tmp_path, name):
    for path, config in ((tmp_path / name, {}), (tmp_path / "mine", {"_name_or_path": f"them/{name}"})):
        with pytest.raises(ValueError, match=r"by its name .* its output is no posterior mean"):
            check_name(path, config)
    check_name(tmp_path / "turbofan-lcms", {})


REFUSED = {
    "LCM": (lambda: dit(), lambda: diffusers.LCMScheduler(), "LCMScheduler samples a distilled model"),
    "SCM": (lambda: dit(), lambda: diffusers.SCMScheduler(), "no posterior mean"),
    "edm": (lambda: dit(), lambda: diffusers.EDMEulerScheduler(), "no schedule is known for EDMEuler"),
    "class": (lambda: nn.Linear(2, 2), lambda: diffusers.DDPMScheduler(), "no Linear is known; known are DiT"),
    "texts": (lambda: sana(), lambda: diffusers.DDPMScheduler(), "images of prompts, got none"),
    "betas": (lambda: dit(), lambda: diffusers.DDPMScheduler(trained_betas=[0.1, 0.2]), "trained_betas"),
    "thresholding": (lambda: dit(), lambda: diffusers.DDPMScheduler(thresholding=True), "set it to False"),
    "log sigma": (
        lambda: unet(),
        lambda: diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"),
        "log sigma for the time",
    ),
    "flow sigmas": (
        lambda: sana(), lambda: diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True), "flow_prediction is known"
    ),
    "no signal": (
        lambda: dit(), lambda: diffusers.DDPMScheduler(num_train_timesteps=4000), "left of the signal after step 3442"
    ),
    "no number": (lambda: dit(), lambda: {"_class_name": "DDPMScheduler", "beta_end": None}, "beta_end is a number"),
    "no name": (lambda: dit(), lambda: {"_class_name": ["DDPMScheduler"]}, "no schedule is known for"),
    "fourier": (lambda: unet(time_embedding_type="fourier"), lambda: diffusers.DDPMScheduler(), "another process"),
    "output": (lambda: dit(out_channels=3), lambda: diffusers.DDPMScheduler(), "its latents' shape"),
}  # fmt: skip


@pytest.mark.parametrize(("net", "scheduler", "why"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_denoiser_is_refused_with_the_reason(net, scheduler, why):
    z, t, parts = torch.randn(1, 4, 8, 8), torch.tensor([0.5]), (net(), scheduler())
    with pytest.raises(ValueError, match=why):
        dr.from_diffusers(*parts).denoise(z, t, dr.Context(), dr.Cond())


def test_sanas_own_scheduler_is_a_flow():
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    denoiser, _ = prompted(randomised(sana()), scheduler)
    assert denoiser.process.schedule.shift == 3
    assert denoiser.network.convention == Flow()


def test_sana_is_given_its_time_in_its_own_scale():
    """As its pipeline does: the network has the scale in its configuration and leaves it to whoever calls it."""
    net, scheduler, asked = randomised(sana(timestep_scale=0.25)), diffusers.FlowMatchEulerDiscreteScheduler(), []
    net.register_forward_pre_hook(lambda _, args, kwargs: asked.append(kwargs["timestep"]), with_kwargs=True)
    denoiser, cond = prompted(net, scheduler)
    asked.clear()  # of the search for the direction of time
    denoiser.denoise(torch.randn(1, 4, 8, 8), torch.tensor([0.6]), dr.Context(), cond[:1])
    assert asked[0].tolist() == pytest.approx([150], rel=1e-4)


@pytest.mark.parametrize("source", [3, None, 0.5, [dit]])
def test_a_source_of_another_kind_is_refused_in_a_line(source):
    with pytest.raises(TypeError, match="a pipeline, network or folder is text or a path, got a"):
        dr.from_diffusers(source)


@pytest.mark.parametrize("shape", [(4, 7, 7), (4, 8, 5)])
def test_latents_of_a_side_that_patches_do_not_divide_are_refused_by_it(shape):
    denoiser = dr.from_diffusers(randomised(dit()), diffusers.DDIMScheduler())
    sides = " x ".join(map(str, shape[1:]))
    with pytest.raises(ValueError, match=rf"makes \d x \d of latents of {sides}: pass latents whose sides"):
        denoiser.network(torch.randn(2, *shape), torch.zeros(2), torch.tensor([0, 1]))


def test_a_denoiser_is_shown_in_a_line():
    shown = repr(dr.from_diffusers(randomised(dit()), diffusers.DDIMScheduler()))
    assert shown.startswith("Plain(network=ForeignNetwork, process=GaussianProcess(")
    assert len(shown) < 400

"""Schedule LoRAs in a real ComfyUI: against the host's own loaders, and sampling by hand in parts."""

from __future__ import annotations

import uuid

import pytest
import torch
from comfy_server import GraphError
from graphs import FLUX, UNET, Graph, cancelled, distance, first_steps, lora
from safetensors.torch import save_file

STEPS = 4
#: Two ways to the same: a sampler that is cut in two scales the latent and back.
SAME = 2e-5


class Scheduled(Graph):
    """Graphs that sample more steps, in one go or in parts."""

    def __init__(self, server, like="flux", scheduler="simple"):
        super().__init__(server)
        self.like, self.scheduler = like, scheduler

    def checkpoint(self, name=""):
        """Its checkpoint: of SD1.5 with a tiny CLIP."""
        loader = {"flux": "CheckpointLoaderSimple", "sd1": "TestLoadCheckpoint"}[self.like]
        return self.add(loader, ckpt_name=f"{name or self.like}.safetensors")

    def model(self, loras=("one",), **inputs):
        """The checkpoint with our node on it."""
        sockets = [self.lora(name) for name in loras]
        return self.add("LorakitScheduleLoras", model=self.checkpoint(), loras=sockets, **inputs)

    def applied(self, name="one", strength=1.0, model=None, **inputs):
        """The checkpoint with Apply LoRA."""
        return self.add(
            "LorakitApplyLora",
            model=model or self.checkpoint(),
            lora=self.lora(name),
            strength_model=strength,
            **inputs,
        )

    def part(self, model, start, end, latent=None):
        """Some of the steps: of the same noise, or of what another part left."""
        width, pooled, empty = {
            "flux": (64, 64, "EmptySD3LatentImage"),
            "sd1": (768, 0, "EmptyLatentImage"),
        }[self.like]
        given = self.add("TestConditioning", width=width, pooled=pooled, seed=1)
        return self.add(
            "KSamplerAdvanced",
            model=model,
            positive=given,
            negative=given,
            latent_image=latent or self.add(empty, width=64, height=64, batch_size=1),
            add_noise="disable" if latent else "enable",
            noise_seed=1,
            steps=STEPS,
            cfg=1.0,
            sampler_name="euler",
            scheduler=self.scheduler,
            start_at_step=start,
            end_at_step=end,
            return_with_leftover_noise="enable" if end < STEPS else "disable",
        )

    def whole(self, model):
        """What all steps make of the noise."""
        return self.tensor(self.part(model, 0, STEPS))


def kind_of(kind, shapes=FLUX, seed=3):
    """A file of a kind for the matrices of a model."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape):
        return torch.randn(*shape, generator=generator)

    made = {}
    for key, shape in shapes.items():
        if len(shape) != 2:
            continue
        (out, into), name = shape, f"diffusion_model.{key.removesuffix('.weight')}"
        if kind in ("lora", "dora"):
            made[f"{name}.lora_up.weight"] = numbers(out, 4) / out**0.5
            made[f"{name}.lora_down.weight"] = 0.3 * numbers(4, into)
        if kind == "dora":
            made[f"{name}.dora_scale"] = 1 + 0.1 * numbers(out, 1).abs()
        if kind == "loha":
            for at in (1, 2):
                made[f"{name}.hada_w{at}_a"] = numbers(out, 3) / out**0.25
                made[f"{name}.hada_w{at}_b"] = 0.3 * numbers(3, into)
        if kind == "lokr":
            made[f"{name}.lokr_w1"] = 0.3 * numbers(4, 4)
            made[f"{name}.lokr_w2"] = numbers(out // 4, into // 4) / out**0.5
        if kind == "oft":
            made[f"{name}.oft_blocks"] = 0.1 * numbers(4, out // 4, out // 4)
    return made


@pytest.fixture(scope="module")
def server(comfy):
    """The server with a LoRA of every kind, and one for SD1.5."""
    folder = comfy.base / "models" / "loras"
    for kind in ("dora", "loha", "lokr", "oft"):
        save_file(kind_of(kind), folder / f"{kind}.safetensors")
    save_file(lora(UNET), folder / "unet.safetensors")
    return comfy


@pytest.mark.parametrize("strength", [1.0, -0.4])
def test_a_constant_curve_is_apply_lora(server, strength):
    graph, other = Scheduled(server), Scheduled(server)
    made = graph.whole(graph.model(curves=f"{strength}"))
    assert torch.equal(made, other.whole(other.applied(strength=strength)))
    plain = Scheduled(server)
    assert distance(made, plain.whole(plain.checkpoint())) > 0.05


@pytest.mark.parametrize("kind", ["dora", "loha", "lokr", "oft"])
def test_every_kind_is_as_apply_lora_has_it(server, kind):
    graph, other = Scheduled(server), Scheduled(server)
    made = graph.whole(graph.model([kind, "one"], curves="0.7"))
    expected = other.applied("one", model=other.applied(kind, 0.7))
    assert torch.equal(made, other.whole(expected))


def test_of_a_unet_with_convolutions_and_on_top_of_another(server):
    graph, other = Scheduled(server, "sd1"), Scheduled(server, "sd1")
    model = graph.add(
        "LorakitScheduleLoras",
        model=graph.applied("unet", 0.5),
        loras=[graph.lora("unet")],
        curves="0.25",
    )
    expected = other.applied("unet", 0.25, model=other.applied("unet", 0.5))
    assert torch.equal(graph.whole(model), other.whole(expected))


@pytest.mark.parametrize("scheduler", ["simple", "karras"])
def test_a_curve_that_ends_is_sampling_in_two_parts(server, scheduler):
    graph, other = Scheduled(server, scheduler=scheduler), Scheduled(server, scheduler=scheduler)
    made = graph.whole(graph.model(curves="0: 1, 0.5: 1, 0.5: 0"))
    first = other.part(other.applied(), 0, 2)
    assert distance(made, other.tensor(other.part(other.checkpoint(), 2, STEPS, first))) < SAME


def test_a_slope_is_a_strength_for_each_step(server):
    graph, other = Scheduled(server), Scheduled(server)
    made = graph.whole(graph.model(["one", "two"], curves="0: 1, 1: 0\n0: 0, 0.5: 0, 0.5: 0.8"))
    latent = None
    for step, strengths in enumerate([(1, 0), (0.75, 0), (0.5, 0.8), (0.25, 0.8)]):
        model = other.applied("two", strengths[1], model=other.applied("one", strengths[0]))
        latent = other.part(model, step, step + 1, latent)
    assert distance(made, other.tensor(latent)) < SAME


def test_noise_goes_on_where_another_sampler_begins(server):
    """Steps begin anew there, the host's own measure does not."""

    def two_parts(progress):
        graph = Scheduled(server)
        model = graph.model(curves="0: 1, 0.5: 1, 0.5: 0", progress=progress)
        return graph.tensor(graph.part(model, 2, STEPS, graph.part(model, 0, 2)))

    whole, hand = Scheduled(server), Scheduled(server)
    made = two_parts("noise")
    by_hand = hand.part(hand.checkpoint(), 2, STEPS, hand.part(hand.applied(), 0, 2))
    assert distance(made, hand.tensor(by_hand)) < SAME
    model = whole.model(curves="0: 1, 0.5: 1, 0.5: 0", progress="noise")
    assert distance(made, whole.whole(model)) < SAME
    assert distance(two_parts("steps"), made) > 0.01


def test_blocks_are_those_of_apply_lora(server):
    graph, other = Scheduled(server), Scheduled(server)
    made = graph.whole(graph.model(curves="0: 0.5, 1: 0.5 | D=0"))
    assert torch.equal(made, other.whole(other.applied(strength=0.5, blocks="D=0")))


def test_the_weights_are_as_before(server):
    """After sampling, and after a failure in the middle of it."""
    plain = Scheduled(server)
    before = plain.whole(plain.checkpoint())
    graph = Scheduled(server)
    graph.whole(graph.model())
    again = Scheduled(server)
    assert torch.equal(again.whole(again.checkpoint()), before)
    failing = Scheduled(server)
    model = failing.model()
    failing.like = "sd1"  # conditioning of another width
    with pytest.raises(GraphError, match="KSampler"):
        failing.whole(model)
    after = Scheduled(server)
    assert torch.equal(after.whole(after.checkpoint()), before)


def test_what_is_wrong_is_said(server):
    def error(match, **inputs):
        graph = Scheduled(server)
        graph.part(graph.model(**inputs), 0, STEPS)
        with pytest.raises(GraphError, match=match):
            graph.whole(graph.model(**inputs))

    error("2 curves for 1 LoRAs", curves="1\n1")
    error("is no point", curves="0: much")
    error("in order", curves="0.5: 1, 0.2: 0")
    error("strengths alone", curves="1, 0")
    error("chooses between two LoRAs, and 1 arrive", method="k-lora")
    error("no block `Q` in this file", curves="1 | Q=0")
    error("nothing of `unet.safetensors`", loras=["unet"])


def dense_choices(one, two, progress):
    """Which modules K-LoRA takes of the first file: float64, after its authors' program."""
    modules = [key.removesuffix(".alpha") for key in one if key.endswith(".alpha")]

    def change(file, module):
        up, down = (file[f"{module}.lora_{side}.weight"].double() for side in ("up", "down"))
        return up @ down * float(file[f"{module}.alpha"]) / len(down)

    both = {name: (change(one, name).abs(), change(two, name).abs()) for name in modules}
    ratios = [float(first.sum() / second.sum()) for first, second in both.values()]
    kept = [ratio for ratio in ratios if ratio < 3 * sum(ratios) / len(ratios)]
    gamma = sum(kept) / len(kept)
    return [
        name
        for name, (first, second) in both.items()
        if first.flatten().topk(4 * 6).values.sum() / gamma
        > second.flatten().topk(4 * 6).values.sum() * (1.5 * progress + 0.5)
    ]


def test_k_lora_takes_one_of_two_by_layer_and_step(server):
    folder, generator = server.base / "models" / "loras", torch.Generator().manual_seed(7)
    one, two = lora(FLUX, 4, 8), lora(FLUX, 6, 9)
    for key in one:
        if key.endswith("up.weight"):
            one[key] *= 0.3 + 2 * torch.rand((), generator=generator)
    save_file(one, folder / "subject.safetensors")
    save_file(two, folder / "style.safetensors")
    graph, other = Scheduled(server), Scheduled(server)
    model = graph.model(["subject", "style"], method="k-lora", curves="1\n0.5")
    made, latent, counts = graph.whole(model), None, []
    for step in range(STEPS):
        taken = dense_choices(one, two, step / STEPS)
        counts.append(len(taken))
        model = other.checkpoint()
        for name, file, strength, is_subject in (("a", one, 1.0, True), ("b", two, 0.5, False)):
            held = {
                k: v
                for k, v in file.items()
                if (k.rsplit(".lora", 1)[0].removesuffix(".alpha") in taken) is is_subject
            }
            save_file(held, folder / f"{name}{step}.safetensors")
            model = other.applied(f"{name}{step}", strength, model)
        latent = other.part(model, step, step + 1, latent)
    assert len(set(counts)) == STEPS, "another choice in each step"
    assert distance(made, other.tensor(latent)) < SAME
    told = Scheduled(server)
    report = told.text(told.model(["subject", "style"], method="k-lora"))
    total = len(one) // 3
    assert (
        f"of {total} weights that both change, subject is taken in {counts[0]} at 0, {counts[1]} at 0.25, "
        in report
    )


def test_cancel_in_the_middle_leaves_nothing(server):
    plain = Scheduled(server)
    before = plain.whole(plain.checkpoint())
    graph = Scheduled(server)
    sampled = graph.part(graph.model(), 0, 3000)
    graph.nodes[sampled]["inputs"]["steps"] = 3000
    graph.add("PreviewAny", source=sampled)
    number, _ = first_steps(server, graph, uuid.uuid4().hex)
    cancelled(server, number)
    after = Scheduled(server)
    assert torch.equal(after.whole(after.checkpoint()), before)


def test_a_model_that_is_saved_says_what_is_not_in_it(server):
    graph = Scheduled(server)
    told = graph.text(graph.add("LorakitSaveModel", model=graph.model(), prefix="checkpoints/kept"))
    assert "! `Schedule LoRAs` acts as the model's layers run and is in no weight: left out" in told

"""Adapter files as people find them: every kind, in every spelling, for the demo's sd15.

Each says what it does to which layer in plain arithmetic, in float64 and without any of the
project's code.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

Tensors = dict[str, Tensor]
ATTENTION = "mid_block.attentions.0.transformer_blocks.0"
# Layers of the UNet: in diffusers, and in the original code.
LAYERS = {
    f"{ATTENTION}.attn1.to_q": "middle_block.1.transformer_blocks.0.attn1.to_q",
    f"{ATTENTION}.attn2.to_k": "middle_block.1.transformer_blocks.0.attn2.to_k",
    f"{ATTENTION}.attn1.to_out.0": "middle_block.1.transformer_blocks.0.attn1.to_out.0",
    f"{ATTENTION}.ff.net.2": "middle_block.1.transformer_blocks.0.ff.net.2",
    "mid_block.attentions.0.proj_in": "middle_block.1.proj_in",
    "mid_block.resnets.0.conv1": "middle_block.0.in_layers.2",
    "mid_block.resnets.1.time_emb_proj": "middle_block.2.emb_layers.1",
}
NORMS = {
    "mid_block.resnets.0.norm2": "middle_block.0.out_layers.0",
    f"{ATTENTION}.norm2": "middle_block.1.transformer_blocks.0.norm2",
    "mid_block.attentions.0.norm": "middle_block.1.norm",
}
TEXT = "encoder.layers.0.mlp.fc1"
STRENGTH = 0.6  # of a change, beside the layer's weight
MAGNITUDES = 0.3  # how far DoRA's are from the weight's own


def flat(name: str) -> str:
    return name.replace(".", "_")


# How a layer of the UNet is called: by its names in diffusers and in the original code.
Spell = Callable[[str, str], str]
SPELLINGS: dict[str, Spell] = {
    "kohya": lambda new, _: f"lora_unet_{flat(new)}",
    "kohya-original": lambda _, old: f"lora_unet_{flat(old)}",
    "lycoris": lambda new, _: f"lycoris_{flat(new)}",
    "comfyui": lambda _, old: f"diffusion_model.{old}",
    "checkpoint": lambda _, old: f"model.diffusion_model.{old}",
    "onetrainer": lambda _, old: f"unet.{old}",
    "diffusers": lambda new, _: f"unet.{new}",
    "bare": lambda new, _: new,
    "peft": lambda new, _: f"base_model.model.{new}",
    "diffusers-peft": lambda new, _: f"unet.base_model.model.{new}",
}
TEXTS = {
    "kohya": f"lora_te_text_model_{flat(TEXT)}",
    "kohya-original": f"lora_te1_text_model_{flat(TEXT)}",
    "comfyui": f"text_encoders.clip_l.transformer.text_model.{TEXT}",
    "onetrainer": f"clip_l.text_model.{TEXT}",
    "diffusers": f"text_encoder.text_model.{TEXT}",
    "bare": f"text_encoder.{TEXT}",
}
KOHYA, LORA_AB = ("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight")
MARKS = {
    "peft": ("lora_A.default.weight", "lora_B.default.weight"),
    "diffusers": LORA_AB,
    "bare": ("lora.down.weight", "lora.up.weight"),
    "diffusers-peft": LORA_AB,
}


@dataclass
class Community:
    """A file, and what it does.

    Attributes:
        changed: what layers' parameters become at weight 1, by model and name, in float64.
    """

    name: str
    tensors: Tensors = field(default_factory=dict)
    changed: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    metadata: dict[str, str] | None = None
    described: dict[str, object] | None = None
    path: Path = Path()


class Draws:
    """Random numbers, and the parameters that they are to change.

    Args:
        models: as they serve, with the TCD-LoRA in them: "unet" and "text_encoder".
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        self._source = torch.Generator().manual_seed(11)
        self._models = models

    def weight(self, model: str, name: str) -> Tensor:
        """A parameter, in float64."""
        return self._models[model].get_parameter(name).detach().double()

    def of(self, *shape: int) -> Tensor:
        """Normal numbers."""
        return torch.randn(*shape, generator=self._source)


def community(models: Mapping[str, nn.Module], folder: Path) -> list[Community]:
    """Writes them all."""
    files = list(_files(Draws(models)))
    for file in files:
        own = {name: tensor.clone() for name, tensor in file.tensors.items()}
        if file.described is None:
            file.path = folder / f"{file.name}.safetensors"
            save_file(own, file.path, file.metadata)
            continue
        file.path = folder / file.name
        file.path.mkdir()
        save_file(own, file.path / "adapter_model.safetensors", file.metadata)
        (file.path / "adapter_config.json").write_text(json.dumps(file.described))
    return files


def _files(draws: Draws) -> Iterator[Community]:
    for spelling in SPELLINGS:
        yield lora(draws, f"lora-{spelling}", spelling)
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        yield lora(draws, f"lora-{flat(str(dtype)).lower()}", "kohya", dtype=dtype)
    yield lora(draws, "lora-without-alpha", "kohya", alpha=None)
    yield lora(draws, "lora-of-whole-alpha", "kohya", alpha=torch.tensor(2))
    yield lora(draws, "lora-all-4d", "kohya", dims=4)
    yield lora(draws, "lora-2d-where-it-can-be", "kohya", dims=2)
    yield recorded(draws, "lora-alpha-in-the-header", rslora=False)
    yield recorded(draws, "lora-rank-stabilised", rslora=True)
    for spelling in ("kohya", "lycoris"):
        for kind, make in KINDS.items():
            yield whole(draws, f"{kind}-{spelling}", spelling, make)
    for kind in ("loha", "lokr", "dora"):
        yield whole(draws, f"{kind}-bfloat16", "lycoris", KINDS[kind], dtype=torch.bfloat16)
    for spelling in ("kohya", "lycoris", "comfyui"):
        yield norms(draws, f"norms-{spelling}", spelling)
    yield peft(draws, "peft-dora", magnitude=True)
    yield peft(draws, "peft-biases", magnitude=False)


def layers(spelling: str) -> Iterator[tuple[str, str, str]]:
    """Model, layer and its name in a file."""
    for new, old in LAYERS.items():
        yield "unet", new, SPELLINGS[spelling](new, old)
    if spelling in TEXTS:
        yield "text_encoder", TEXT, TEXTS[spelling]


def kernel(weight: Tensor) -> tuple[int, ...]:
    return tuple(weight.shape[2:])


def pair(draws: Draws, weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    down = draws.of(rank, *weight.shape[1:])
    return down, draws.of(len(weight), rank, *[1] * len(kernel(weight)))


def product(up: Tensor, down: Tensor) -> Tensor:
    return up.double().flatten(1) @ down.double().flatten(1)


def alpha_for(raw: Tensor, weight: Tensor, rank: int) -> float:
    """By which the change comes to be `STRENGTH` of the weight."""
    return round(float(STRENGTH * rank * weight.norm() / raw.norm()), 3)


def lora(
    draws: Draws,
    name: str,
    spelling: str,
    *,
    dtype: torch.dtype = torch.float32,
    alpha: Tensor | float | None = 0.0,
    dims: int | None = None,
) -> Community:
    """A LoRA. `alpha` 0: one for each layer; `None`: none, which is the rank."""
    made = Community(name)
    marks = MARKS.get(spelling, KOHYA)
    for number, (model, layer, spelt) in enumerate(layers(spelling)):
        weight = draws.weight(model, f"{layer}.weight")
        rank = 1 + number % 4
        down, up = pair(draws, weight, rank)
        its_alpha = alpha_for(product(up, down), weight, rank)
        if isinstance(alpha, Tensor):
            up, its_alpha = up * (its_alpha / float(alpha)), float(alpha)
        if alpha is None:
            up, its_alpha = up * (its_alpha / rank), float(rank)
        down, up = down.to(dtype), up.to(dtype)
        change = its_alpha / rank * product(up.float(), down.float())
        made.changed[model, f"{layer}.weight"] = weight + change.view(weight.shape)
        if dims == 4 and down.ndim == 2:
            down, up = down[:, :, None, None], up[:, :, None, None]
        if dims == 2 and kernel(weight) == (1, 1):
            down, up = down.flatten(1), up.flatten(1)
        made.tensors[f"{spelt}.{marks[0]}"] = down.contiguous()
        made.tensors[f"{spelt}.{marks[1]}"] = up.contiguous()
        if alpha is not None:
            its = alpha if isinstance(alpha, Tensor) else torch.tensor(its_alpha)
            made.tensors[f"{spelt}.alpha"] = its
    return made


def recorded(draws: Draws, name: str, *, rslora: bool) -> Community:
    """A LoRA whose alpha stands in the header, as diffusers writes it."""
    rank, alpha = 3, 1.5
    scale = alpha / (sqrt(rank) if rslora else rank)
    made = Community(name)
    fields = {"unet.r": rank, "unet.lora_alpha": alpha, "unet.use_rslora": rslora}
    made.metadata = {"lora_adapter_metadata": json.dumps(fields)}
    for new, _ in LAYERS.items():
        weight = draws.weight("unet", f"{new}.weight")
        down, up = pair(draws, weight, rank)
        up *= alpha_for(product(up, down), weight, 1) / scale
        change = scale * product(up, down)
        made.changed["unet", f"{new}.weight"] = weight + change.view(weight.shape)
        made.tensors |= {f"unet.{new}.lora_A.weight": down, f"unet.{new}.lora_B.weight": up}
    return made


# What a kind's tensors are for a layer, and what the layer's weight becomes. The first is told how
# numbers are rounded.
Round = Callable[[Tensor], Tensor]
Kind = Callable[[Draws, Tensor, Round], tuple[Tensors, Tensor]]


def whole(
    draws: Draws, name: str, spelling: str, make: Kind, dtype: torch.dtype = torch.float32
) -> Community:
    made = Community(name)
    for model, layer, spelt in layers(spelling):
        weight = draws.weight(model, f"{layer}.weight")
        tensors, became = make(draws, weight, lambda tensor: tensor.to(dtype))
        made.tensors |= {f"{spelt}.{mark}": tensor for mark, tensor in tensors.items()}
        made.changed[model, f"{layer}.weight"] = became.view(weight.shape)
        if "diff" in tensors and model == "unet" and layer.endswith(("to_out.0", "conv1")):
            bias = draws.weight(model, f"{layer}.bias")
            change = 0.2 * draws.of(len(bias))
            made.tensors[f"{spelt}.diff_b"] = change
            made.changed[model, f"{layer}.bias"] = bias + change.double()
    return made


def locon(draws: Draws, weight: Tensor, rounded: Round) -> tuple[Tensors, Tensor]:
    """With a middle layer, where there is a kernel."""
    rank = 3
    down, up = pair(draws, weight, rank)
    if kernel(weight) != (3, 3):
        alpha = alpha_for(product(up, down), weight, rank)
        tensors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(alpha)}
        return tensors, weight.flatten(1) + alpha / rank * product(up, down)
    mid, down = draws.of(rank, rank, 3, 3), draws.of(rank, weight.shape[1], 1, 1)
    raw = torch.einsum(
        "or,rskl,si->oikl", up.double()[..., 0, 0], mid.double(), down.double()[..., 0, 0]
    )
    alpha = alpha_for(raw, weight, rank)
    tensors = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up}
    return tensors | {"alpha": torch.tensor(alpha)}, weight + alpha / rank * raw


def hada(draws: Draws, weight: Tensor, rank: int, rounded: Round) -> tuple[Tensors, Tensor]:
    fan_in = weight[0].numel()
    a = [rounded(draws.of(len(weight), rank)) for _ in range(2)]
    b = [rounded(draws.of(rank, fan_in)) for _ in range(2)]
    raw = product(a[0].float(), b[0].float()) * product(a[1].float(), b[1].float())
    tensors = {"hada_w1_a": a[0], "hada_w1_b": b[0], "hada_w2_a": a[1], "hada_w2_b": b[1]}
    return tensors, raw


def loha_of(rank: int) -> Kind:
    def make(draws: Draws, weight: Tensor, rounded: Round) -> tuple[Tensors, Tensor]:
        tensors, raw = hada(draws, weight, rank, rounded)
        alpha = alpha_for(raw, weight, rank)
        return tensors | {"alpha": torch.tensor(alpha)}, weight.flatten(1) + alpha / rank * raw

    return make


def loha_tucker(draws: Draws, weight: Tensor, rounded: Round) -> tuple[Tensors, Tensor]:
    if kernel(weight) != (3, 3):
        return loha_of(2)(draws, weight, rounded)
    rank, (out, fan_in) = 3, weight.shape[:2]
    raw = torch.ones(1, dtype=torch.float64)
    tensors: Tensors = {}
    for number in (1, 2):
        a, b, t = draws.of(rank, out), draws.of(rank, fan_in), draws.of(rank, rank, 3, 3)
        raw = raw * torch.einsum("io,jf,ijkl->ofkl", a.double(), b.double(), t.double())
        tensors |= {f"hada_w{number}_a": a, f"hada_w{number}_b": b, f"hada_t{number}": t}
    alpha = alpha_for(raw, weight, rank)
    return tensors | {"alpha": torch.tensor(alpha)}, weight + alpha / rank * raw


def kron(one: Tensor, two: Tensor) -> Tensor:
    one = one.double()
    return torch.kron(one.view(*one.shape, *[1] * (two.ndim - 2)), two.double())


def lokr_of(*, first: bool, second: bool) -> Kind:
    """`first`, `second`: whether that factor is a product itself."""

    def make(draws: Draws, weight: Tensor, rounded: Round) -> tuple[Tensors, Tensor]:
        rank, (out, fan_in) = 2, weight.shape[:2]
        tensors: Tensors = {}
        one = rounded(draws.of(4, 4)).float()
        if first:
            a, b = rounded(draws.of(4, rank)), rounded(draws.of(rank, 4))
            tensors |= {"lokr_w1_a": a, "lokr_w1_b": b}
            one = a.float() @ b.float()
        two = rounded(draws.of(out // 4, fan_in // 4, *kernel(weight))).float()
        if second:
            a, b = rounded(draws.of(out // 4, rank)), rounded(draws.of(rank, two[0].numel()))
            tensors |= {"lokr_w2_a": a, "lokr_w2_b": b}
            two = (a.float() @ b.float()).view(two.shape)
        raw = kron(one, two)
        if first or second:
            alpha = alpha_for(raw, weight, rank)
            scale = alpha / rank
            tensors["alpha"] = torch.tensor(alpha)
        else:
            one = rounded(one * float(STRENGTH * weight.norm() / raw.norm())).float()
            raw, scale = kron(one, two), 1.0
            tensors["alpha"] = torch.tensor(77.0)  # says nothing: nobody knows the rank
        if not first:
            tensors["lokr_w1"] = rounded(one)
        if not second:
            tensors["lokr_w2"] = rounded(two)
        return tensors, weight + scale * raw

    return make


def full(draws: Draws, weight: Tensor, rounded: Round) -> tuple[Tensors, Tensor]:
    change = draws.of(*weight.shape)
    change *= float(STRENGTH * weight.norm() / change.norm())
    return {"diff": change}, weight + change.double()


def dora_of(inner: Kind, *, outputs: bool) -> Kind:
    def make(draws: Draws, weight: Tensor, rounded: Round) -> tuple[Tensors, Tensor]:
        tensors, became = inner(draws, weight, rounded)
        became = became.view(weight.shape)
        dims = [dim for dim in range(weight.ndim) if dim != (0 if outputs else 1)]
        norm = weight.pow(2).sum(dims, keepdim=True).sqrt()
        scale = rounded(norm.float() * (1 + MAGNITUDES * draws.of(*norm.shape)))
        own = became.pow(2).sum(dims, keepdim=True).sqrt()
        return tensors | {"dora_scale": scale}, became * scale.double() / own

    return make


KINDS: Mapping[str, Kind] = {
    "locon": locon,
    "loha": loha_of(2),
    "loha-of-high-rank": loha_of(12),
    "loha-tucker": loha_tucker,
    "lokr": lokr_of(first=False, second=True),
    "lokr-of-products": lokr_of(first=True, second=True),
    "lokr-whole": lokr_of(first=False, second=False),
    "full": full,
    "dora": dora_of(locon, outputs=True),
    "dora-of-inputs": dora_of(locon, outputs=False),
    "dora-of-loha": dora_of(loha_of(2), outputs=True),
    "dora-of-lokr": dora_of(lokr_of(first=False, second=True), outputs=False),
}


def norms(draws: Draws, name: str, spelling: str) -> Community:
    made = Community(name)
    for new, old in NORMS.items():
        spelt = SPELLINGS[spelling](new, old)
        for parameter, mark in (("weight", "w_norm"), ("bias", "b_norm")):
            before = draws.weight("unet", f"{new}.{parameter}")
            change = 0.5 * draws.of(len(before))
            made.tensors[f"{spelt}.{mark}"] = change
            made.changed["unet", f"{new}.{parameter}"] = before + change.double()
    return made


def peft(draws: Draws, name: str, *, magnitude: bool) -> Community:
    """As PEFT saves it: a folder, with its configuration beside the file."""
    rank, alpha = 3, 6.0
    made = Community(name, described={"peft_type": "LORA", "r": rank, "lora_alpha": alpha})
    for new in LAYERS:
        weight = draws.weight("unet", f"{new}.weight")
        spelt = f"base_model.model.{new}"
        down, up = pair(draws, weight, rank)
        up *= alpha_for(product(up, down), weight, 1) * rank / alpha
        became = weight + (alpha / rank * product(up, down)).view(weight.shape)
        made.tensors |= {f"{spelt}.lora_A.weight": down, f"{spelt}.lora_B.weight": up}
        if magnitude:
            dims = list(range(1, weight.ndim))
            norm = weight.pow(2).sum(dims, keepdim=True).sqrt()
            scale = norm * (1 + MAGNITUDES * draws.of(*norm.shape)).double()
            own = became.pow(2).sum(dims, keepdim=True).sqrt()
            scale = scale.float()
            became = became * scale.double() / own
            shaped = scale.transpose(0, 1) if weight.ndim == 4 else scale.flatten()
            made.tensors[f"{spelt}.lora_magnitude_vector"] = shaped.contiguous()
        elif new.endswith(("to_out.0", "conv1", "proj_in")):
            bias, change = draws.weight("unet", f"{new}.bias"), 0.2 * draws.of(len(weight))
            made.tensors[f"{spelt}.lora_B.bias"] = change
            made.changed["unet", f"{new}.bias"] = bias + alpha / rank * change.double()
        made.changed["unet", f"{new}.weight"] = became
    return made

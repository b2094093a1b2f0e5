"""diffusers' attention layers without a look at their processor's signature at every call."""

from functools import partial

from diffusers.models.attention_processor import Attention
from torch import Tensor, nn


def call_processors_directly(model: nn.Module) -> None:
    """Has each attention layer of a model call its processor at once.

    `Attention.forward` asks `inspect.signature` which arguments the processor takes, some 140 times
    in a call of sdxl's UNet: an eighth of the interpreter's time. Those of these models take all
    that they are given.
    """
    for module in model.modules():
        if isinstance(module, Attention):
            module.__dict__["forward"] = partial(_forward, module)


def _forward(
    attention: Attention,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    attention_mask: Tensor | None = None,
    **more: object,
) -> Tensor:
    attended: Tensor = attention.processor(
        attention,
        hidden_states,
        encoder_hidden_states=encoder_hidden_states,
        attention_mask=attention_mask,
        **more,
    )
    return attended

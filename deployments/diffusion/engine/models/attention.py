"""diffusers' attention layers without a look at their processor's signature at every call."""

from diffusers.models.attention_processor import Attention
from torch import Tensor, nn


class DirectAttention(Attention):
    """An attention layer that calls its processor at once.

    `Attention.forward` asks `inspect.signature` which arguments the processor takes, some 140 times
    in a call of sdxl's UNet: an eighth of the interpreter's time. Those of these models take all
    that they are given.
    """

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **more: object,
    ) -> Tensor:
        """As any attention layer of diffusers."""
        attended: Tensor = self.processor(
            self,
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            **more,
        )
        return attended


def call_processors_directly(model: nn.Module) -> None:
    """Makes each attention layer of a model a `DirectAttention`, in place."""
    for module in model.modules():
        if type(module) is Attention:
            module.__class__ = DirectAttention

"""Small CLIP text encoders: OpenAI's (quick_gelu) and OpenCLIP's (gelu, pad token "!")."""

from pathlib import Path

from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from demo.init import fill, generator
from demo.tokenizer import MAX_LENGTH, train

PREFIX = "text_model."
# Strong attention, so that the words before it change each token's state.
GAINS = {
    "token_embedding": 1.0,
    "position_embedding": 0.3,
    "q_proj": 1.5,
    "k_proj": 1.5,
    "v_proj": 1.3,
    "out_proj": 1.3,
}


def text_config(
    *, width: int, layers: int, hidden_act: str, pad_token_id: int, projection_dim: int
) -> CLIPTextConfig:
    """A configuration that agrees with the demo tokenizer's special ids."""
    vocabulary = train()
    return CLIPTextConfig(
        vocab_size=len(vocabulary.tokens),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        hidden_act=hidden_act,
        projection_dim=projection_dim,
        bos_token_id=vocabulary.bos_token_id,
        eos_token_id=vocabulary.eos_token_id,
        pad_token_id=pad_token_id,
        dtype="float32",
    )


def write_text_encoder(
    folder: Path, name: str, config: CLIPTextConfig, *, with_projection: bool = False
) -> None:
    """Write `config.json` and `model.safetensors`, its keys named as on the hub.

    transformers 5 drops the `text_model.` prefix from a `CLIPTextModel` it saves; published
    checkpoints have it.
    """
    model_class = CLIPTextModelWithProjection if with_projection else CLIPTextModel
    model = model_class(config)
    fill(model, generator(name, folder.name), GAINS)
    config.architectures = [model_class.__name__]
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    tensors = {
        key if with_projection else PREFIX + key: tensor.contiguous()
        for key, tensor in model.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

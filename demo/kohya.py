"""Layer names as kohya's sd-scripts writes them.

SD 1.x and 2.x are trained there on diffusers' UNet, SDXL on the original one (sgm), whose
blocks are numbered differently.
"""

from demo.sgm import sgm_layer


def kohya_layer(layer: str, *, family: str, layers_per_block: int) -> str:
    """The kohya name of the UNet layer `layer`, e.g. `lora_unet_mid_block_attentions_0_proj_in`."""
    name = sgm_layer(layer, layers_per_block) if family == "sdxl" else layer
    return "lora_unet_" + name.replace(".", "_")

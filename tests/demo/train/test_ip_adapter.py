"""An IP-Adapter learns beside the captions that it will be used with."""

from typing import Literal
from unittest.mock import patch

import pytest
import torch

from demo.train.diffusion import Latents
from demo.train.ip_adapter import CAPTION_DROPOUT, PICTURE_DROPOUT, IpAdapterTask
from demo.train.model import Base
from demo.train.text import Tokenizers


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_caption_that_is_left_out_is_an_empty_prompt(family: Literal["sd15", "sdxl"]) -> None:
    """Zeros, which guidance sets against a prompt on sdxl, no user can give beside a picture."""
    torch.manual_seed(0)
    base = Base(family, scale=1)
    ids = Tokenizers(family)(["a red ball", "a blue cube"])
    data = Latents(torch.randn(2, 4, 8, 8), ids, given=torch.randn(2, 32))
    task = IpAdapterTask(base, data, 32, batch_size=256)
    with patch.object(base, "encode", wraps=base.encode) as encode:
        task.losses(torch.Generator().manual_seed(0))
    ids, dropped = encode.call_args.args
    empty = (ids == Tokenizers(family)([""])).all(dim=(1, 2))
    assert empty.float().mean() == pytest.approx(CAPTION_DROPOUT, abs=0.06)
    both = CAPTION_DROPOUT * PICTURE_DROPOUT  # what guidance starts from
    assert dropped.float().mean() == pytest.approx(both, abs=0.04)
    assert empty[dropped].all()

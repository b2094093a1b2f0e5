"""Text encoders learn what captions say, and are told the right thing."""

from pathlib import Path

import torch

from demo.train.loop import Settings, train
from demo.train.model import Base
from demo.train.reading import CLASSES, ReadingTask, labels_of
from demo.train.text import Tokenizers
from demo.world.caption import caption
from demo.world.scene import single_scenes


def test_labels_are_what_the_caption_says() -> None:
    text = "a big red ball on the left and a blue cone on the right, at night"
    assert labels_of(text) == [1, 1, 1, 1, 3, 5, 0, 3, 0, 4]
    moving = "a small red cone on the left rolling right, on the sand"
    assert labels_of(moving) == [3, 1, 2, 1, 0, 0, 0, 0, 2, 2]
    assert labels_of("a cyan cube") == [2, 4, 0, 0, 0, 0, 0, 0, 0, 0]


def test_every_label_has_a_class() -> None:
    for scene in single_scenes():
        labels = labels_of(caption(scene))
        assert all(label < classes for label, classes in zip(labels, CLASSES, strict=True))


def test_a_few_steps_teach_to_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    texts = [caption(scene) for scene in single_scenes()]
    base = Base("sd15", scale=1)
    task = ReadingTask(base, Tokenizers("sd15")(texts), texts, 32)
    before = task.losses(torch.Generator().manual_seed(1))
    train(task, Settings(60, 3e-3, warmup=5), tmp_path, 32)
    after = task.losses(torch.Generator().manual_seed(1))
    assert after["loss"] < 0.5 * before["loss"]
    assert after["right"] > before["right"]

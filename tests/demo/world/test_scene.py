"""The grammar of scenes and the split into training and held-out ones."""

import numpy as np
import pytest

from demo.tokenizer import read_words
from demo.world.caption import Said, caption, parse
from demo.world.scene import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    Scene,
    Solid,
    draw_scene,
    held_out,
    single_scenes,
)

BALL = Solid("ball", "red", "big", "left")
CUBE = Solid("cube", "blue", "small", "right")


def test_a_sixth_of_the_combinations_is_held_out() -> None:
    scenes = list(single_scenes())
    held = {(s.solids[0].shape, s.solids[0].colour, s.background) for s in scenes if held_out(s)}
    assert len(scenes) == 576
    assert len(held) == len(SHAPES) * len(COLOURS) * len(BACKGROUNDS) // 6


def test_training_sees_every_shape_in_every_colour_and_on_every_background() -> None:
    seen = [s for s in single_scenes() if not held_out(s)]
    assert len({(s.solids[0].shape, s.solids[0].colour) for s in seen}) == 24
    assert len({(s.solids[0].shape, s.background) for s in seen}) == 16
    assert len({(s.solids[0].colour, s.background) for s in seen}) == 24


def test_drawn_scenes_are_of_the_split_asked_for() -> None:
    rng = np.random.default_rng(0)
    for held in (False, True):
        scenes = [draw_scene(rng, pairs=0.5, held=held) for _ in range(300)]
        assert {held_out(scene) for scene in scenes} == {held}
        assert {len(scene.solids) for scene in scenes} == {1, 2}


def test_the_same_seed_draws_the_same_scene() -> None:
    first, second = (draw_scene(np.random.default_rng(3), pairs=0.5) for _ in range(2))
    assert first == second


def test_two_solids_stand_left_and_right() -> None:
    with pytest.raises(ValueError, match="left"):
        Scene((CUBE, BALL), "snow")
    with pytest.raises(ValueError, match="left"):
        Scene((), "snow")


def test_captions_are_read_back() -> None:
    rng = np.random.default_rng(1)
    for number in range(300):
        scene = draw_scene(rng, pairs=0.5, moving=number % 2 == 0)
        description = parse(caption(scene))
        assert [(s.shape, s.colour, s.size, s.place) for s in description.solids] == [
            (s.shape, s.colour, s.size, s.place) for s in scene.solids
        ]
        assert description.background == scene.background
        assert description.motion == scene.motion


def test_what_is_left_out_is_open() -> None:
    text = caption(Scene((BALL, CUBE), "night"), Said(size=False, place=False, background=False))
    assert text == "a red ball and a blue cube"
    description = parse(text)
    assert description.background is None
    assert {(s.size, s.place) for s in description.solids} == {(None, None)}


def test_other_words_are_no_caption() -> None:
    with pytest.raises(ValueError, match="no solid"):
        parse("a fox in the snow")


def test_the_tokenizer_knows_the_words() -> None:
    known = set(read_words())
    for scene in single_scenes():
        assert set(caption(scene).replace(",", "").split()) <= known
    assert {"rolling", "jumping", "and"} <= known

"""One caller floods an engine: another's images come in their turns, and are the same."""

from time import monotonic

import pytest

from configs.app import Limits
from deployments.contracts.jobs import BACKGROUND, Caller
from deployments.diffusion.engine.policy.batch import Batch
from tests.conftest import MakeEngine
from tests.deployments.diffusion.engine.conftest import Oracles
from tests.deployments.diffusion.engine.harness import Gate, Listener, image_job
from tests.deployments.diffusion.engine.oracle import assert_same
from tests.deployments.diffusion.engine.tasks import HEIGHT, WIDTH, box_mask, make_all, task

FLOOD, OTHER = Caller("flood"), Caller("other")


def test_a_flood_leaves_another_callers_image_its_turns_and_its_pixels(
    make_engine: MakeEngine, oracle_of: Oracles
) -> None:
    engine = make_engine()
    listener = Listener(engine)
    single = image_job("single", num_inference_steps=4, caller=OTHER)
    with Gate(engine) as gate:
        for n in range(12):
            seeds = tuple(range(10 * n, 10 * n + 10))
            flood = image_job(
                f"flood {n}", seeds=seeds, num_inference_steps=50, priority=10, caller=FLOOD
            )
            listener.submit(flood)
        gate.let(20)
        listener.submit(single)
        gate.let(1 + 1 + 4)  # under way, while its prompt is read, its own
        assert listener.steps("single") == 4
        assert {len(call) for call in gate.calls[-6:-1]} <= {1, 2, 8}
        for n in range(12):
            engine.cancel(f"flood {n}")
    listener.wait()
    assert_same(listener.image("single"), oracle_of("sd15").image(single))
    callers = {figures.name: figures for figures in engine.figures().callers}
    assert callers["other"].work_total == 4 * 16 * 16
    assert callers["flood"].work_total >= 20 * 8 * 16 * 16
    assert (callers["flood"].pending_images, callers["other"].pending_images) == (0, 0)


def test_the_background_rests_beside_others_and_wakes_by_itself(
    make_engine: MakeEngine, oracle_of: Oracles, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(limits=Limits(background_share=0.02))
    behind = image_job(
        "behind", num_inference_steps=4, priority=BACKGROUND, caller=FLOOD.in_background
    )
    engine.generate(image_job("other", num_inference_steps=1, caller=OTHER))
    rests: list[bool] = []
    schedule = engine._scheduler.schedule

    def seen(now: float, after_s: float) -> Batch | None:
        batch = schedule(now, after_s)
        resumes = engine._scheduler.resumes
        rests.append(batch is None and resumes is not None and resumes > now)
        return batch

    monkeypatch.setattr(engine._scheduler, "schedule", seen)
    (beside,) = engine.generate(behind)
    assert sum(rests) >= 3, "between each of its calls"
    assert len(rests) < 30, "it sleeps meanwhile"
    assert_same(beside, oracle_of("sd15").image(behind))


def test_the_background_rests_for_its_pictures_decoding_too(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(limits=Limits(background_share=0.5))
    engine.generate(image_job("other", num_inference_steps=1, caller=OTHER))
    taken = {False: 4.0, True: 1.0}
    monkeypatch.setattr(
        engine._registry, "decode_s", lambda pixels, preview: pixels / (16 * 16) * taken[preview]
    )
    began = monotonic()
    background = FLOOD.in_background
    behind = image_job("behind", num_inference_steps=1, priority=BACKGROUND, caller=background)
    engine.generate(behind)
    assert engine._scheduler._background.resumes(began) >= began + 4.0 / 0.5


def test_the_background_rests_for_what_is_shown_of_its_pictures_too(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(limits=Limits(background_share=1.0))
    engine.generate(image_job("other", num_inference_steps=1, caller=OTHER))
    charged: list[float] = []
    monkeypatch.setattr(
        engine._registry, "decode_s", lambda pixels, preview: float(pixels) if preview else 0.0
    )
    monkeypatch.setattr(engine._scheduler._background, "had", lambda s, _: charged.append(s))
    background = FLOOD.in_background
    behind = image_job(
        "behind",
        num_inference_steps=4,
        partial_images=2,
        priority=BACKGROUND,
        caller=background,
    )
    engine.generate(behind)
    assert charged.count(16.0 * 16.0) == 2


@pytest.mark.parametrize("masked", [False, True])
def test_the_background_rests_for_its_start_pictures_too(
    masked: bool, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is encoded once for all images of its job; what a mask leaves of it is not."""
    engine = make_engine(limits=Limits(background_share=1.0))
    engine.generate(image_job("other", num_inference_steps=1, caller=OTHER))
    charged: list[float] = []
    monkeypatch.setattr(engine._registry, "encode_s", float)
    monkeypatch.setattr(engine._registry, "decode_s", lambda *_, **__: 0.0)
    monkeypatch.setattr(engine._scheduler._background, "had", lambda s, _: charged.append(s))
    behind = task(
        "behind",
        image=True,
        mask=box_mask() if masked else None,
        seeds=(1, 2, 3, 4),
        num_inference_steps=2,
        priority=BACKGROUND,
        caller=FLOOD.in_background,
    )
    make_all(engine, [behind, task("before", image=True, num_inference_steps=2, caller=OTHER)])
    pixels = (WIDTH // 8) * (HEIGHT // 8)
    assert charged.count(pixels / 4) == 4

"""A style that cannot be had costs only the requests that want it."""

import shutil
from concurrent.futures import Future
from pathlib import Path
from threading import Event

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.app import Limits, ModelUserConfig
from deployments.contracts.errors import GenerationFailed, InvalidRequest
from deployments.diffusion.engine.adapters import shelf
from deployments.diffusion.engine.adapters.files import LoraFile
from deployments.diffusion.engine.adapters.layers import AdaptedLinear
from deployments.diffusion.engine.adapters.reader import LoraWeights
from deployments.diffusion.engine.adapters.sources import LoraSources
from deployments.diffusion.engine.policy.report import fingerprint
from deployments.diffusion.engine.policy.spec import LoraSource
from tests.conftest import MakeEngine, demo_loras
from tests.deployments.diffusion.engine.conftest import Oracles
from tests.deployments.diffusion.engine.harness import Gate, Listener, eventually, image_job, styles
from tests.deployments.diffusion.engine.oracle import assert_same


@pytest.fixture
def broken_styles(demo_models: Path, tmp_path: Path) -> dict[str, tuple[str, str]]:
    """Sources that no model can use, and what is said of them."""
    neon = Path(demo_loras(demo_models, "sd15")["neon"])
    whole = neon.read_bytes()
    (tmp_path / "short.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.safetensors").write_text("not weights at all")
    shutil.copy(neon, tmp_path / "pickle.bin")
    tensors = load_file(neon)
    first = next(iter(tensors))
    save_file({**tensors, first: tensors[first] * float("nan")}, tmp_path / "nan.safetensors")
    oft = {**tensors, first.replace("lora_A.weight", "oft_blocks"): torch.ones(4)}
    save_file(oft, tmp_path / "oft.safetensors")
    return {
        "short": (str(tmp_path / "short.safetensors"), "not a readable safetensors file"),
        "text": (str(tmp_path / "text.safetensors"), "not a readable safetensors file"),
        "pickle": (str(tmp_path / "pickle.bin"), "is a pickle, which can run code"),
        "nan": (str(tmp_path / "nan.safetensors"), "not finite"),
        "oft": (str(tmp_path / "oft.safetensors"), "is OFT"),
        "missing": (str(tmp_path / "nowhere.safetensors"), "does not exist"),
        "other": (str(demo_models / "loras" / "sd21" / "ink.safetensors"), "another family"),
    }


def test_a_broken_style_fails_its_own_requests_only(
    broken_styles: dict[str, tuple[str, str]],
    make_engine: MakeEngine,
    oracle_of: Oracles,
    demo_models: Path,
) -> None:
    sources = {name: source for name, (source, _) in broken_styles.items()}
    engine = make_engine(loras=demo_loras(demo_models, "sd15") | sources)
    listener = Listener(engine)
    plain = image_job("plain", seeds=(1,), num_inference_steps=13)
    styled = image_job("styled", seeds=(2,), num_inference_steps=8, loras=styles(neon=1.0))
    listener.submit(plain)
    for name in broken_styles:
        loras = styles(neon=0.5, **{name: 1.0})
        listener.submit(image_job(name, seeds=(1, 2), num_inference_steps=2, loras=loras))
    listener.submit(styled)
    listener.wait()

    for name, (_, says) in broken_styles.items():
        for index in (0, 1):
            error = listener.error(name, index)
            assert isinstance(error, InvalidRequest), repr(error)
            assert error.param == "loras"
            assert str(error).startswith(f"lora {name!r}: ")
            assert says in str(error)
        assert listener.steps(name) == 0
    for job in (plain, styled):
        assert_same(listener.image(job.job_id), oracle_of("sd15").image(job))
    assert engine.fault is None
    assert eventually(lambda: engine.figures().lora_failures_total == len(broken_styles))
    assert engine.figures().loras_resident == 1


def test_a_style_that_was_broken_is_read_again_for_the_next_request(
    make_engine: MakeEngine, oracle_of: Oracles, demo_models: Path, tmp_path: Path
) -> None:
    file = tmp_path / "style.safetensors"
    file.write_bytes(b"still being uploaded")
    engine = make_engine(loras={"style": str(file)})
    job = image_job("job", loras=styles(style=1.0))
    with pytest.raises(InvalidRequest, match="not a readable safetensors file"):
        engine.generate(job)
    assert eventually(lambda: engine.report().failed == {fingerprint("unet", "style")})
    shutil.copy(demo_loras(demo_models, "sd15")["neon"], file)
    (image,) = engine.generate(job)
    assert engine.report().failed == frozenset()
    assert engine.report().adapters == {fingerprint("unet", "style")}
    assert_same(image, oracle_of("sd15").image(image_job(loras=styles(neon=1.0))))


def test_a_source_that_failed_is_not_asked_again_at_once(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(shelf, "monotonic", lambda: now)
    engine = make_engine()
    asked: list[LoraFile] = []
    make = engine.components.lora_reader.make

    def refuse(file: LoraFile, unet: str) -> LoraWeights:
        asked.append(file)
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(engine.components.lora_reader, "make", refuse)
    job = image_job(loras=styles(neon=1.0))
    told: list[GenerationFailed] = []
    for _ in range(3):
        with pytest.raises(GenerationFailed, match="no such kernel") as caught:
            engine.generate(job)
        told.append(caught.value)
    assert len(asked) == 1
    assert len(set(map(id, told))) == 3  # one would hold on to the frames of all
    monkeypatch.setattr(engine.components.lora_reader, "make", make)
    now += shelf.REMEMBER_FAILURE_S + 1
    assert len(engine.generate(job)) == 1


def test_a_source_that_hangs_keeps_no_other_from_being_read(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    arrived, go_on = Event(), Event()
    make = engine.components.lora_reader.make

    def hang_on_ink(file: LoraFile, unet: str) -> LoraWeights:
        if file.name == "ink.safetensors":
            arrived.set()
            assert go_on.wait(60)
        return make(file, unet)

    monkeypatch.setattr(engine.components.lora_reader, "make", hang_on_ink)
    listener = Listener(engine)
    listener.submit(image_job("hangs", loras=styles(ink=1.0)))
    assert arrived.wait(60)
    for name in ("neon", "papercut"):
        assert len(engine.generate(image_job(name, loras=styles(**{name: 1.0})))) == 1
    assert not listener.answered("hangs")
    go_on.set()
    listener.wait()


def test_a_file_that_was_replaced_is_another_adapter(
    make_engine: MakeEngine, oracle_of: Oracles, demo_models: Path, tmp_path: Path
) -> None:
    """On the UNet, and on the text encoder whose embeddings are remembered."""
    file = tmp_path / "style.safetensors"
    engine = make_engine(loras={"style": str(file)})
    for name in ("ink", "neon", "ink"):
        shutil.copy(demo_loras(demo_models, "sd15")[name], file)
        (image,) = engine.generate(image_job("job", loras=styles(style=1.0)))
        assert_same(image, oracle_of("sd15").image(image_job(loras=styles(**{name: 1.0}))))


def test_a_load_that_fails_for_another_reason_is_not_the_requests_fault(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()

    def refuse(file: LoraFile, unet: str) -> LoraWeights:
        raise torch.OutOfMemoryError("the device is full")

    monkeypatch.setattr(engine.components.lora_reader, "make", refuse)
    with pytest.raises(GenerationFailed, match="the device is full"):
        engine.generate(image_job(loras=styles(neon=1.0)))
    assert len(engine.generate(image_job("plain"))) == 1


def test_styles_that_do_not_fit_the_budget_together_are_refused(
    make_engine: MakeEngine, oracle_of: Oracles, demo_models: Path, tmp_path: Path
) -> None:
    """neon has 0.6 MiB and its copy as much; 1 MiB is kept."""
    loras = demo_loras(demo_models, "sd15")
    loras["copy"] = shutil.copy(loras["neon"], str(tmp_path / "copy.safetensors"))
    engine = make_engine(loras=loras, limits=Limits(lora_budget_mb=1))
    listener = Listener(engine)
    both = image_job("both", loras=styles(neon=1.0, copy=1.0))
    one = image_job("one", loras=styles(neon=1.0))
    other = image_job("other", loras=styles(copy=1.0))
    listener.submit(both, one, other)
    listener.wait()

    error = listener.error("both")
    assert isinstance(error, InvalidRequest)
    assert error.param == "loras"
    assert "loras need 1.2 MiB together; this model keeps at most 1.0 MiB" in str(error)
    for name in ("one", "other"):
        assert_same(listener.image(name), oracle_of("sd15").image(one))
    assert engine.figures().lora_bytes <= 2**20


def test_a_smaller_budget_evicts_and_lets_what_is_in_use_finish(
    make_engine: MakeEngine, oracle_of: Oracles
) -> None:
    engine = make_engine()
    listener = Listener(engine)
    everything = image_job("everything", loras=styles(neon=1.0, ink=1.0, papercut=1.0))
    neon = image_job("neon", num_inference_steps=8, loras=styles(neon=1.0))
    listener.submit(everything)
    listener.wait()
    assert engine.figures().lora_bytes > 2**20
    with Gate(engine) as gate:
        listener.submit(neon)
        gate.wait()
        names = engine._admission.config.loras
        engine.reconfigure(ModelUserConfig(loras=names, limits=Limits(lora_budget_mb=1)))
        gate.let(2)
        assert engine.figures().lora_bytes <= 2**20
    listener.wait()
    assert_same(listener.image("neon"), oracle_of("sd15").image(neon))
    assert engine.figures().lora_evictions_total >= 1


def test_others_go_on_while_an_adapter_is_read(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    arrived, go_on = Event(), Event()
    make = engine.components.lora_reader.make

    def slow_read(file: LoraFile, unet: str) -> LoraWeights:
        arrived.set()
        assert go_on.wait(60)
        return make(file, unet)

    monkeypatch.setattr(engine.components.lora_reader, "make", slow_read)
    listener = Listener(engine)
    listener.submit(image_job("styled", loras=styles(neon=1.0)))
    assert arrived.wait(60)
    assert len(engine.generate(image_job("plain"))) == 1
    assert not listener.answered("styled")
    go_on.set()
    listener.wait()
    assert listener.image("styled").seed == 1


def test_requests_for_the_same_style_share_one_load(make_engine: MakeEngine) -> None:
    engine = make_engine()
    listener = Listener(engine)
    for n in range(5):
        listener.submit(image_job(str(n), num_inference_steps=1, loras=styles(neon=float(n))))
    listener.wait()
    assert engine.figures().lora_loads_total == 1


def test_an_adapter_for_which_the_device_has_no_room_costs_its_own_requests_only(
    make_engine: MakeEngine, oracle_of: Oracles, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    move = LoraWeights.to

    def refuse(self: LoraWeights, device: torch.device, non_blocking: bool = False) -> LoraWeights:
        raise torch.OutOfMemoryError("the device is full")

    monkeypatch.setattr(LoraWeights, "to", refuse)
    listener = Listener(engine)
    plain = image_job("plain", seeds=(3,), num_inference_steps=8)
    listener.submit(plain, image_job("styled", loras=styles(neon=1.0)))
    listener.wait()
    assert isinstance(listener.error("styled"), GenerationFailed)
    assert "memory" in str(listener.error("styled"))
    assert_same(listener.image("plain"), oracle_of("sd15").image(plain))
    assert engine.fault is None
    assert engine.figures().loras_resident == 0

    monkeypatch.setattr(LoraWeights, "to", move)
    neon = image_job("neon", loras=styles(neon=1.0))
    listener.submit(neon)
    listener.wait()
    assert_same(listener.image("neon"), oracle_of("sd15").image(neon))


def test_an_adapter_stays_while_its_prompt_is_being_encoded(
    make_engine: MakeEngine, oracle_of: Oracles, demo_models: Path
) -> None:
    """Else embeddings made without it would be remembered as made with it."""
    loras = demo_loras(demo_models, "sd15")
    engine = make_engine(loras=loras, limits=Limits(lora_budget_mb=1))
    listener = Listener(engine)
    listener.submit(image_job("warm", loras=styles(ink=1.0), prompt="warm"))
    listener.wait()
    encoder = engine.components.text_encoders[0]
    forward = encoder.forward
    encoding, go_on = Event(), Event()

    def held(ids: torch.Tensor, **more: object) -> object:
        encoding.set()
        assert go_on.wait(60)
        return forward(ids, **more)

    encoder.forward = held
    styled = image_job("gone", loras=styles(ink=1.0))
    listener.submit(styled)
    assert encoding.wait(60)
    engine.cancel("gone")
    listener.wait_until(lambda: listener.answered("gone"))
    listener.submit(image_job("other", loras=styles(neon=1.0)))  # there is room for one of them
    go_on.set()
    listener.wait()
    again = image_job("again", loras=styles(ink=1.0))
    listener.submit(again)
    listener.wait()
    assert_same(listener.image("again"), oracle_of("sd15").image(again))


def test_no_adapter_stays_on_a_text_encoder_after_its_prompts(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.generate(image_job(loras=styles(ink=1.0)))
    (encoder,) = engine.components.text_encoders
    layers = [m for m in encoder.modules() if isinstance(m, AdaptedLinear)]
    assert layers
    assert all(layer.adapters is None for layer in layers)


def test_what_a_request_costs_grows_no_faster_than_the_line(make_engine: MakeEngine) -> None:
    class Hangs(LoraSources):
        def bring(self, key: str, source: LoraSource) -> Future[LoraFile]:
            return Future()

    class Key(str):
        compared = 0

        def __eq__(self, other: object) -> bool:
            Key.compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    reader = make_engine().components.lora_reader

    def compared(waiting: int) -> int:
        crowd = shelf.LoraShelf({}, reader, Hangs(), torch.device("cpu"), 1, lambda _: None)
        for job in range(waiting + 1):
            Key.compared = 0
            keys: list[str] = [Key(f"{job}-{n}") for n in range(8)]
            sources = {key: LoraSource(key, "far") for key in keys}
            assert crowd.request(str(job), sources) == []
        crowd.close()
        return Key.compared

    assert compared(64) < 6 * compared(16)

"""Heavy imports: the collector rests within, and works afterwards as it did before."""

import gc

import pytest

from deployments.imports import heavy_imports


def test_the_collector_rests_within() -> None:
    with heavy_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), heavy_imports():
        raise ImportError
    assert gc.isenabled()


def test_who_wants_no_collector_gets_none() -> None:
    gc.disable()
    try:
        with heavy_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()

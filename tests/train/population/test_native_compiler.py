"""Compiling and keeping generated programs, and the accuracy of the vector functions they use."""

from __future__ import annotations

import ctypes
import logging

import numpy as np
import pytest
import torch

from zoogen.train.population.engine import Unsupported
from zoogen.train.population.native import compiler
from zoogen.train.population.native.compiler import load
from zoogen.train.population.native.program import prelude

# Called in float64 by an independent library: torch.
FUNCTIONS = {
    "vexp": (torch.exp, -86.0, 88.0),
    "vlog": (torch.log, 1e-6, 1e6),
    "vtanh": (torch.tanh, -20.0, 20.0),
    "verf": (torch.erf, -6.0, 6.0),
}


def elementwise(expression: str, cache, lanes: int = 8):
    """An expression of the vector x, as a function on float32 arrays whose length is a multiple of 8."""
    body = f"out[i] = {expression};"
    code = f"void run(const V *in, V *out, int64_t n) {{ for (int64_t i = 0; i < n; i++) {{ V x = in[i]; {body} }} }}"
    library = load(prelude() + code, {"LANES": str(lanes)}, cache)

    def run(x: torch.Tensor) -> torch.Tensor:
        y = torch.empty_like(x)
        pointers = (ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()))
        library.run(*pointers, ctypes.c_int64(len(x) // lanes))
        return y

    return run


@pytest.mark.parametrize("name", FUNCTIONS)
def test_vector_functions_are_within_four_units_in_the_last_place(name, tmp_path):
    reference, low, high = FUNCTIONS[name]
    x = torch.cat([torch.linspace(low, high, 80_000), torch.logspace(-6, 0, 8_000), -torch.logspace(-6, 0, 8_000)])
    x = x[(x >= low) & (x <= high)]
    x = x[: 8 * (len(x) // 8)].contiguous()
    expected = reference(x.double())
    spacing = torch.from_numpy(np.spacing(np.abs(expected.float().numpy()))).double()
    units = (elementwise(f"{name}(x)", tmp_path)(x).double() - expected).abs() / spacing
    assert units.max() < 4


def test_vector_functions_carry_infinities_and_nan(tmp_path):
    odd = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0, 1e30, -1e30, 100.0, -100.0])
    exp, tanh, erf = (elementwise(f"{name}(x)", tmp_path)(odd) for name in ("vexp", "vtanh", "verf"))
    assert torch.equal(exp[[0, 1, 3, 4, 5, 6, 7]], torch.tensor([np.inf, 0, 1, np.inf, 0, np.inf, 0]).float())
    assert torch.equal(tanh[[0, 1, 3, 4, 5]], torch.tensor([1.0, -1, 0, 1, -1]))
    assert torch.equal(erf[[0, 1, 3, 4, 5]], torch.tensor([1.0, -1, 0, 1, -1]))
    assert all(f[2].isnan() for f in (exp, tanh, erf))


def test_maxima_and_relu_pass_nan_on_and_do_not_make_any(tmp_path):
    odd = torch.tensor([float("nan"), -float("inf"), float("inf"), -1.0, 0.0, 2.0, -0.0, 1e-30])
    one = torch.tensor(1.0)
    for expression in ("vmax(x, splat(1))", "vmax(splat(1), x)"):
        found = elementwise(expression, tmp_path)(odd)
        torch.testing.assert_close(found, torch.maximum(odd, one), equal_nan=True)
    relu = elementwise("({ V y; activate(RELU, 0, &x, &y, 1); y; })", tmp_path)(odd)
    torch.testing.assert_close(relu, torch.relu(odd), equal_nan=True)


SOURCE = "int answer(void) { return 42; }"


def test_a_library_is_compiled_once_and_again_when_its_file_is_damaged(tmp_path, monkeypatch, caplog):
    calls = []
    run = compiler.subprocess.run
    monkeypatch.setattr(compiler.subprocess, "run", lambda *a, **k: calls.append(a) or run(*a, **k))
    compiler.compiler()
    calls.clear()
    assert load(SOURCE, {}, tmp_path).answer() == 42
    assert load(SOURCE, {}, tmp_path).answer() == 42
    assert len(calls) == 1
    (library,) = (tmp_path / "programs").glob("*.so")
    whole = library.read_bytes()
    library.unlink()  # a library in use must not be written to
    library.write_bytes(whole[: len(whole) // 2])
    with caplog.at_level(logging.WARNING):
        assert load(SOURCE, {}, tmp_path).answer() == 42
    assert len(calls) == 2
    assert "is damaged and is made anew" in caplog.text
    assert not [p for p in (tmp_path / "programs").iterdir() if p.is_dir()]


def test_settings_and_source_make_different_libraries(tmp_path):
    for text, defines in ((SOURCE, {}), (SOURCE + " ", {}), (SOURCE, {"LANES": "8"})):
        load(text, defines, tmp_path)
    assert len(list((tmp_path / "programs").glob("*.so"))) == 3


def test_a_program_that_does_not_compile_is_unsupported_with_the_compilers_words(tmp_path):
    with pytest.raises(Unsupported, match=r"failed on the generated program: .*error"):
        load("int answer(void) { return nothing; }", {}, tmp_path)
    assert not list((tmp_path / "programs").iterdir())


def test_without_a_compiler_the_reason_says_what_to_install(monkeypatch):
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    compiler.compiler.cache_clear()
    try:
        with pytest.raises(Unsupported, match=r"install one, e\.g\. apt install gcc"):
            compiler.compiler()
    finally:
        compiler.compiler.cache_clear()

"""The same value gives the same bytes, different values different ones."""

import hashlib
import subprocess
import sys
from collections import OrderedDict
from types import MappingProxyType

import pytest

from zoogen.core.canonical import canonical_json, digest
from zoogen.core.frozen import FrozenDict


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"b": 1, "a": [True, None, "x"]}, '{"a":[true,null,"x"],"b":1}'),
        ({"lr": 1e-3}, '{"lr":0.001}'),
        ({"lr": 0.1 + 0.2}, '{"lr":0.30000000000000004}'),
        ((1, 2.0, -0.0), "[1,2.0,-0.0]"),
        ({"name": "Zoë", "quote": '"'}, '{"name":"Zoë","quote":"\\""}'),
        ({3, 1, 2}, "[1,2,3]"),
        (frozenset({"b", "a"}), '["a","b"]'),
        (MappingProxyType({"b": MappingProxyType({}), "a": 1}), '{"a":1,"b":{}}'),
        (FrozenDict(b=(1, 2), a=FrozenDict()), '{"a":{},"b":[1,2]}'),
        (2**80, "1208925819614629174706176"),
    ],
)
def test_values_have_one_form(value, expected):
    assert canonical_json(value) == expected.encode()


def test_the_order_of_keys_does_not_matter():
    assert canonical_json(OrderedDict(a=1, b=2)) == canonical_json(OrderedDict(b=2, a=1))


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), (1, True), ("1", 1), (None, "null"), ([], {}), (0.0, -0.0)])
def test_values_of_different_types_differ(one, other):
    assert canonical_json(one) != canonical_json(other)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [-float("inf")]}])
def test_numbers_without_a_word_in_json_are_refused(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(value)


@pytest.mark.parametrize("value", [object(), b"bytes", 1j])
def test_values_without_a_form_are_refused(value):
    with pytest.raises(TypeError, match="no canonical JSON form"):
        canonical_json({"value": value})


def test_a_digest_is_blake2b_of_the_asked_length():
    # RFC 7693, appendix A: BLAKE2b-512 of "abc" starts so; shorter digests are functions of their own.
    assert digest(b"abc", size=64).startswith("ba80a53f981c4d0d6a2797b69f12f6e94c212f14685ac4b7")
    assert digest(b"abc") == hashlib.blake2b(b"abc", digest_size=16).hexdigest()
    assert len(digest(b"")) == 32


def test_bytes_do_not_depend_on_the_hash_seed_of_the_process():
    code = (
        "from zoogen.core.canonical import canonical_json, digest\n"
        "print(digest(canonical_json({'set': {'a', 'b', 'c', 'd'}, 'of': {3, 1, 2}})))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(found) == 1

"""State dictionaries as JSON plus named tensors, without pickle.

`encode` splits a nested state into a JSON value and a flat mapping of tensors; `decode` joins them again. Everything
comes back as it was: types of containers, integer keys, infinities, tensors of any dtype including 0-d ones.

Scalars and strings stand for themselves. Everything else is an object with one key that says what it is::

    {"dict": {...}}       string keys            {"tensor": name}
    {"items": [[k, v]]}   other keys             {"raw": name, "dtype": "complex128", "shape": [2]}
    {"list": [...]}       {"tuple": [...]}       {"float": "nan"}
    {"ordered": value}    an OrderedDict         {"counter": value}    a Counter
    {"module": value, "metadata": value}         what nn.Module.state_dict() returns
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

# What the safetensors format stores by itself; other types travel as their bytes.
_PLAIN = {
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
}  # fmt: skip


def encode(value: object, *, name: str) -> tuple[Any, dict[str, Tensor]]:
    """Split `value` into a JSON value and tensors on the CPU, named after their place below `name`.

    Raises:
        TypeError: The state holds something else than tensors, numbers, strings, None and dict, list or tuple of them.
    """
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()

    def tensor(x: Tensor, place: str) -> Any:
        if x.layout != torch.strided or x.is_quantized or x.is_meta or hasattr(x, "device_mesh"):
            raise TypeError(
                f"{place} is a tensor that a checkpoint cannot hold (layout {x.layout}, device {x.device}, type "
                f"{type(x).__name__}); expected a dense tensor that is whole on every process"
            )
        x = x.detach().cpu().resolve_conj().resolve_neg().contiguous()
        # safetensors refuses two tensors in one memory, as tied weights are; nor should a view keep all of its memory.
        if x.untyped_storage().data_ptr() in storages or x.untyped_storage().nbytes() != x.nbytes:
            x = x.clone()
        storages.add(x.untyped_storage().data_ptr())
        key = place
        while key in tensors:  # two places may read alike: {"a": {"b": x}, "a.b": y}
            key += "'"
        if x.dtype in _PLAIN:
            tensors[key] = x
            return {"tensor": key}
        tensors[key] = x.reshape(-1).view(torch.uint8)
        return {"raw": key, "dtype": str(x.dtype).removeprefix("torch."), "shape": list(x.shape)}

    def mapping(x: Mapping[Any, Any], place: str) -> Any:
        if all(type(key) is str for key in x):
            return {"dict": {key: walk(item, f"{place}.{key}") for key, item in x.items()}}
        return {"items": [[walk(key, f"{place} (key)"), walk(item, f"{place}.{key}")] for key, item in x.items()]}

    def walk(x: object, place: str) -> Any:  # noqa: PLR0911 - one line per kind of value
        if x is None or isinstance(x, (bool, int, str)):
            return x
        if isinstance(x, float):
            return float(x) if math.isfinite(x) else {"float": repr(float(x))}
        if isinstance(x, Tensor):
            return tensor(x, place)
        if type(x) is list:
            return {"list": [walk(item, f"{place}.{i}") for i, item in enumerate(x)]}
        if type(x) in (tuple, torch.Size):
            return {"tuple": [walk(item, f"{place}.{i}") for i, item in enumerate(x)]}  # type: ignore[var-annotated,arg-type]
        if type(x) is OrderedDict and hasattr(x, "_metadata"):
            return {"module": mapping(x, place), "metadata": walk(dict(x._metadata), f"{place} (metadata)")}
        if type(x) is OrderedDict:
            return {"ordered": mapping(x, place)}
        if type(x) is Counter:
            return {"counter": mapping(x, place)}
        if type(x) is dict:
            return mapping(x, place)
        raise TypeError(
            f"{place} is a {type(x).__name__}, which a checkpoint cannot hold; expected tensors, numbers, strings, "
            "None, and dict, list or tuple of them"
        )

    return walk(value, name), tensors


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Join what `encode` has split."""

    def raw(x: dict[str, Any]) -> Tensor:
        return tensors[x["raw"]].view(getattr(torch, x["dtype"])).reshape(x["shape"])

    def module(x: dict[str, Any]) -> OrderedDict[str, Any]:
        state: OrderedDict[str, Any] = OrderedDict(walk(x["module"]))
        state._metadata = OrderedDict(walk(x["metadata"]))  # type: ignore[attr-defined]
        return state

    kinds: dict[str, Callable[[dict[str, Any]], Any]] = {
        "dict": lambda x: {key: walk(item) for key, item in x["dict"].items()},
        "items": lambda x: {walk(key): walk(item) for key, item in x["items"]},
        "list": lambda x: [walk(item) for item in x["list"]],
        "tuple": lambda x: tuple(walk(item) for item in x["tuple"]),
        "ordered": lambda x: OrderedDict(walk(x["ordered"])),
        "counter": lambda x: Counter(walk(x["counter"])),
        "module": module,
        "tensor": lambda x: tensors[x["tensor"]],
        "raw": raw,
        "float": lambda x: float(x["float"]),
    }

    def walk(x: Any) -> Any:
        return kinds[next(iter(x))](x) if isinstance(x, dict) else x

    return walk(value)

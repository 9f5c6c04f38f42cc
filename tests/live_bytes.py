"""How many bytes of tensors are alive at once, on a device that is not there: torch's meta device, whose tensors have no content."""

import weakref
from collections import defaultdict

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

COPIES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)


class LiveBytes(TorchDispatchMode):
    """Within, `peak` is the most bytes that tensors made here held at once, by type of device ("meta", "cpu").

    Tensors may be copied from device to device, also back from the one without content; anything else on two devices at once is an error,
    as it would be between a processor and a GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak: dict[str, int] = defaultdict(int)
        self._held: dict[str, int] = defaultdict(int)
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        given = [t for t in tree_leaves((arguments, keywords)) if isinstance(t, torch.Tensor)]
        if function not in COPIES:
            assert len({t.device for t in given if t.ndim}) <= 1, f"{function} of tensors on two devices"
        elif function is COPIES[0] and arguments[1].is_meta:
            return arguments[0]  # no content to copy
        keywords = keywords or {}
        if function is COPIES[1] and arguments[0].is_meta and keywords.get("device") is not None:
            made = torch.empty_like(arguments[0], device=keywords["device"], dtype=keywords.get("dtype"))
        else:
            made = function(*arguments, **keywords)
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage(), tensor.device.type)
        return made

    def _count(self, storage, device: str) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self._held[device] += size
        self.peak[device] = max(self.peak[device], self._held[device])

        def gone() -> None:
            self._known.discard(key)
            self._held[device] -= size

        weakref.finalize(storage, gone)

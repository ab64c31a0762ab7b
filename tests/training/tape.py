"""A stand-in for CUDA graphs on the CPU: records which kernels run on which memory, and runs just those again.

What a CUDA graph cannot hold, a tape cannot either: a value that Python read from a tensor, a decision taken on it, a
number that Python changes from step to step.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default}


class Tape(TorchDispatchMode):
    """The calls of operators inside its `with`, which run; those that would wait for a device are refused."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in READS:
            raise AssertionError(f"{func} reads the device from the host")
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        return result

    def replay(self):
        """Every call once more, on the same tensors; what a call makes anew goes into the tensor it made then."""
        with torch.no_grad():
            for func, args, kwargs, result in self.calls:
                made = func(*args, **kwargs)
                if func.namespace == "c10d":  # a reduction over processes, which a CUDA graph has in its order
                    made[-1].wait()
                for old, new in zip(tree_flatten(result)[0], tree_flatten(made)[0], strict=True):
                    if isinstance(old, torch.Tensor) and old is not new and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class TapeRecorder:
    """`cuda_graph.Recorder` with a tape. A recording does nothing, as under CUDA: its effects are taken back."""

    def __init__(self, state):
        self.state = state  # a function that lists every tensor that a step changes
        self.recordings = 0
        self.tapes = []

    def warm_up(self, work):
        return work()

    def record(self, work):
        self.recordings += 1
        before = [(tensor, tensor.clone()) for tensor in self.state()]
        random = torch.get_rng_state()
        with Tape() as tape:
            results = work()
        self.tapes.append(tape)
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
        torch.set_rng_state(random)
        return tape.replay, tree_map_only(torch.Tensor, lambda tensor: tensor, results)

"""`torch.compile(model, backend="pggan_fast")`: the same patterns in the captured graph, the rest to Inductor."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from pggan_fast.dropin.rewrite import Options, Rewriter


def pggan_fast(graph_module: fx.GraphModule, example_inputs: Sequence[Any], **options: Any) -> Callable:
    """A backend of torch.compile. `options` go to Inductor.

    Differentiable once, as everything compiled is: a gradient penalty goes inside the compiled function.
    """
    from torch._inductor.compile_fx import compile_fx  # takes seconds to import

    Rewriter(graph_module.graph, Options(alone=False)).run()
    graph_module.recompile()
    return compile_fx(graph_module, list(example_inputs), config_patches=options.get("options"))

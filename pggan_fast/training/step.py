"""One training step: D, the average of G, then G. For the trainer, and for loops of one's own."""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from pggan_fast.networks import Discriminator, Generator
from pggan_fast.ops import kept_weights
from pggan_fast.reference import stddev_group
from pggan_fast.training.losses import OBJECTIVES, Scored, Stats

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class _Critic:
    """`losses.Critic` of a discriminator."""

    def __init__(self, D: Discriminator, alpha: float | Tensor, autocast: Callable[[], torch.autocast]):
        self.D, self.alpha, self.autocast = D, alpha, autocast

    def __call__(self, images: Tensor, labels: Tensor | None) -> Scored:
        with self.autocast():
            return self.D(images, labels, alpha=self.alpha)

    def pair(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> tuple[Scored, Scored]:
        """One call on both batches, ordered so that each stddev group holds what it would hold in two calls.

        Group m of M has samples m, m + M, ...: of twice the batch, with runs of M reals and M fakes in turn,
        group m has those reals and group M + m those fakes.
        """
        n, group_size = len(real), self.D.options["mbstd_group_size"]
        group = stddev_group(n, group_size)
        if stddev_group(2 * n, group_size) != group:
            return self(real, labels), self(fake, labels)

        def interleave(real: Tensor, fake: Tensor) -> Tensor:
            runs = (t.unflatten(0, (group, n // group)) for t in (real, fake))
            both = torch.stack(tuple(runs), dim=1).flatten(0, 2)
            return both.contiguous(memory_format=torch.channels_last) if both.ndim == 4 else both

        def separate(both: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
            if both is None:
                return None, None
            runs = both.unflatten(0, (group, 2, n // group))
            return runs[:, 0].flatten(0, 1), runs[:, 1].flatten(0, 1)

        scores, logits = self(interleave(real, fake), None if labels is None else interleave(labels, labels))
        return tuple(zip(separate(scores), separate(logits), strict=True))


class TrainStep:
    """Owns the optimizers and the moving average of G's weights.

    Args:
        G, D: moved to channels_last, in place.
        objective: "wgan-gp", or an object like `losses.WganGp`.
        learning_rate: of both Adam optimizers (betas 0 and 0.99, eps 1e-8; the official settings).
        ema_decay: weight of the past in `G_ema`, per step.
        precision: "fp32"; "bf16" or "fp16" compute under autocast with fp32 weights, fp16 with a dynamic loss scale.

    `step(real, labels=None, *, alpha=1.0)` takes images [N, C, r, r] in -1..1, already faded and mirrored,
    and returns detached scalars: d_loss, g_loss, real_score, fake_score, gradient_norm, and skipped, the number
    of optimizer steps (0 to 2) left out because a gradient was not finite. Nothing waits for the device.
    Latents come from torch's default generator of the device.
    """

    def __init__(
        self,
        G: Generator,
        D: Discriminator,
        *,
        objective: str = "wgan-gp",
        learning_rate: float = 1e-3,
        ema_decay: float = 0.999,
        precision: str = "fp32",
    ):
        if precision not in PRECISIONS:
            raise ValueError(f"precision is {precision!r}, allowed: {', '.join(PRECISIONS)}")
        if isinstance(objective, str) and objective not in OBJECTIVES:
            raise ValueError(f"objective is {objective!r}, allowed: {', '.join(OBJECTIVES)}")
        self.G = G.to(memory_format=torch.channels_last)
        self.D = D.to(memory_format=torch.channels_last)
        self.G_ema = copy.deepcopy(G).eval().requires_grad_(False)
        self.objective = OBJECTIVES[objective]() if isinstance(objective, str) else objective
        self.ema_decay, self.precision = ema_decay, precision
        self.device = next(G.parameters()).device
        # fused: one pass over all parameters instead of a dozen small ops for each.
        adam = dict(lr=learning_rate, betas=(0.0, 0.99), eps=1e-8, fused=True)
        self.optimizer_G = torch.optim.Adam(G.parameters(), **adam)
        self.optimizer_D = torch.optim.Adam(D.parameters(), **adam)
        # Only fp16 needs a loss scale; its value stays 1 otherwise.
        self.loss_scale = torch.full((), 65536.0 if precision == "fp16" else 1.0, device=self.device)
        self.good_steps = torch.zeros((), dtype=torch.int32, device=self.device)

    def __call__(self, real: Tensor, labels: Tensor | None = None, *, alpha: float | Tensor = 1.0) -> Stats:
        real = real.contiguous(memory_format=torch.channels_last)
        n, resolution = len(real), real.shape[-1]
        fading = isinstance(alpha, Tensor) or alpha != 1.0
        stats: Stats = {}

        def generate() -> Tensor:
            z = torch.randn(n, self.G.latent_dim, device=self.device)
            with self._autocast():
                return self.G(z, labels, resolution=resolution, alpha=alpha)

        critic = _Critic(self.D, alpha, self._autocast)
        with kept_weights() as forget:
            with torch.no_grad():
                fake = generate().to(real.dtype)
            mixing = torch.rand(n, 1, 1, 1, device=self.device)
            terms = self.objective.discriminator_terms(critic, real, fake, labels, mixing, stats)
            stats["d_loss"] = self._backward(terms)
            skipped = self._update(self.optimizer_D)
            forget(self.D.parameters())

            self._average(resolution, fading)

            self.D.requires_grad_(False)
            stats["g_loss"] = self._backward([self.objective.generator_loss(critic, generate(), labels)])
            self.D.requires_grad_(True)
            stats["skipped"] = skipped + self._update(self.optimizer_G)
        return stats

    def _autocast(self) -> torch.autocast:
        dtype = PRECISIONS[self.precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def _backward(self, terms: Iterable[Tensor]) -> Tensor:
        """Accumulates the gradients of the terms' sum and returns it."""
        total = torch.zeros((), device=self.device)
        for term in terms:
            (term * self.loss_scale if self.precision == "fp16" else term).backward()
            total += term.detach()
        return total

    def _update(self, optimizer: torch.optim.Adam) -> Tensor:
        """One optimizer step unless a gradient is not finite; returns whether it was left out, without asking."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        found = torch.zeros((), device=self.device)
        torch._amp_foreach_non_finite_check_and_unscale_(
            gradients, found, self.loss_scale.double().reciprocal().float()
        )
        optimizer.found_inf, optimizer.grad_scale = found, None
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if self.precision == "fp16":
            torch._amp_update_scale_(self.loss_scale, self.good_steps, found, 2.0, 0.5, 2000)
        return found

    @torch.no_grad()
    def _average(self, resolution: int, fading: bool) -> None:
        """G_ema follows G; layers that are not live have not moved."""
        averages = self.G_ema.live_parameters(resolution, fading)
        torch._foreach_lerp_(averages, self.G.live_parameters(resolution, fading), 1 - self.ema_decay)

    def set_learning_rate(self, learning_rate: float) -> None:
        for optimizer in (self.optimizer_G, self.optimizer_D):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate

    def reset_optimizers(self) -> None:
        """Drops Adam's state, as the official code does whenever the set of live layers changes."""
        self.optimizer_G.state.clear()
        self.optimizer_D.state.clear()

    def state_dict(self) -> dict:
        """Tensors and plain numbers, for `torch.load(weights_only=True)`."""
        return {
            "G": self.G.state_dict(),
            "D": self.D.state_dict(),
            "G_ema": self.G_ema.state_dict(),
            "optimizer_G": self.optimizer_G.state_dict(),
            "optimizer_D": self.optimizer_D.state_dict(),
            "loss_scale": self.loss_scale,
            "good_steps": self.good_steps,
        }

    def load_state_dict(self, state: dict) -> None:
        parts: dict[str, nn.Module | torch.optim.Optimizer] = {
            "G": self.G,
            "D": self.D,
            "G_ema": self.G_ema,
            "optimizer_G": self.optimizer_G,
            "optimizer_D": self.optimizer_D,
        }
        for name, part in parts.items():
            part.load_state_dict(state[name])
        self.loss_scale.copy_(state["loss_scale"])
        self.good_steps.copy_(state["good_steps"])

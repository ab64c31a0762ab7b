"""One training step: D, the average of G, then G. For the trainer, and for loops of one's own."""

import copy
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from pggan_fast.networks import AutoencoderDiscriminator, BaseDiscriminator, BaseGenerator
from pggan_fast.networks.base import Network
from pggan_fast.ops import cache_folded_weights
from pggan_fast.ops.bias_act import omit_zeros
from pggan_fast.reference import stddev_group
from pggan_fast.training.adam import MomentumFreeAdam
from pggan_fast.training.augment import AUGMENTS, AdaptiveAugment, DiffAugment
from pggan_fast.training.bound_discriminator import BoundDiscriminator
from pggan_fast.training.losses import OBJECTIVES, Ebgan, Objective, Stats
from pggan_fast.utils.batch_split import fewest_parts, keeps_groups, take
from pggan_fast.utils.distributed import Processes

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
COMPILED_STAGES = 64  # more than all resolutions, fading and stable, in training, in G's step and in sample grids


class TrainStep:
    """Owns the optimizers and the moving average of G's weights.

    Args:
        G, D: moved to channels_last, in place.
        objective: a name of `losses.OBJECTIVES`, or an object of such a class; "ebgan" needs an
            `AutoencoderDiscriminator`.
        learning_rate: of both Adam optimizers (betas 0 and 0.99, eps 1e-8; the official settings), or (G's, D's).
        d_steps: steps of D for each of G. A call then takes as many batches, one after the other.
        augment: "diffaugment", "ada" or an object of `augment.AUGMENTS`, of what D sees; None for nothing.
        ema_decay: weight of the past in `G_ema`, per step.
        precision: "fp32"; "bf16" or "fp16" compute under autocast with fp32 weights, fp16 with a dynamic loss scale.
        micro_batch: most samples that go through the networks at once; the gradients of a batch's parts add up. Parts
            of whole minibatch-stddev groups give what the whole batch gives, to rounding; a warning says when they
            cannot be.
        activation_checkpointing: G and D keep only what enters a block for their backward passes, which compute the
            rest again: less memory, more time, the same numbers.
        compile: G and D through torch.compile, once per stage. The gradient penalty still runs op by op: torch cannot
            differentiate a compiled backward.
        processes: those that train together, see `distributed`. Each gets its part of the batch, as `batch_split.take`
            cuts it, and all have the same random state; they compute what one process would of the whole batch.

    `step(real, labels=None, *, alpha=1.0)` takes images [d_steps * N, C, H, W] in -1..1, already faded and mirrored,
    and returns detached scalars, of the last of D's steps where there are several: d_loss, g_loss, real_score,
    fake_score; gradient_norm, real_gradient_norm, overfitting and augment_p where these exist; and skipped, the number
    of optimizer steps (0 to d_steps + 1) left out because the loss or a gradient was not finite. Nothing waits for the
    device.
    `bad_steps` (int32, on the device) counts the steps since the last one in which nothing was left out.
    Latents come from torch's default generator of the device.
    """

    def __init__(
        self,
        G: BaseGenerator,
        D: BaseDiscriminator,
        *,
        objective: str | Objective = "wgan-gp",
        learning_rate: float | tuple[float, float] = 1e-3,
        d_steps: int = 1,
        augment: str | DiffAugment | AdaptiveAugment | None = None,
        ema_decay: float = 0.999,
        precision: str = "fp32",
        micro_batch: int | None = None,
        activation_checkpointing: bool = False,
        compile: bool = False,
        processes: Processes = Processes(),  # noqa: B008 - frozen
    ):
        if precision not in PRECISIONS:
            raise ValueError(f"precision is {precision!r}, allowed: {', '.join(PRECISIONS)}")
        if isinstance(objective, str) and objective not in OBJECTIVES:
            raise ValueError(f"objective is {objective!r}, allowed: {', '.join(OBJECTIVES)}")
        if isinstance(augment, str) and augment not in AUGMENTS:
            raise ValueError(f"augment is {augment!r}, allowed: {', '.join(AUGMENTS)}")
        if d_steps < 1:
            raise ValueError(f"d_steps is {d_steps}, must be 1 or more")
        if compile and activation_checkpointing:
            raise ValueError("compile and activation_checkpointing are both True: torch cannot compile the latter")
        if activation_checkpointing and any(net.options.get("spectral_norm") for net in (G, D)):
            raise ValueError("activation_checkpointing is True: not with spectral_norm, which each pass would move on")
        self.G = G.to(memory_format=torch.channels_last)
        self.D = D.to(memory_format=torch.channels_last)
        self.G_ema = copy.deepcopy(G).eval().requires_grad_(False)
        self.objective = OBJECTIVES[objective]() if isinstance(objective, str) else objective
        if isinstance(self.objective, Ebgan) and not isinstance(D, AutoencoderDiscriminator):
            raise ValueError(f"objective is ebgan, so D must be an AutoencoderDiscriminator, is a {type(D).__name__}")
        self.ema_decay, self.precision, self.d_steps = ema_decay, precision, d_steps
        self.micro_batch, self.processes = micro_batch, processes
        self.device = next(G.parameters()).device
        self.augment = AUGMENTS[augment]() if isinstance(augment, str) else augment
        if self.augment is not None:
            self.augment.to(self.device)
        self.objective.reports_overfitting = isinstance(self.augment, AdaptiveAugment)
        for module in (*G.modules(), *D.modules()):
            if isinstance(module, Network):
                module.activation_checkpointing = activation_checkpointing
        self.run_G, self.run_D = (_compiled(network) if compile else network for network in (G, D))

        def adam(network: nn.Module, learning_rate: float) -> MomentumFreeAdam:
            return MomentumFreeAdam(network.parameters(), torch.full((), learning_rate, device=self.device))

        g_rate, d_rate = learning_rate if isinstance(learning_rate, tuple) else (learning_rate, learning_rate)
        self.optimizer_G, self.optimizer_D = adam(G, g_rate), adam(D, d_rate)
        # Only fp16 needs a loss scale; its value stays 1 otherwise.
        self.loss_scale = torch.full((), 65536.0 if precision == "fp16" else 1.0, device=self.device)
        self.good_steps = torch.zeros((), dtype=torch.int32, device=self.device)
        self.bad_steps = torch.zeros((), dtype=torch.int32, device=self.device)

    def __call__(self, real: Tensor, labels: Tensor | None = None, *, alpha: float | Tensor = 1.0) -> Stats:
        if len(real) % self.d_steps:
            raise ValueError(f"real has {len(real)} images, must be a multiple of d_steps={self.d_steps}")
        n, resolution = len(real) // self.d_steps, min(real.shape[-2:])
        fading = isinstance(alpha, Tensor) or alpha != 1.0
        scale = self.loss_scale if self.precision == "fp16" else None
        critic = BoundDiscriminator(self.D, self.run_D, alpha, self._autocast, scale)
        stats: Stats = {}

        def generate(z: Tensor, labels: Tensor | None) -> Tensor:
            with self._autocast():
                return self.run_G(z, labels, resolution=resolution, alpha=alpha)

        def discriminator_terms(
            real: Tensor, labels: Tensor | None, noise: Tensor | None, z: Tensor, interpolation: Tensor
        ) -> Iterable[Tensor]:
            with torch.no_grad():
                fake = generate(z, labels).to(real.dtype)
                if noise is not None:
                    of_real, of_fake = noise.chunk(2, dim=1)
                    real, fake = (
                        _channels_last(self.augment(real, of_real)),
                        _channels_last(self.augment(fake, of_fake)),
                    )
            return self.objective.discriminator_terms(critic, real, fake, labels, interpolation, stats)

        def generator_terms(labels: Tensor | None, noise: Tensor | None, z: Tensor) -> Iterable[Tensor]:
            fake = generate(z, labels)
            if noise is not None:
                fake = _channels_last(self.augment(fake.to(real.dtype), noise))
            yield self.objective.generator_loss(critic, fake, labels)

        batches = [(real, labels)]
        if self.d_steps > 1:
            parts = (None,) * self.d_steps if labels is None else labels.split(n)
            batches = list(zip(real.split(n), parts, strict=True))
        with omit_zeros(), cache_folded_weights() as invalidate:
            skipped = torch.zeros((), device=self.device)
            for reals, labels in batches:
                z, interpolation = self._draw(torch.randn, n, self.G.latent_dim), self._draw(torch.rand, n, 1, 1, 1)
                noise = self._augment_noise(n, images=2)
                loss = self._backward(
                    self.optimizer_D, discriminator_terms, stats, reals, labels, noise, z, interpolation
                )
                skipped += self._update(self.optimizer_D, loss, stats)
                stats["d_loss"] = loss
                self.objective.constrain(self.D)
                invalidate(self.D.parameters())
                self._adapt(stats, n)

            self._average(resolution, fading)

            self.D.requires_grad_(False)
            noise, z = self._augment_noise(n), self._draw(torch.randn, n, self.G.latent_dim)
            stats["g_loss"] = self._backward(self.optimizer_G, generator_terms, {}, labels, noise, z)
            self.D.requires_grad_(True)
            stats["skipped"] = skipped + self._update(self.optimizer_G, stats["g_loss"], {})
        self.bad_steps.add_(1).mul_(stats["skipped"] > 0)
        return stats

    def _autocast(self) -> torch.autocast:
        dtype = PRECISIONS[self.precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def _draw(self, random: Callable[..., Tensor], n: int, *shape: int) -> Tensor:
        """Return random numbers [n, *shape], this process's part of those of the whole batch."""
        rank, count = self.processes.rank, self.processes.count
        whole = random(n * count, *shape, device=self.device)
        return take(whole, rank, count, stddev_group(n * count, self.D.mbstd_group_size))

    def _augment_noise(self, n: int, images: int = 1) -> Tensor | None:
        """Return the random numbers that augmenting `images` images for each of n samples takes."""
        return None if self.augment is None else self._draw(torch.rand, n, images * self.augment.draws)

    def _adapt(self, stats: Stats, n: int) -> None:
        """Tell an adaptive augmentation how D does on its reals."""
        if self.objective.reports_overfitting:
            self.augment.update(stats["overfitting"], n * self.processes.count)
            stats["augment_p"] = self.augment.p.clone()

    def _backward(
        self, optimizer: MomentumFreeAdam, terms: Callable[..., Iterable[Tensor]], stats: Stats, *batch: Tensor | None
    ) -> Tensor:
        """Add up the gradients of the mean, over the batch's parts, of the sum of `terms(*part)`. Return that mean.

        Those of the optimizer's parameters alone, not of the images that a penalty is taken at.
        The values that `terms` leaves in `stats` become their means too.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        count, group = self._parts(len(batch[-1]))
        total, sums = torch.zeros((), device=self.device), {}
        for index in range(count):
            part = [None if tensor is None else _channels_last(take(tensor, index, count, group)) for tensor in batch]
            for term in terms(*part):
                term = term / count if count > 1 else term
                (term * self.loss_scale if self.precision == "fp16" else term).backward(inputs=parameters)
                total += term.detach()
            if count > 1:
                sums = {name: sums.get(name, 0) + value / count for name, value in stats.items()}
        stats.update(sums)
        return total

    def _parts(self, n: int) -> tuple[int, int]:
        """Return in how many parts a batch of n goes through the networks, and the size of its stddev groups."""
        group = stddev_group(n, self.D.mbstd_group_size)
        if self.micro_batch is None or n <= self.micro_batch:
            return 1, group
        count = fewest_parts(n, self.micro_batch, group)
        split = None if keeps_groups(n, count, group) else f"the groups of {group} of the minibatch standard deviation"
        split = "the batch that minibatch discrimination compares" if self.D.sees_minibatch else split
        if split is not None:
            warnings.warn(
                f"a batch of {n} in parts of {n // count} splits {split}: results differ from those of the whole batch",
                stacklevel=3,
            )
        return count, group

    def _update(self, optimizer: MomentumFreeAdam, loss: Tensor, stats: Stats) -> Tensor:
        """Take one optimizer step with the gradients' mean over the processes; leave them at None.

        `loss` and `stats` become their means over the processes in the same reduction.
        It is left out if the loss or a gradient is not finite, in all processes or none. Returns whether it was,
        without asking the device.
        """
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.processes.average_([*gradients, loss, *stats.values()])
        if self.precision == "fp16":
            found = (~loss.isfinite()).float()
            scale = self.loss_scale.double().reciprocal().float()
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, scale)
        else:
            # The largest of each, which only reads them.
            largest = torch.stack([loss.abs(), *torch._foreach_norm(gradients, float("inf"))]).amax()
            found = (~largest.isfinite()).float()
        optimizer.step(skipped=found)
        optimizer.zero_grad(set_to_none=True)
        if self.precision == "fp16":
            torch._amp_update_scale_(self.loss_scale, self.good_steps, found, 2.0, 0.5, 2000)
        return found

    @torch.no_grad()
    def _average(self, resolution: int, fading: bool) -> None:
        """Move G_ema towards G; inactive layers have not changed."""
        averages = self.G_ema.active_parameters(resolution, fading)
        torch._foreach_lerp_(averages, self.G.active_parameters(resolution, fading), 1 - self.ema_decay)
        for average, buffer in zip(self.G_ema.buffers(), self.G.buffers(), strict=True):
            average.copy_(buffer)  # the singular vectors of spectral norm

    def set_learning_rate(self, learning_rate: float, d_learning_rate: float | None = None) -> None:
        """Set the rate of both optimizers, or of G's and D's."""
        d_learning_rate = learning_rate if d_learning_rate is None else d_learning_rate
        for optimizer, rate in ((self.optimizer_G, learning_rate), (self.optimizer_D, d_learning_rate)):
            for group in optimizer.param_groups:
                group["lr"].fill_(rate)

    def reset_optimizers(self) -> None:
        """Drop Adam's state, as the official code does whenever the set of active layers changes."""
        self.optimizer_G.state.clear()
        self.optimizer_D.state.clear()

    def state_dict(self) -> dict:
        """Return tensors and plain numbers, for `torch.load(weights_only=True)`."""
        return {
            **{name: part.state_dict() for name, part in self._modules().items()},
            **{name: part.state_dict() for name, part in self._optimizers().items()},
            **self._counters(),
            "precision": self.precision,
        }

    def load_state_dict(self, state: dict) -> None:
        """Load a state. Raises RuntimeError if it is of networks with other shapes. The precision may have changed."""
        for name, module in self._modules().items():
            module.load_state_dict(state[name])
        for name, optimizer in self._optimizers().items():
            rates = [group["lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(state[name])
            # torch takes the loaded tensors themselves; a captured step knows ours.
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate.copy_(group["lr"])
        for name, counter in self._counters().items():
            if name == "bad_steps" or state["precision"] == self.precision:  # another one finds its own scale
                counter.copy_(state[name])

    def _modules(self) -> dict[str, nn.Module]:
        modules = {"G": self.G, "D": self.D, "G_ema": self.G_ema}
        return modules if self.augment is None else {**modules, "augment": self.augment}

    def _optimizers(self) -> dict[str, MomentumFreeAdam]:
        return {"optimizer_G": self.optimizer_G, "optimizer_D": self.optimizer_D}

    def _counters(self) -> dict[str, Tensor]:
        return {"loss_scale": self.loss_scale, "good_steps": self.good_steps, "bad_steps": self.bad_steps}


def _compiled(network: nn.Module) -> nn.Module:
    # Each resolution, fading and not, is a graph of its own; torch falls back to running op by op at its limit.
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, COMPILED_STAGES)
    return torch.compile(network, dynamic=False)


def _channels_last(part: Tensor) -> Tensor:
    return part.contiguous(memory_format=torch.channels_last) if part.ndim == 4 else part

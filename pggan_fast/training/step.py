"""One training step: D, the average of G, then G. For the trainer, and for loops of one's own."""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from pggan_fast.networks import AutoencoderDiscriminator, BaseDiscriminator, BaseGenerator
from pggan_fast.networks.base import Network
from pggan_fast.networks.inputs import check_images
from pggan_fast.ops import cache_folded_weights
from pggan_fast.ops.bias_act import omit_zeros
from pggan_fast.reference import stddev_group
from pggan_fast.training.adam import Adam
from pggan_fast.training.augment import AUGMENTS, AdaptiveAugment, DiffAugment
from pggan_fast.training.average import follow
from pggan_fast.training.bound_discriminator import BoundDiscriminator
from pggan_fast.training.gradients import add_gradients, channels_last, count_parts
from pggan_fast.training.losses import OBJECTIVES, Ebgan, Objective
from pggan_fast.training.penalties import Augmented, Stats
from pggan_fast.training.precision import PRECISIONS, resolve_precision
from pggan_fast.utils.batch_split import take
from pggan_fast.utils.device import wide_dtype
from pggan_fast.utils.distributed import Processes

PENALTY_ON = ("augmented", "raw")
COMPILED_STAGES = 64  # more than all resolutions, fading and stable, in training, in G's step and in sample grids


class TrainStep:
    """Owns the optimizers and the moving average of G's weights.

    Args:
        G, D: moved to channels_last, in place.
        objective: a name of `losses.OBJECTIVES`, or an object of such a class; "ebgan" needs an
            `AutoencoderDiscriminator`.
        learning_rate: of both Adam optimizers, or (G's, D's).
        betas, eps, eps_place: of both, see `adam.Adam`; the official settings are the default.
        d_steps: steps of D for each of G. A call then takes as many batches, one after the other.
        penalty_every: steps of D from one with penalties on gradients to the next. Above 1 they get an update of their
            own after D's, with N times their weight, and D's rate and betas change by N / (N + 1) (lazy
            regularization: Karras et al. 2020, "Analyzing and improving", appendix B).
        penalty_on: "augmented" images, which D sees, or "raw" ones: then the gradient goes through the augmentation.
        augment: "diffaugment", "ada" or an object of `augment.AUGMENTS`, of what D sees; None for nothing.
        ema_decay: weight of the past in `G_ema`, per step; see `average.decay_of` for half-lives.
        precision: "fp32"; "bf16" or "fp16" compute under autocast with fp32 weights, fp16 with a dynamic loss scale;
            "auto" is bf16 where the device has instructions for it, else fp32.
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
    fake_score; gradient_norm, real_gradient_norm, fake_gradient_norm, overfitting and augment_p where these exist;
    penalty, where it has an update of its own (d_loss leaves it out); and skipped, the number of updates left out since
    the loss or a gradient was not finite. Nothing waits for the device.
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
        betas: tuple[float, float] = (0.0, 0.99),
        eps: float = 1e-8,
        eps_place: str = "corrected",
        d_steps: int = 1,
        penalty_every: int = 1,
        penalty_on: str = "augmented",
        augment: str | DiffAugment | AdaptiveAugment | None = None,
        ema_decay: float = 0.999,
        precision: str = "fp32",
        micro_batch: int | None = None,
        activation_checkpointing: bool = False,
        compile: bool = False,
        processes: Processes = Processes(),  # noqa: B008 - frozen
    ):
        self.device = next(G.parameters()).device
        precision = resolve_precision(precision, self.device)
        if isinstance(objective, str) and objective not in OBJECTIVES:
            raise ValueError(f"objective is {objective!r}, allowed: {', '.join(OBJECTIVES)}")
        if isinstance(augment, str) and augment not in AUGMENTS:
            raise ValueError(f"augment is {augment!r}, allowed: {', '.join(AUGMENTS)}")
        if min(d_steps, penalty_every) < 1:
            name, value = ("d_steps", d_steps) if d_steps < 1 else ("penalty_every", penalty_every)
            raise ValueError(f"{name} is {value}, must be 1 or more")
        if penalty_on not in PENALTY_ON:
            raise ValueError(f"penalty_on is {penalty_on!r}, allowed: {', '.join(PENALTY_ON)}")
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
        self.ema_decay: float | Tensor = ema_decay
        self.precision, self.d_steps = precision, d_steps
        self.penalty_every, self.penalty_on = penalty_every, penalty_on
        self.d_updates = 0  # since the start, those for penalties alone not counted
        self.micro_batch, self.processes = micro_batch, processes
        self.augment = AUGMENTS[augment]() if isinstance(augment, str) else augment
        if self.augment is not None:
            self.augment.to(self.device)
        for name in ("r1_weight", "r2_weight"):
            if isinstance(weight := getattr(self.objective, name), Tensor):
                setattr(self.objective, name, weight.to(self.device))
        self.objective.reports_overfitting = isinstance(self.augment, AdaptiveAugment) and self.augment.adapts
        for module in (*G.modules(), *D.modules()):
            if isinstance(module, Network):
                module.activation_checkpointing = activation_checkpointing
        self.run_G, self.run_D = (_compiled(network) if compile else network for network in (G, D))

        self.lazy = penalty_every > 1 and self.objective.penalizes  # penalties have updates of their own
        self._d_share = penalty_every / (penalty_every + 1) if self.lazy else 1.0  # of rate and betas, for D

        def adam(network: nn.Module, learning_rate: float, share: float) -> Adam:
            rate = torch.full((), learning_rate * share, device=self.device)
            beta1, beta2 = (beta**share for beta in betas)
            return Adam(network.parameters(), rate, beta1=beta1, beta2=beta2, eps=eps, eps_place=eps_place)

        g_rate, d_rate = learning_rate if isinstance(learning_rate, tuple) else (learning_rate, learning_rate)
        self.optimizer_G, self.optimizer_D = adam(G, g_rate, 1.0), adam(D, d_rate, self._d_share)
        # Only fp16 needs a loss scale; its value stays 1 otherwise.
        self.loss_scale = torch.full((), 65536.0 if precision == "fp16" else 1.0, device=self.device)
        self.good_steps = torch.zeros((), dtype=torch.int32, device=self.device)
        self.bad_steps = torch.zeros((), dtype=torch.int32, device=self.device)

    def __call__(self, real: Tensor, labels: Tensor | None = None, *, alpha: float | Tensor = 1.0) -> Stats:
        return self.run(real, labels, alpha=alpha, penalties=self.next_penalties())

    def next_penalties(self) -> tuple[bool, ...]:
        """Count the next call's steps of D; return for each whether an update for the penalties alone follows it."""
        steps = range(self.d_updates, self.d_updates + self.d_steps)
        self.d_updates = steps.stop
        return tuple(self.lazy and index % self.penalty_every == 0 for index in steps)

    def run(self, real: Tensor, labels: Tensor | None, *, alpha: float | Tensor, penalties: tuple[bool, ...]) -> Stats:
        """Do all that a call does on the device; it may be recorded once and replayed."""
        if len(real) % self.d_steps or not len(real):
            raise ValueError(f"real has {len(real)} images, must be a multiple of d_steps={self.d_steps}, not 0")
        check_images(real)
        n, resolution = len(real) // self.d_steps, min(real.shape[-2:])
        fading = isinstance(alpha, Tensor) or alpha != 1.0
        scale = self.loss_scale if self.precision == "fp16" else None
        critic = BoundDiscriminator(self.D, self.run_D, alpha, self._autocast, scale)
        objective, stats, penalty_stats, dtype = self.objective, {}, {}, real.dtype

        def generate(z: Tensor, labels: Tensor | None) -> Tensor:
            with self._autocast():
                return self.run_G(z, labels, resolution=resolution, alpha=alpha)

        def images_for_D(
            real: Tensor, labels: Tensor | None, noise: Tensor | None, z: Tensor
        ) -> tuple[Tensor, Tensor, tuple]:
            """Return reals, fakes and, where penalties are on raw images, the augmentation that is left to do."""
            with torch.no_grad():
                fake = generate(z, labels).to(dtype)
                if noise is None:
                    return real, fake, ()
                augment = self._augmentations(noise, 2)
                if self.penalty_on == "raw":
                    return real, fake, (augment,)
                return augment[0](real), augment[1](fake), ()

        def discriminator_terms(real, labels, noise, z, interpolation) -> Iterable[Tensor]:
            real, fake, augment = images_for_D(real, labels, noise, z)
            if self.lazy:
                return objective.score_terms(critic, real, fake, labels, stats, *augment)
            return objective.discriminator_terms(critic, real, fake, labels, interpolation, stats, *augment)

        def penalty_terms(real, labels, noise, z, interpolation) -> Iterable[Tensor]:
            real, fake, augment = images_for_D(real, labels, noise, z)
            terms = objective.penalty_terms(critic, real, fake, labels, interpolation, penalty_stats, *augment)
            return (term * self.penalty_every for term in terms)

        def generator_terms(real, labels, noise, z) -> Iterable[Tensor]:
            fake = generate(z, labels)
            if noise is not None:
                *of_real, of_fake = self._augmentations(noise, 1 + objective.compares)
                fake = of_fake(fake.to(dtype))
                real = of_real[0](real) if of_real else real
            return objective.generator_terms(critic, real, fake, labels, {})

        batches = [(real, labels)]
        if self.d_steps > 1:
            parts = (None,) * self.d_steps if labels is None else labels.split(n)
            batches = list(zip(real.split(n), parts, strict=True))
        with omit_zeros(), cache_folded_weights() as invalidate:
            skipped = torch.zeros((), device=self.device)

            def update_D(terms: Callable[..., Iterable[Tensor]], stats: Stats, *batch: Tensor | None) -> Tensor:
                nonlocal skipped
                loss = self._backward(self.optimizer_D, terms, stats, *batch)
                skipped += self._update(self.optimizer_D, loss, stats)
                objective.constrain(self.D)
                invalidate(self.optimizer_D.parameters)
                return loss

            for (reals, labels), penalty_due in zip(batches, penalties, strict=True):
                z, interpolation = self._draw(torch.randn, n, self.G.latent_dim), self._draw(torch.rand, n, 1, 1, 1)
                noise = self._augment_noise(n, images=2)
                batch = (reals, labels, noise, z, interpolation)
                stats["d_loss"] = update_D(discriminator_terms, stats, *batch)
                if penalty_due:
                    penalty = update_D(penalty_terms, penalty_stats, *batch)
                    stats |= {**penalty_stats, "penalty": penalty / self.penalty_every}
                self._adapt(stats, n)

            self._average(resolution, fading)

            self.D.requires_grad_(False)
            noise = self._augment_noise(n, images=1 + objective.compares)
            z = self._draw(torch.randn, n, self.G.latent_dim)
            reals = reals if objective.compares else None
            stats["g_loss"] = self._backward(self.optimizer_G, generator_terms, {}, reals, labels, noise, z)
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

    def _augmentations(self, noise: Tensor, count: int) -> tuple[Augmented, ...]:
        """Return one augmentation of images for each of `count` parts of the random numbers [N, count * draws]."""

        def of(uniform: Tensor) -> Augmented:
            return lambda images: channels_last(self.augment(images, uniform))

        return tuple(of(uniform) for uniform in noise.chunk(count, dim=1))

    def _adapt(self, stats: Stats, n: int) -> None:
        """Tell an adaptive augmentation how D does on its reals."""
        if self.objective.reports_overfitting:
            self.augment.update(stats["overfitting"], n * self.processes.count)
            stats["augment_p"] = self.augment.p.clone()

    def _backward(
        self, optimizer: Adam, terms: Callable[..., Iterable[Tensor]], stats: Stats, *batch: Tensor | None
    ) -> Tensor:
        """Add up the gradients of the optimizer's parameters, part by part. Return the mean loss."""
        n = len(batch[-1])
        group = stddev_group(n, self.D.mbstd_group_size)
        return add_gradients(
            [p for p in optimizer.parameters if p.requires_grad],
            terms,
            batch,
            stats,
            parts=count_parts(n, self.micro_batch, group, sees_minibatch=self.D.sees_minibatch),
            group=group,
            loss_scale=self.loss_scale if self.precision == "fp16" else None,
        )

    def _update(self, optimizer: Adam, loss: Tensor, stats: Stats) -> Tensor:
        """Take one optimizer step with the gradients' mean over the processes; leave them at None.

        `loss` and `stats` become their means over the processes in the same reduction. The step is left out if the
        loss or a gradient is not finite, in all processes or none. Returns whether it was, without asking the device.
        """
        gradients = [p.grad for p in optimizer.parameters if p.grad is not None]
        self.processes.average_([*gradients, loss, *stats.values()])
        if self.precision == "fp16":
            found = (~loss.isfinite()).float()
            scale = self.loss_scale.to(wide_dtype(loss.device)).reciprocal().float()
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, scale)
        else:
            # What tells it while only reading them. On a CPU the norm takes 25 to 55 times as long as a sum, which
            # overflows where Adam's squares long have.
            sums = [g.sum() for g in gradients] if loss.is_cpu else torch._foreach_norm(gradients, float("inf"))
            found = (~torch.stack([loss, *sums]).isfinite().all()).float()
        optimizer.step(skipped=found)
        optimizer.zero_grad(set_to_none=True)
        if self.precision == "fp16":
            torch._amp_update_scale_(self.loss_scale, self.good_steps, found, 2.0, 0.5, 2000)
        return found

    @torch.no_grad()
    def _average(self, resolution: int, fading: bool) -> None:
        """Move G_ema towards G; inactive layers have not changed."""
        active = (network.active_parameters(resolution, fading) for network in (self.G_ema, self.G))
        follow(*active, self.ema_decay)
        for average, buffer in zip(self.G_ema.buffers(), self.G.buffers(), strict=True):
            average.copy_(buffer)  # the singular vectors of spectral norm

    def set_learning_rate(self, learning_rate: float, d_learning_rate: float | None = None) -> None:
        """Set the rate of both optimizers, or of G's and D's."""
        d_learning_rate = learning_rate if d_learning_rate is None else d_learning_rate
        for optimizer, rate in ((self.optimizer_G, learning_rate), (self.optimizer_D, d_learning_rate * self._d_share)):
            for group in optimizer.param_groups:
                group["lr"].fill_(rate)

    def set_hyperparameters(
        self,
        *,
        beta2: float | None = None,
        r1_weight: float | None = None,
        r2_weight: float | None = None,
        ema_decay: float | None = None,
        augment_p: float | None = None,
    ) -> None:
        """Set what a schedule changes from step to step; None leaves a value alone.

        What is set once lives on the device from then on, so that a captured step reads it: set it before the first
        step. `augment_p` is the probability of an `AdaptiveAugment` that was made to keep it.
        """
        if beta2 is not None:
            for optimizer, share in ((self.optimizer_G, 1.0), (self.optimizer_D, self._d_share)):
                for group in optimizer.param_groups:
                    beta1, old = group["betas"]
                    group["betas"] = beta1, self._on_device(old, beta2**share)
        for name, value in (("r1_weight", r1_weight), ("r2_weight", r2_weight)):
            if value is not None:
                setattr(self.objective, name, self._on_device(getattr(self.objective, name), value))
        if ema_decay is not None:
            self.ema_decay = self._on_device(self.ema_decay, ema_decay)
        if augment_p is not None:
            self.augment.p.fill_(augment_p)

    def _on_device(self, old: float | Tensor, value: float) -> Tensor:
        """Return a 0-d tensor of `value` on the device: `old` itself, if that is one."""
        on_device = isinstance(old, Tensor) and old.device == self.device
        return old.fill_(value) if on_device else torch.full((), value, device=self.device)

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
            "d_updates": self.d_updates,
            "precision": self.precision,
        }

    def load_state_dict(self, state: dict) -> None:
        """Load a state. Raises RuntimeError if it is of networks with other shapes. The precision may have changed."""
        for name, module in self._modules().items():
            module.load_state_dict(state[name])
        for name, optimizer in self._optimizers().items():
            before = [(group["lr"], group["betas"][1]) for group in optimizer.param_groups]
            optimizer.load_state_dict(state[name])
            # torch takes the loaded tensors themselves; a captured step knows ours.
            for group, (rate, old) in zip(optimizer.param_groups, before, strict=True):
                group["lr"] = rate.copy_(group["lr"])
                beta1, beta2 = group["betas"]
                group["betas"] = beta1, old.fill_(beta2) if isinstance(old, Tensor) else beta2
        self.d_updates = state.get("d_updates", 0)
        for name, counter in self._counters().items():
            if name == "bad_steps" or state["precision"] == self.precision:  # another one finds its own scale
                counter.copy_(state[name])

    def _modules(self) -> dict[str, nn.Module]:
        modules = {"G": self.G, "D": self.D, "G_ema": self.G_ema}
        return modules if self.augment is None else {**modules, "augment": self.augment}

    def _optimizers(self) -> dict[str, Adam]:
        return {"optimizer_G": self.optimizer_G, "optimizer_D": self.optimizer_D}

    def _counters(self) -> dict[str, Tensor]:
        return {"loss_scale": self.loss_scale, "good_steps": self.good_steps, "bad_steps": self.bad_steps}


def _compiled(network: nn.Module) -> nn.Module:
    # Each resolution, fading and not, is a graph of its own; torch falls back to running op by op at its limit.
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, COMPILED_STAGES)
    return torch.compile(network, dynamic=False)

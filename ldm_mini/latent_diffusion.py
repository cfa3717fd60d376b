"""Diffusion in the latent space of a frozen autoencoder (LDM sec. 3): put together by constructor argument, trained by
`loss`, used by `sample`, kept by `save_pretrained` and `from_pretrained`. Built in notebook 09."""

import math
import warnings
from contextlib import contextmanager
from inspect import unwrap
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from . import hub
from .asked import check_first_stage, not_read, pair, sides_of, whole
from .cond import Cond, Conditioner, NotRead, batch_size, to_device
from .diffusion import PREDICTIONS, diffusion_loss, draw_noise, draw_timesteps, generators, make_denoiser
from .samplers import SAMPLERS
from .tasks import TEXT_GUIDANCE
from .weights import SHARD_BYTES


class LatentDiffusion(nn.Module):
    """A first stage, a network on its latents, a noise schedule and, if there is one, a conditioner.

    autoencoder:  encode(x, sample) -> z, decode(z) -> x, a config with latent_channels and downsample_factor;
                  frozen here. None = no first stage: diffusion on pixels (LDM-1).
    net:          net(x_t (B,C,h,w), t (B,), cond) -> (B,C,h,w).
    conditioner:  a `Conditioner`: encode(batch) -> Cond and null(batch) -> Cond; None = unconditional.
    prediction:   what the net predicts: "eps", "x0", "v" or "u".
    p_uncond:     how often a sample's whole condition is dropped in training, which is what guidance needs.
    scale_factor: multiplies the latents, so that they have unit variance: see `latent_scale`.
    image_size:   (height, width) that `sample` makes; None = that of the first images it is trained on.
    """

    def __init__(self, autoencoder, net, schedule, conditioner=None, prediction: str = "eps", p_uncond: float = 0.1,
                 scale_factor: float = 1.0, image_size=None):
        super().__init__()
        # a schedule adds noise, a first stage decodes, a network does neither
        if not (hasattr(schedule, "add_noise") and (autoencoder is None or hasattr(autoencoder, "decode"))) or (
                hasattr(net, "add_noise") or hasattr(net, "decode") or isinstance(net, Conditioner)) or (
                not callable(net) or conditioner is not None and not hasattr(conditioner, "null")):
            got = ", ".join(type(part).__name__ for part in (autoencoder, net, schedule, conditioner))
            raise ValueError(f"LatentDiffusion(autoencoder, net, schedule, conditioner) in this order; got {got}.")
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction must be one of {PREDICTIONS}, got {prediction!r}.")
        if not (0 <= p_uncond < 1 and 0 < scale_factor < math.inf):
            raise ValueError(f"p_uncond is a probability below 1, got {p_uncond}; scale_factor is positive, got "
                             f"{scale_factor}: measure it with latent_scale.")
        made, read = (getattr(getattr(part, "config", None), name, None)
                      for part, name in ((autoencoder, "latent_channels"), (net, "in_channels")))
        if None not in (made, read) and made != read:
            raise ValueError(f"the first stage makes latents of {made} channels, and the network reads {read}: make "
                             "their configs agree.")
        self.autoencoder, self.net, self.schedule, self.conditioner = autoencoder, net, schedule, conditioner
        self.prediction, self.p_uncond = prediction, p_uncond
        self.image_size = None if image_size is None else pair(image_size)
        self.register_buffer("scale_factor", torch.tensor(float(scale_factor)))
        if autoencoder is not None:
            autoencoder.requires_grad_(False).eval()
        if conditioner is not None:
            conditioner.use_first_stage(autoencoder)

    def loss(self, batch: dict, t_power: float = 1.0) -> Tensor:
        """The training loss of a batch, a scalar (LDM eq. 2, eq. 3 with a conditioner).

        batch: "image" (B,3,H,W) in [-1,1], or "latent" (B,C,h,w), which is what autoencoder.encode gave (raw: it is
        scaled here) and saves the encoder's time; and whatever the conditioner reads.
        t_power: above 1, high noise is drawn more often than low (`draw_timesteps`): there, places are decided.
        All randomness is torch's own: `with seeded(0): ldm.loss(batch)` of `train` repeats it.
        """
        batch = to_device(batch, self.device)
        # z0: the picture's latent, scaled to unit variance (app. G)
        z0 = self.clean_latent(batch)
        # as large as the first pictures it learns from will be those it makes
        if self.image_size is None:
            self.image_size = tuple(side * self._factor for side in z0.shape[-2:])
        # what is known of each picture; some samples hear of nothing, in all parts at once: guidance needs it later
        cond = Cond() if self.conditioner is None else self.conditioner.encode(batch)
        if self.conditioner is not None and self.p_uncond:
            keep = torch.rand(batch_size(batch), device=self.device) >= self.p_uncond
            cond = cond.where(keep, self.conditioner.null(batch))
        # a noise level for each sample, and how wrong the network is there (eq. 2, 3)
        t = draw_timesteps(self.schedule, len(z0), z0.device, power=t_power)
        return diffusion_loss(self.net, self.schedule, z0, cond, self.prediction, t, self.noise(z0))

    forward = loss  # what DistributedDataParallel calls

    def clean_latent(self, batch: dict) -> Tensor:
        """The scaled latents z0 (B,C,h,w) of a batch's "latent", else of its "image". ValueError without either."""
        if "latent" in batch:
            return batch["latent"] * self.scale_factor
        if "image" in batch:
            return self.encode(batch["image"], sample=True)
        raise ValueError(f'a batch needs "image" or "latent", this one has {sorted(batch)}.')

    def noise(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal noise, as training adds it and `sample` begins with it."""
        return draw_noise(like, generator)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Those of the network and the conditioner; the first stage's are frozen."""
        return [p for p in self.parameters() if p.requires_grad]

    def train(self, mode: bool = True) -> "LatentDiffusion":
        """As always, but the first stage stays in evaluation mode: it is finished."""
        super().train(mode)
        if self.autoencoder is not None:
            self.autoencoder.eval()
        return self

    @torch.no_grad()
    def encode(self, images: Tensor, sample: bool = False) -> Tensor:
        """Images (B,3,H,W) in [-1,1] -> scaled latents z0 (B,C,h,w). `sample` a KL posterior, not its mode."""
        return _raw_latent(self.autoencoder, images, sample) * self.scale_factor

    @torch.no_grad()
    def decode(self, z0: Tensor) -> Tensor:
        """Scaled latents z0 (B,C,h,w) -> images (B,3,H,W), which may leave [-1,1] a little."""
        z = z0 / self.scale_factor
        return z if self.autoencoder is None else self.autoencoder.decode(z)

    def latent_shape(self, size) -> tuple[int, int, int]:
        """(C, h, w) of the latent of an image of `size`, a side or (height, width)."""
        height, width = pair(size)
        if height % self._factor or width % self._factor:
            raise ValueError(f"images of {height} x {width} cannot be: sides must be multiples of {self._factor}.")
        channels = self.net.config.in_channels if self.autoencoder is None else self.autoencoder.config.latent_channels
        return channels, height // self._factor, width // self._factor

    @property
    def _factor(self) -> int:
        return 1 if self.autoencoder is None else self.autoencoder.config.downsample_factor

    def denoiser(self, batch: dict | None = None, guidance_scale: float = 1.0, negative=None, clip_x0=None, size=None):
        """`denoise(x_t, t) -> (x0, eps)` under a batch's condition, for any sampler. Without a conditioner, unguided.

        negative: what to steer away from, a caption or a dict of batch keys, in place of "no condition".
        size: of the pictures to be made, as in `sample`.
        """
        if negative is not None and not isinstance(negative, (str, dict)):
            raise ValueError(f"negative is one caption, or a dict of batch keys; got {negative!r:.80}.")
        if isinstance(negative, str):
            negative = {"caption": [negative] * (batch_size(batch) if batch else 1)}
        # what of it has no effect is said
        for remark in not_read(self.conditioner, batch or {}, negative or {}, guidance_scale):
            warnings.warn(remark, NotRead, stacklevel=2)
        if self.conditioner is None:
            return make_denoiser(self.net, self.schedule, Cond(), prediction=self.prediction, clip_x0=clip_x0)
        if batch is None:
            raise ValueError('this model is conditional: sample({"caption": [...]}), with what its conditioner reads.')
        # a map or picture that the batch lacks takes its size from a blank latent
        size = self._size(batch, size)
        if size is not None:
            batch = {**batch, "latent": torch.zeros(batch_size(batch), *self.latent_shape(size))}
        batch = to_device(batch, self.device)
        # the condition, and what guidance steers away from, once for all steps
        cond = self.conditioner.encode(batch)
        null = self._null(batch, negative) if guidance_scale != 1 else None
        return make_denoiser(self.net, self.schedule, cond, null, guidance_scale, self.prediction, clip_x0)

    def _null(self, batch: dict, negative) -> Cond:
        """No condition; or the negative's parts, and of the other parts none, so that guidance reaches them."""
        if negative is None:
            if self.p_uncond == 0:
                raise ValueError("p_uncond=0: this model never learned the null condition; use guidance_scale=1.")
            return self.conditioner.null(batch)
        instead = {**batch, **to_device(negative, self.device)}
        return Cond.join([part.encode(instead) if not part.keys or negative.keys() & set(part.keys)
                          else part.null(batch) for part in self.conditioner.parts])

    @torch.no_grad()
    def sample(self, batch: dict | None = None, num: int | None = None, steps: int = 20,
               guidance_scale: float = TEXT_GUIDANCE, sampler="dpm", generator: torch.Generator | None = None,
               seed: int | None = None, size=None, negative=None, **options) -> Tensor:
        """New images (B,3,H,W) in [-1,1], one per entry of `batch`, or `num` of them without a conditioner.

        sampler: a name in samplers.SAMPLERS or such a function; `options` go to it (eta, order, spacing, ...).
        seed:    the same noise, hence the same pictures, on every device, and the same first one however many; or a CPU
                 `generator`, from which a sampler, or one of your own, draws fresh noise for all of them together.
        size:    side or (height, width), default the size that the batch's images and maps ask for, else the one it was
                 trained on; other sizes work for convolutional nets.
        """
        # 1. what is asked for: how many, how large, from which noise, by which sampler
        num, size, generator, fresh, sampler = self._request(batch, num, size, generator, seed, sampler)
        with _evaluating(self):
            # 2. the condition and its absence; pixels have bounds, latents have none
            denoise = self.denoiser(batch, guidance_scale, negative, 1.0 if self.autoencoder is None else None, size)
            # 3. from noise to a latent, of which only the last counts
            z = self.noise(torch.empty(num, *self.latent_shape(size), device=self.device), generator)
            for z in sampler(denoise, z, self.schedule, steps=steps, generator=fresh, **options):
                pass
            # 4. from the latent to a picture, in float32 also under autocast
            images = self.decode(z).float().clamp(-1, 1)
        return images if self.conditioner is None else self.conditioner.finish(images, batch)

    def _request(self, batch, num, size, generator, seed, sampler) -> tuple:
        """`sample`'s arguments, made definite: num, (height, width), generators of the first and of fresh noise, the
        sampler's function. ValueErrors."""
        wanted = batch_size(batch) if batch else num
        if num not in (None, wanted) or not wanted or whole("num", wanted, 0) < 1:
            raise ValueError(f"how many? num={num}; it must be given without a batch, and agree with a batch.")
        size = self._size(batch, size)
        if size is None:
            raise ValueError("the model was never trained, so it knows no image size: give sample(..., size=64).")
        self.check_size(size)
        if seed is not None and generator is not None:
            raise ValueError("give a seed or a generator, not both.")
        if not callable(sampler) and (not isinstance(sampler, str) or sampler not in SAMPLERS):
            raise ValueError(f"sampler must be one of {list(SAMPLERS)}, or a function, got {sampler!r}.")
        sampler = SAMPLERS.get(sampler, sampler)
        if seed is not None:
            seed = whole("seed", seed, 0, 2**64 - 1)
            generator = torch.Generator().manual_seed(seed)
        # a sampler of your own may well draw from the one generator that its signature promises
        library = list(SAMPLERS.values())
        several = seed is not None and unwrap(sampler, stop=library.__contains__) in library
        return wanted, size, generator, generators(seed, wanted) if several else generator, sampler

    def check_size(self, size) -> None:
        """Raise ValueError for sides that the first stage and the network cannot halve as often as they must."""
        (height, width), several = pair(size), sides_of(self._factor, self.net)
        if height % several or width % several:
            raise ValueError(f"images of {height} x {width} cannot be: sides must be multiples of {several}.")

    def _size(self, batch: dict | None, size) -> tuple[int, int] | None:
        """(height, width): as the batch's images and maps want it; else as asked for; else as in training, if known.

        Raises ValueError where the first two differ."""
        wanted = self.conditioner.image_size(batch) if batch and self.conditioner is not None else None
        if size is None:
            return wanted or self.image_size
        if wanted not in (None, pair(size)):
            raise ValueError(f"size={size}: this batch's images and maps are for pictures of {wanted[0]} x "
                             f"{wanted[1]}.")
        return pair(size)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.scale_factor.device

    def save_pretrained(self, folder, half=False, card: dict | None = None, shard_bytes=SHARD_BYTES) -> Path:
        """Write config.json and model.safetensors (or shards of it with their index), as Hugging Face does.

        half: store parameters as float16; buffers, the scale factor among them, stay as they are.
        card: anything JSON that should stay with the weights: data, recipe, hardware, measures.
        """
        return hub.save(folder, self, half, card, shard_bytes)

    def push_to_hub(self, repository: str, half=False, card: dict | None = None, private: bool | None = None) -> str:
        """Publish it as "owner/name" on the Hugging Face Hub, for `from_pretrained`; returns its address.

        `hub.push` publishes a folder that was saved, with its README.
        """
        with TemporaryDirectory() as folder:
            return hub.push(self.save_pretrained(folder, half, card), repository, private)

    @classmethod
    def from_pretrained(cls, name_or_folder, net=None, autoencoder=None, conditioner=None, device=None):
        """A saved LatentDiffusion, in evaluation mode; `hub.find` says what names mean. Raises FileError.

        net, autoencoder, conditioner: parts of your own classes, which no config describes; they get their weights.
        """
        parts = {"net": net, "autoencoder": autoencoder, "conditioner": conditioner}
        ours = next(kind for kind in cls.__mro__ if hub.is_ours(kind))          # of a class of your own: its base
        return hub.load(name_or_folder, ours.__name__, device, **parts)


def latent_scale(autoencoder, batches, limit: int = 64) -> float:
    """1 / standard deviation of all values of all latents: the scale_factor that gives them unit variance (LDM app. G).

    batches: images (B,3,H,W) or dicts with "image" or "latent"; the first `limit` of them are used (LDM used one).
    One number for all channels; the latents are not centred.
    """
    check_first_stage(autoencoder)
    device, values = next(autoencoder.parameters()).device, [torch.zeros(0)]
    with torch.no_grad(), _evaluating(autoencoder):
        for batch in islice(batches, limit):
            if isinstance(batch, dict) and "latent" in batch:
                z = batch["latent"]
            else:
                images = batch["image"] if isinstance(batch, dict) else batch
                z = _raw_latent(autoencoder, images.to(device), sample=True)
            values.append(z.flatten().cpu())
    values = torch.cat(values).double()
    if not len(values) or values.min() == values.max():
        raise ValueError("latent_scale needs latents that vary: give at least one batch of different images.")
    return 1 / values.std().item()


def _raw_latent(autoencoder, images: Tensor, sample: bool) -> Tensor:
    """What the first stage's encoder gives, float32 and not scaled."""
    if not images.is_floating_point():
        raise ValueError(f"images are floats from -1 to 1 (bytes: x / 127.5 - 1), got {images.dtype}.")
    return (images if autoencoder is None else autoencoder.encode(images, sample=sample)).float()


@contextmanager
def _evaluating(module: nn.Module):
    """Evaluation mode inside, then every part's own mode again."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True

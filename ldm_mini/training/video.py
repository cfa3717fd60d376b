"""A run that makes a film model of an image model: built, started, fed with films and single pictures, and shown."""

from dataclasses import replace

import torch

from .. import hub
from ..cond import to_device
from ..conditioners import ClassConditioner, CombinedConditioner, TextConditioner
from ..files import read_json
from ..latent_diffusion import LatentDiffusion
from ..scenes.data import scene_stream
from ..scenes.films import MOTION_WORDS, film_stream, film_words
from ..scenes.vocabulary import NOUNS
from ..schedule import BETAS, NoiseSchedule
from ..show.films import film_strip, save_film
from ..text import TextTransformer, load_tokenizer
from ..train import train_diffusion
from ..unet import UNetConfig
from ..video import VideoDiT, VideoDiTConfig, VideoUNet
from ..video_diffusion import FilmText, FirstFrameConditioner, LatentVideoDiffusion
from . import build
from .latents import cache_latents
from .stages import SecondStageRun, _channels_last, _fingerprint


def build_video(recipe, autoencoder, scale_factor: float = 1.0) -> LatentVideoDiffusion:
    """The film model of a VideoRecipe on a trained first stage, with fresh weights."""
    r, first = recipe, autoencoder.config
    # the tokenizer is that of pictures: words of motion come behind its own
    new = tuple(word for word in MOTION_WORDS if word not in load_tokenizer().get_vocab())
    words = FilmText(r.text_width, r.text_layers, r.text_heads, r.max_length, film_words(r.films), new)
    parts = {"text": lambda: TextConditioner(words, r.vector),
             "class": lambda: ClassConditioner(len(NOUNS), r.text_width, r.text_width if r.vector else None)}
    if "text" not in r.parts or set(r.parts) - set(parts):
        raise ValueError(f'the recipe: films are told by "text", and maybe "class"; got {r.parts}.')
    if r.net not in ("unet", "dit"):
        raise ValueError(f'the recipe: net is "unet" or "dit", got {r.net!r}.')
    if r.frozen and r.net == "dit":
        raise ValueError("the recipe: frozen keeps an image U-Net as it is, and a dit holds none; take frozen=False.")
    often, made = {"text": r.text_practice, "class": 1.0}, [parts[name]() for name in r.parts]
    often, joined = [often[name] for name in r.parts], 0
    if r.frozen:                                                # only the new words of `FilmText` are learned
        for part in made:
            part.requires_grad_(False)
        words.words.new.requires_grad_(True)
    else:                                                       # its channels are new to the image network
        made.append(FirstFrameConditioner(first.latent_channels, first.downsample_factor))
        often, joined = [*often, 1.0], made[-1].concat_channels
    conditioner = CombinedConditioner(made, r.p_drop_each, r.p_single, often)
    inputs = dict(context_dim=r.text_width, vector_dim=r.text_width if r.vector else None, concat_channels=joined)
    if r.net == "dit":
        net = VideoDiT(VideoDiTConfig(first.latent_channels, r.dit.patch_size, 1, r.dit.width, r.dit.depth,
                                      r.dit.num_heads, r.scenes.size // first.downsample_factor, **inputs))
    else:
        net = VideoUNet(UNetConfig(first.latent_channels, channels=r.channels, channel_mults=r.channel_mults,
                                   num_res_blocks=r.num_res_blocks, attn_levels=r.attn_levels, head_dim=r.head_dim,
                                   groups=r.groups, **inputs), r.frozen)
    return LatentVideoDiffusion(autoencoder, net, NoiseSchedule(BETAS[r.schedule]()), conditioner, r.prediction,
                                r.p_uncond, scale_factor, r.scenes.size, r.frames, r.noise_share)


@torch.no_grad()
def start_video(source: LatentDiffusion, target: LatentVideoDiffusion) -> None:
    """Give a fresh film model the weights of a trained model of images, or of films.

    Of images: all of its U-Net but for channels that conditions joined, which are absent, hence 0, in films; its
    words, behind which new ones stay fresh; its classes; its scale of latents. At the start each frame is its picture.
    Raises ValueError if the networks have other shapes, or the latents come from other first stages.
    """
    if not build._alike(source.autoencoder, target.autoencoder):
        raise ValueError("--start-from: that model has another first stage: give its own with --autoencoder.")
    net, whole = target.net, isinstance(source, LatentVideoDiffusion)
    if not whole and not isinstance(net, VideoUNet):
        raise ValueError(f"--start-from: a {type(net).__name__} holds no image network to begin with: give words that "
                         "can be read with --text, or start from another film model.")
    weights, to = source.net.state_dict(), net if whole else net.image
    if not whole and (stem := weights.get("down.0.0.weight")) is not None:
        kept = stem[:, :net.config.in_channels]
        new = kept.new_zeros(len(kept), net.config.concat_channels, *kept.shape[2:])
        weights["down.0.0.weight"] = torch.cat([kept, new], dim=1)
    try:
        to.load_state_dict(weights)
        theirs = {type(part): part for part in build._parts(source.conditioner)}
        for part in target.conditioner.parts:
            if isinstance(part, TextConditioner) and TextConditioner in theirs:
                give_words(theirs[TextConditioner].text_transformer, part.text_transformer)
            elif type(part) in theirs:
                part.load_state_dict(theirs[type(part)].state_dict())
    except RuntimeError as error:
        raise build.another_shape("--start-from: that model", error) from None
    target.scale_factor.copy_(source.scale_factor)


@torch.no_grad()
def give_words(source: TextTransformer, target: TextTransformer) -> None:
    """Give a film model's words the weights of a text transformer that can read; what is new to it stays fresh."""
    weights, table, theirs = source.state_dict(), target.words, {}
    if isinstance(source, FilmText):
        old, theirs = weights["words.old"], dict(zip(source.more_words, weights["words.new"]))
    else:
        old = weights.pop("words.weight")
    if old.shape[1] == table.old.shape[1] and len(old) <= len(table.old):
        old = torch.cat([old, table.old[len(old):]])
    new = [theirs.get(word, fresh) for word, fresh in zip(target.more_words, table.new)]
    target.load_state_dict(weights | {"words.old": old, "words.new": torch.stack(new)})


class VideoRun(SecondStageRun):
    """A run that trains on films, and on single pictures in between."""

    def fresh(self, first) -> LatentVideoDiffusion:
        """The recipe's film model with fresh weights."""
        if self.recipe.image_every and self.accelerator.num_processes > 1:
            raise ValueError("on several processes every weight has to learn in every step, and pictures teach nothing "
                             "of time: take a recipe with image_every=None.")
        model = build_video(self.recipe, first)
        if isinstance(model.net, VideoUNet):
            _channels_last(model.net.image)
        return model

    def start(self) -> None:
        """What the model begins with: an image model or another film model, and words."""
        if self.recipe.frozen and self.start_from is None:
            raise ValueError("the recipe keeps an image model as it is: give it with --start-from.")
        if self.start_from is not None:
            start_video(_load(self.start_from), self.model)
        if self.text is not None:
            try:
                give_words(hub.load(self.text, "TextTransformer"), self.model.conditioner.parts[0].text_transformer)
            except RuntimeError as error:
                raise build.another_shape("--text: that transformer", error) from None

    def prepare(self) -> None:
        """Cached latents and their scale, and films to be tried on."""
        scale = self.model.scale_factor.clone()
        super().prepare()
        if self.start_from is not None and self.checkpoint is None:     # so that it begins as that model did
            self.model.scale_factor.copy_(scale)

    def validation(self, n: int) -> dict:
        """One batch of films that no training sees, on the device; their frames count as scenes."""
        films = replace(self.recipe.films, scenes=replace(self.recipe.scenes, split="val"))
        batch = next(film_stream(films, max(2, min(n, 256) // self.recipe.frames)))
        return to_device({**batch, "image": batch["video"]}, self.state.device)

    def encode(self, first):
        """The latents of the recipe's films, and of its pictures, kept in the run's folder."""
        r, accelerator, seed, workers = self.recipe, self.accelerator, self.seed, self.workers
        keys = ("caption", *(("class",) if "class" in r.parts else ()))

        def cached(stream, n, folder, *made_from):
            return cache_latents(first, stream, n, keys, self.out / folder,
                                 _fingerprint(first, *made_from, seed, keys, r.posterior), accelerator.is_main_process,
                                 sample=r.posterior)

        with accelerator.main_process_first():
            self.single = (cached(scene_stream(r.scenes, 64, 0, workers, 0, 1, seed=seed), r.pictures, "pictures",
                                  r.scenes) if r.image_every else None)
            return cached(film_stream(r.films, 8, 0, workers, 0, 1, seed=seed), r.latents, "films", r.films)

    def logs(self):
        """The loop: cached films, and every so many steps cached pictures, from the step on that is reached."""
        return train_diffusion(self.state, self.batches(), self.recipe.steps, warmup=self.recipe.warmup,
                               decay=self.recipe.decay, t_power=self.recipe.t_power)

    def batches(self):
        """Batch k depends on the seed and k alone. Pictures are as many as the frames of a batch of films."""
        r, state = self.recipe, self.state
        place = state.step, self.seed, state.rank, self.accelerator.num_processes
        films = self.encoded.to(state.device).batches(r.batch_size, *place)
        single = self.single and self.single.to(state.device)
        singles = single and single.batches(r.batch_size * r.frames, *place)
        for step in range(state.step, r.steps):
            # both go on together, so that a step's batch is the same wherever a run begins
            film, pictures = next(films), singles and next(singles)
            alone = r.image_every and step % r.image_every == r.image_every - 1
            yield pictures if alone else {**film, "first_latent": film["latent"][:, :, 0]}

    @torch.no_grad()
    def sample(self) -> dict:
        """Draw films for the recipe's captions, and of two first frames; returns losses on films no training sees."""
        with self.averaged(), self.state.autocast():
            told = self.model.sample({"caption": list(self.recipe.sample_captions)}, seed=self.seed)
            begun = self.model.sample({"caption": self.held_out["caption"][:2],
                                       "first": self.held_out["video"][:2, :, 0]}, seed=self.seed)
            losses = self.losses()
        films = torch.cat([told, begun]).cpu()
        self.show(film_strip(films))
        if films.isfinite().all():
            save_film(films, self.out / "samples" / "newest.gif")
        return losses

    def losses(self) -> dict:
        """Told alone; with the first frame, too; and how much a caption helps: the loss with another film's caption
        minus that with its own."""
        latent, captions = self.held_out["latent"], self.held_out["caption"]
        told = self.loss_of({"latent": latent, "caption": captions})
        other = self.loss_of({"latent": latent, "caption": captions[1:] + captions[:1]})
        measured = {"val_loss": told, "val_caption_gap": other - told}
        if "first" in self.model.conditioner.keys:
            measured["val_first_frame"] = self.loss_of({"latent": latent, "caption": captions,
                                                        "first_latent": latent[:, :, 0]})
        return measured


def _load(name):
    """A trained model of images or of films."""
    films = str(read_json(hub.find(name) / hub.CONFIG).get("class")).endswith("LatentVideoDiffusion")
    return (LatentVideoDiffusion if films else LatentDiffusion).from_pretrained(name)

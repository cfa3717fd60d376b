"""Every number of our trainings, in one place: what is trained, on what, how long, and what to expect.

A recipe is a frozen dataclass: `dataclasses.replace(AUTOENCODERS["tiny"], steps=100)` is another one. The expected
values stand beside each recipe, as measured with the command above it.
"""

from dataclasses import replace

from ..autoencoder import AutoencoderConfig
from ..scenes.films import FILM_SCENES, MOTIONS, PLAIN_MOTIONS
from ..scenes.scene import CENTRED_SCENES, MICRO_SCENES, TINY_SCENES, SceneConfig
from ..tasks import PARTS
from ..train import FirstStageLoss
from .recipe import AutoencoderRecipe, DiffusionRecipe, DiTSizes, TextRecipe, VideoRecipe, for_task


def find_recipe(stage: str, name: str):
    """The recipe of a stage by its name. Raises ValueError that lists the names."""
    recipes = {"autoencoder": AUTOENCODERS, "text": TEXTS, "diffusion": DIFFUSIONS, "video": VIDEOS}
    if stage not in recipes:
        raise ValueError(f"there is no stage {stage!r} to train; there are {', '.join(recipes)}.")
    if name not in recipes[stage]:
        raise ValueError(f"there is no {stage} recipe {name!r}; there are {', '.join(recipes[stage])}.")
    return recipes[stage][name]


# For a CPU: patches of 4 folded into channels, no other halving; 16x16x4 latents of 64-pixel scenes, 1024 codes.
# python -m ldm_mini train autoencoder --recipe tiny
# Expect on new scenes: 23.8 dB after 1,000 steps, 28.1 after 5,000, 27.6 at the end (the perceptual loss trades pixels
# for sharpness), 92% of the codes in use; 15 minutes on one thread of a shared two-core CPU, 8 for the first 5,000.
TINY_AUTOENCODER = AutoencoderRecipe(
    name="tiny", scenes=TINY_SCENES,
    model=AutoencoderConfig(downsample_factor=4, latent_channels=4, channels=96, num_res_blocks=1, mid_attn=False,
                            groups=1, patch_size=4),
    codebook_size=1024,
    steps=7_000,
    betas=(0.9, 0.99),                          # (0.5, 0.9), the GAN's, was 1.5 dB behind after 350 steps
    # L2 steadies the start: L1 alone leaves small things grey for long. The costly two sharpen what is already there
    loss=FirstStageLoss(mse_weight=1.0, perceptual_start=5_000, disc_start=5_200),
    disc_channels=32, disc_layers=2,            # judges patches of 34 pixels, about one sprite
    disc_lr=5e-4)

# The same without perceptual and adversarial loss, for the comparison at equal size and steps.
# Expect on 256 new scenes: 28.4 dB and a perceptual distance of 0.130 to the tiny recipe's 27.5 dB and 0.104.
TINY_L1_AUTOENCODER = replace(TINY_AUTOENCODER, name="tiny_l1",
                              loss=replace(TINY_AUTOENCODER.loss, perceptual_weight=0.0, disc_weight=0.0))

# For the front door: 128 pixels in 8 x 8 tokens. The encoder folds patches of 8 and halves once; the decoder paints
# each pixel.
# python -m ldm_mini train autoencoder --recipe small
# Expect 24.5 dB on new scenes, a perceptual distance of .27, and 88% of captions read exactly. Then longer, to 25.3 dB,
# .22 and 96%:
# python -m ldm_mini train autoencoder --recipe small_fine --start-from runs/autoencoder-small/model
SMALL_SCENES = SceneConfig(size=128, styles=("fluent_flat",), p_casual=0.3)
SMALL_AUTOENCODER = AutoencoderRecipe(
    name="small", scenes=SMALL_SCENES,
    model=AutoencoderConfig(downsample_factor=16, latent_channels=12, channels=96, channel_mults=(1, 2),
                            num_res_blocks=2, groups=1, patch_size=8,
                            decoder_channels=(24, 24, 48, 96, 192), decoder_blocks=(0, 1, 1, 2, 2)),
    codebook_size=None, kl_weight=3e-3,         # a weight that means something: the decoder forgives noisy latents
    steps=2_400, batch_size=16, lr=2e-3, muon_lr=5e-3, warmup=80, betas=(0.9, 0.99),
    loss=FirstStageLoss(mse_weight=1.0, perceptual_start=1_440, disc_weight=0.0), bf16=True)
SMALL_FINE_AUTOENCODER = replace(SMALL_AUTOENCODER, name="small_fine", steps=2_000,
                                 loss=replace(SMALL_AUTOENCODER.loss, perceptual_start=1_000))

# The first leg of `python -m ldm_mini speedrun`: simple scenes at 64 pixels, f = 8. The recogniser reads .92 of the
# captions off its reconstructions after 480 CPU-seconds: no diffusion can be better. A wider one of 500 steps: .75.
SPEEDRUN_AUTOENCODER = replace(
    SMALL_AUTOENCODER, name="speedrun", scenes=TINY_SCENES,
    model=AutoencoderConfig(downsample_factor=8, latent_channels=8, channels=64, channel_mults=(1, 2),
                            num_res_blocks=1, groups=1, patch_size=4,
                            decoder_channels=(24, 24, 64, 128), decoder_blocks=(0, 1, 2, 2)),
    kl_weight=1.25e-2, steps=1_400, warmup=40, loss=replace(SMALL_AUTOENCODER.loss, perceptual_start=1_000))

# For one H200: the same design, wider. Not yet run on a GPU; two steps on a CPU. `data/build/train_on_gpu.py` fits the
# steps into given minutes.
BASE_SCENES = SceneConfig(size=128, p_casual=0.3)
BASE_AUTOENCODER = replace(
    SMALL_AUTOENCODER, name="base", scenes=BASE_SCENES,
    model=replace(SMALL_AUTOENCODER.model, latent_channels=16, channels=128, channel_mults=(1, 2), num_res_blocks=2,
                  decoder_channels=(32, 64, 96, 192, 256), decoder_blocks=(1, 1, 2, 2, 2)),
    steps=8_000, batch_size=64, lr=1e-3, muon_lr=3e-3, warmup=300,
    loss=replace(SMALL_AUTOENCODER.loss, perceptual_start=4_000), ema_decay=0.999, compile=True)

MICRO_AUTOENCODER = AutoencoderRecipe(
    name="micro", scenes=MICRO_SCENES,
    model=AutoencoderConfig(downsample_factor=4, latent_channels=3, channels=16, num_res_blocks=1, mid_attn=False,
                            groups=4, patch_size=4),
    codebook_size=32, restart_after=5, steps=40, batch_size=2, warmup=5,
    loss=FirstStageLoss(perceptual_start=10, disc_start=12), disc_channels=4, disc_layers=1)

AUTOENCODERS = {r.name: r for r in (TINY_AUTOENCODER, TINY_L1_AUTOENCODER, SMALL_AUTOENCODER,
                                    SMALL_FINE_AUTOENCODER, SPEEDRUN_AUTOENCODER, BASE_AUTOENCODER, MICRO_AUTOENCODER)}

# Every recipe also trains a Diffusion Transformer: add `--net dit`.
# For a CPU, on the latents of the tiny autoencoder.
# python -m ldm_mini train diffusion --recipe tiny --autoencoder runs/autoencoder-tiny/model
# Expect 0.34 s per step on one thread of a shared two-core CPU: about an hour.
TINY_DIFFUSION = DiffusionRecipe(
    name="tiny", scenes=CENTRED_SCENES,
    channels=64, channel_mults=(1, 2, 2), dit=DiTSizes(depth=8, patch_size=2),
    steps=10_000, batch_size=16)                 # so far from convergence, many small steps beat few large ones

# All conditions in one network: words, class, layout, small pictures, semantic maps, holes, and their combinations.
# It goes on from the trained text model, with the same U-Net and new inputs:
# python -m ldm_mini train diffusion --recipe tiny_all --autoencoder runs/autoencoder-tiny/model \
#     --start-from runs/diffusion-tiny/model
# Things stand anywhere, else a layout would say nothing; the text model already knows what they look like.
TINY_ALL_DIFFUSION = replace(for_task(TINY_DIFFUSION, "all"), name="tiny_all", scenes=TINY_SCENES, latents=40_000,
                             t_power=2.0)
# A leg for the hardest, who stands where: layouts alone, mostly at high noise. 23 minutes on one thread. From a model
# whose layout part was new, box IoU .32 after 800 steps, .62 after 1,600, .74 at the end (before, in company: .23).
# Then tiny_all again, --start-from this one, and the other conditions come back.
TINY_LAYOUTS_DIFFUSION = replace(TINY_ALL_DIFFUSION, name="tiny_layouts", alone="layout", t_power=4.0, steps=4_000,
                                 decay="constant", ema_decay=0.99)

# For the front door: 64 tokens of 128 pixels, words by cross attention alone, a text transformer that can read already.
# Words first, for they are the hardest: with all conditions from the first step the caption gap was .14 after 48,000
# pictures. Then, from there and slowly, all conditions; at last faster, and with fewer words alone: a picture alone
# stood in 5% of `small`'s samples, and was hardly read.
# python -m ldm_mini train text --recipe small
# python -m ldm_mini train diffusion --recipe small_words --autoencoder emoji-scenes --text runs/text-small/model
# python -m ldm_mini train diffusion --recipe small --autoencoder emoji-scenes \
#     --start-from runs/diffusion-small_words/model
# python -m ldm_mini train diffusion --recipe small_pictures --autoencoder emoji-scenes \
#     --start-from runs/diffusion-small/model
# python -m ldm_mini train diffusion --recipe small_longer --autoencoder emoji-scenes \
#     --start-from runs/diffusion-small_pictures/model
SMALL_DIFFUSION = DiffusionRecipe(
    name="small", scenes=SMALL_SCENES, easy=replace(TINY_SCENES, size=128, p_casual=0.3),
    channels=128, channel_mults=(1, 1), attn_levels=(0, 1), groups=8,
    parts=PARTS, p_drop_each=0.5, p_single=0.8, text_practice=8.0,
    text_width=192, text_layers=2, text_heads=6, text_lr=0.2, vector=False, t_power=1.6, posterior=False,
    latents=40_000, steps=4_500, batch_size=32, lr=5e-4, muon_lr=1.25e-3, warmup=100, decay="cosine", ema_decay=0.998,
    bf16=True)

SMALL_WORDS_DIFFUSION = replace(SMALL_DIFFUSION, name="small_words", parts=("text",), p_drop_each=0.0, p_single=0.0,
                                steps=8_000, lr=2e-3, muon_lr=5e-3)
SMALL_PICTURES_DIFFUSION = replace(SMALL_DIFFUSION, name="small_pictures", text_practice=3.0, steps=6_000, lr=1.5e-3,
                                   muon_lr=3.75e-3)
SMALL_LONGER_DIFFUSION = replace(SMALL_PICTURES_DIFFUSION, name="small_longer", text_practice=6.0, steps=7_500)

SPEEDRUN_DIFFUSION = replace(SMALL_WORDS_DIFFUSION, name="speedrun", scenes=TINY_SCENES, easy=None, latents=36_000,
                             steps=3_300, warmup=60)

# For one H200: the same design, wider, and all four styles. Not yet run on a GPU; two steps on a CPU.
BASE_DIFFUSION = replace(
    SMALL_DIFFUSION, name="base", scenes=BASE_SCENES, easy=None, channels=256, num_res_blocks=2, groups=16,
    dit=DiTSizes(width=384, depth=10),
    text_width=384, text_layers=3, text_heads=6, latents=120_000, steps=20_000, batch_size=256, lr=1e-3,
    muon_lr=3e-3, warmup=500, ema_decay=0.9995, compile=True)

MICRO_DIFFUSION = DiffusionRecipe(
    name="micro", scenes=MICRO_SCENES, lr=1.5e-3,
    channels=16, channel_mults=(1, 2), attn_levels=(1,), head_dim=16, text_width=16, text_layers=1, text_heads=2,
    dit=DiTSizes(width=16, depth=1, num_heads=2, patch_size=2), latents=32, steps=40, batch_size=4, warmup=5,
    sample_captions=("an apple", "a red star"))

DIFFUSIONS = {r.name: r for r in (TINY_DIFFUSION, TINY_ALL_DIFFUSION, TINY_LAYOUTS_DIFFUSION, SMALL_DIFFUSION,
                                  SMALL_WORDS_DIFFUSION, SMALL_PICTURES_DIFFUSION, SMALL_LONGER_DIFFUSION,
                                  SPEEDRUN_DIFFUSION, BASE_DIFFUSION, MICRO_DIFFUSION)}

# python -m ldm_mini train text --recipe small
# Expect on new captions: all things named 1.00, colours .99, backgrounds .97 after 400 steps, 100 CPU-seconds.
TEXTS = {r.name: r for r in (TextRecipe("small", SMALL_SCENES), TextRecipe("speedrun", TINY_SCENES, steps=300),
                             TextRecipe("base", BASE_SCENES, 384, 3, steps=2_000),
                             TextRecipe("micro", MICRO_SCENES, 16, 1, 2, steps=20, batch_size=8, warmup=5))}

# Moving scenes, from an image model of the same design: latents of 8 frames, 64 tokens each.
# python -m ldm_mini train video --recipe small --autoencoder emoji-scenes --start-from runs/diffusion-small/model
# Not yet trained. On one core with bfloat16 a step takes 1.4 CPU-seconds of films, 1.1 of pictures.
SMALL_VIDEO = VideoRecipe(**{
    **vars(SMALL_DIFFUSION), "name": "small", "scenes": replace(FILM_SCENES, size=128), "easy": None,
    "dit": DiTSizes(depth=3),
    "parts": ("text", "class"), "p_drop_each": 0.1, "p_single": 0.5, "text_practice": 3.0, "text_lr": 0.5,
    "latents": 6_000, "steps": 5_000, "batch_size": 8, "lr": 1e-3, "muon_lr": 3e-3, "decay": "cosine",
    "sample_captions": ("a red apple moves to the right on a blue background", "a yellow star grows at night",
                        "a green car and a dog move towards each other on white", "an owl moves up in the snow")})

# As in Align your Latents: the image model stays as it is, so that little more than its layers over time is learned
# and stored (`save_pretrained(base="emoji-scenes")`). Pictures would teach it nothing. 0.74 s a step on one core with
# bfloat16, 60 minutes: frames that agree, and go where they like.
# python -m ldm_mini train video --recipe small_time --autoencoder emoji-scenes --start-from emoji-scenes
SMALL_TIME_VIDEO = replace(SMALL_VIDEO, name="small_time", frozen=True, image_every=None, motions=PLAIN_MOTIONS)

# Then where things go, which is decided at the highest noise (as of layouts, above). 38 minutes: of films of one thing
# .44 are seen to go as told, .03 before.
# python -m ldm_mini train video --recipe small_motion --autoencoder emoji-scenes \
#     --start-from runs/video-small_time/model
SMALL_MOTION_VIDEO = replace(SMALL_TIME_VIDEO, name="small_motion", t_power=4.0, steps=3_500, lr=2e-3, muon_lr=5e-3)

# Then all motions, those that enter, leave, turn round, or end beside another thing, too. 48 minutes: plain ones .50,
# the new ones of one thing .47 as told.
# python -m ldm_mini train video --recipe small_paths --autoencoder emoji-scenes \
#     --start-from runs/video-small_motion/model
SMALL_PATHS_VIDEO = replace(SMALL_MOTION_VIDEO, name="small_paths", motions=MOTIONS, t_power=3.0, steps=4_000)

# The same films by a transformer, from nothing but words: --text runs/text-small/model. 1.9 CPU-seconds a step.
SMALL_DIT_VIDEO = replace(SMALL_VIDEO, name="small_dit", net="dit", text_practice=8.0, batch_size=16, lr=2e-3,
                          muon_lr=5e-3)

MICRO_VIDEO = VideoRecipe(**{
    **vars(MICRO_DIFFUSION), "name": "micro", "frames": 3, "p_single": 0.5, "latents": 16, "pictures": 16,
    "image_every": 3, "steps": 20, "dit": DiTSizes(width=16, depth=1, num_heads=2),
    "sample_captions": ("an apple moves up", "a red star grows")})

VIDEOS = {r.name: r for r in (SMALL_VIDEO, SMALL_TIME_VIDEO, SMALL_MOTION_VIDEO, SMALL_PATHS_VIDEO, SMALL_DIT_VIDEO,
                             MICRO_VIDEO)}

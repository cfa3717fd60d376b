"""ldm_mini: latent diffusion models, small and finished. The paper stands at the front, a file for each idea:

    first stage (LDM sec. 3.1)    quantizer, kl, autoencoder, perceptual, discriminator
    diffusion (sec. 3.2)          schedule, diffusion, samplers, blocks, attention, unet
    conditions (sec. 3.3, 4)      cond, text, conditioners, concat_conditioners, distortions, tasks
    all together (sec. 3, E)      latent_diffusion, ema, train
    after the paper               dit, video, video_diffusion, muon

    from ldm_mini.quantizer import VectorQuantizer

What serves it stands in wings, each of which hands out its names:

    scenes    the data set           measure   how good is it?          training   recipes, runs, resuming
    show      pictures of pictures   released  the paper's own weights  checks     of the exercises
    editions  of the notebooks       teaching  courses and grades

    from ldm_mini.scenes import EmojiScenes

`files`, `weights`, `hub` read and write: a file, a folder's weights, a model. `extras` says what is optional.
`python -m ldm_mini` is the command line.
"""

__version__ = "0.2.0"

"""ldm_mini: latent diffusion models, small and finished."""
